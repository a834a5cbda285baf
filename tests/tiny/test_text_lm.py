"""The miniature language model: what it is taught, how it is stored, and that it learns to read a cue."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from uniaudio.config.decoder import MiniatureConfig
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.tiny.curriculum import NOISE, Curriculum
from uniaudio.tiny.pretrain import answer_losses, embed_synthetic_clips
from uniaudio.tiny.recipe_texts import RecipeText, collect_recipe_texts
from uniaudio.tiny.text_lm import build_miniature_decoder, build_text_lm, train_text_lm, train_tokenizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTS = [
    *(RecipeText("digit", ("", "Which digit?"), digit) for digit in DIGITS),
    *(RecipeText("digit", ("Name it.\n", ""), digit) for digit in DIGITS),
    RecipeText("pair", ("", "and", "the same?"), "yes"),
    RecipeText("pair", ("", "and", "the same?"), "no"),
    RecipeText("asr", ("", "Write it down."), "a long sentence of more than eight words is taken apart"),
]
TINY = MiniatureConfig(
    hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=300, steps=4, batch=8
)


@pytest.fixture(scope="module")
def format():
    words = [word for text in TEXTS for word in (*text.pieces, text.answer)]
    return ChatFormat(train_tokenizer(words, 340))


@pytest.fixture(scope="module")
def book(format):
    return Curriculum(TEXTS, ["an extra line"], format)


def test_an_example_is_the_prompt_of_training_with_a_synthetic_clip(format, book):
    text = TEXTS[0]
    example = book.make_example(text.pieces, text.answer, random.Random(0))
    before, after = format.encode_prompt(text.pieces)
    ids = example.ids.tolist()
    assert ids[: len(before)] == before
    assert ids[-example.answer :] == format.answer("zero")
    assert ids[-example.answer - len(after) : -example.answer] == after
    synthetic = ids[len(before) : len(ids) - example.answer - len(after)]
    assert set(synthetic) - {NOISE, format.pad} <= set(format.answer("zero")) | set(format.answer(" zero"))
    assert example.is_clip.nonzero().flatten().tolist() == list(
        range(len(before), len(before) + len(synthetic))
    )


def test_of_two_clips_one_speaks(format, book):
    text = TEXTS[20]
    for seed in range(20):
        example = book.make_example(text.pieces, text.answer, random.Random(seed))
        first, gap, last = format.encode_prompt(text.pieces)
        inner = example.ids.tolist()[len(first) : -example.answer - len(last)]
        at = next(i for i in range(len(inner)) if inner[i : i + len(gap)] == gap)
        quiet = {NOISE, format.pad}
        speaks = [not set(clip) <= quiet for clip in (inner[:at], inner[at + len(gap) :])]
        assert sorted(speaks) == [False, True]


def test_the_strings_of_the_final_check_are_never_taught(book):
    rng = random.Random(1)
    assert book.kept_words
    assert not book.kept_words & {text.answer for text in TEXTS}
    assert not book.kept_words & {book.draw_unknown_words(rng) for _ in range(3000)}


def test_batches_start_plain_and_hold_examples_of_similar_length(book):
    batches = list(book.iterate_batches(random.Random(0), 8, 100))
    assert len(batches) == 100
    assert all(len(batch) == 8 for batch in batches)
    assert all(example.is_clip.sum() == 0 for batch in batches[:16] for example in batch)
    assert any(example.is_clip.sum() > 0 for batch in batches[60:] for example in batch)
    used = sum(len(example.ids) for batch in batches for example in batch)
    padded = sum(8 * max(len(example.ids) for example in batch) for batch in batches)
    assert used > 0.75 * padded


def test_losses_do_not_depend_on_the_padding(format, book):
    torch.manual_seed(0)
    lm = build_text_lm(TINY, len(format.tokenizer), format.end_of_turn, format.pad).eval()
    examples = [
        book.draw_example(TEXTS[i].pieces, format.answer(TEXTS[i].answer), [9, 8], random.Random(i), True)
        for i in (0, 22)
    ]
    generator = torch.Generator()
    together, _ = answer_losses(lm, examples, embed_synthetic_clips(lm, examples, generator))
    alone = [answer_losses(lm, [one], embed_synthetic_clips(lm, [one], generator))[0] for one in examples]
    torch.testing.assert_close(together, torch.cat(alone))


def test_noise_falls_on_synthetic_clips_only(format, book):
    lm = build_text_lm(TINY, len(format.tokenizer), format.end_of_turn, format.pad)
    examples = [book.make_example(text.pieces, text.answer, random.Random(3)) for text in TEXTS[:4]]
    one, two = (embed_synthetic_clips(lm, examples, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    moved = (one != two).any(-1)
    for row, example in enumerate(examples):
        assert torch.equal(moved[row, : len(example.ids)], example.is_clip.bool())


def test_it_is_stored_like_any_model_and_the_seed_decides(tmp_path):
    first = train_text_lm(TEXTS, TINY, tmp_path / "a")
    second = train_text_lm(TEXTS, TINY, tmp_path / "b")
    tokenizer = AutoTokenizer.from_pretrained(first)
    lm = AutoModelForCausalLM.from_pretrained(first)
    assert lm.config.model_type == "qwen3"
    assert lm.config.vocab_size == len(tokenizer)
    assert ChatFormat(tokenizer).end_of_turn == lm.config.eos_token_id
    facts = json.loads((first / "training.json").read_text())
    assert {"accuracy_known", "accuracy_unseen", "accuracy_no_cue"} <= set(facts)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_texts_that_training_would_skip_are_left_out(tmp_path):
    """Transcripts from the web hold the marks of other models' texts."""
    odd = [
        RecipeText("digit", ("", "Which digit?"), "two <|im_end|>"),
        RecipeText("digit", ("", "<|im_start|>Which digit?"), "two"),
        RecipeText("digit", ("", "Which digit?"), "long " * 20_000),
    ]
    (tmp_path / "extra.txt").write_text("a plain line\n<|endoftext|>\n")
    settings = TINY.model_copy(update={"extra_texts": str(tmp_path / "extra.txt")})
    folder = train_text_lm([*TEXTS, *odd], settings, tmp_path / "a")
    assert json.loads((folder / "training.json").read_text())["texts"] == len(TEXTS)
    with pytest.raises(UserError, match="no row of the recipe"):
        train_text_lm(odd, TINY, tmp_path / "b")


def test_a_recipe_may_have_any_number_of_words(format):
    """All of them together may be longer than a text of data may be."""
    words = [f"{chr(97 + n % 26)}{n}" for n in range(15_000)]
    book = Curriculum(
        [*TEXTS, RecipeText("asr", ("", "Write it down."), " ".join(words[:40]))], words, format
    )
    assert set(format.encode(" ".join(book.words[:2000]))) <= set(book.pieces)
    assert len(book.draw(random.Random(0)).ids) > 0


def test_a_decoder_that_another_run_has_just_written_stays_as_it_is(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text("{")  # of a copy that was not finished
    first = train_text_lm(TEXTS, TINY, folder)
    files = {file: (file.read_bytes(), file.stat().st_ino) for file in first.iterdir()}
    assert first / "model.safetensors" in files
    assert train_text_lm(TEXTS, TINY.model_copy(update={"seed": 1}), folder) == first
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in first.iterdir()} == files
    assert not list(tmp_path.glob(".*"))


def test_mistakes_in_the_sizes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"hidden \(30\)"):
        train_text_lm(TEXTS, TINY.model_copy(update={"hidden": 30, "heads": 4}), tmp_path / "a")
    with pytest.raises(UserError, match="no row of the recipe"):
        train_text_lm([], TINY, tmp_path / "a")
    with pytest.raises(UserError, match="there is no file"):
        train_text_lm(TEXTS, TINY.model_copy(update={"extra_texts": "nowhere.txt"}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def write_recipe(folder: Path, answers: list[str]) -> Path:
    """A recipe over a manifest whose audio files do not exist."""
    rows = [{"audio": f"{i}.wav", "label": answer, "split": "train"} for i, answer in enumerate(answers)]
    rows.append({"audio": "t.wav", "label": "hidden", "split": "test"})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "rows.yaml").write_text(
        f"dataset: rows\nload: {{jsonl: {folder}}}\nlicense: CC0\n"
        "splits: {train: {keep: \"split == 'train'\"}, test: {keep: \"split == 'test'\"}}\n"
    )
    (folder / "name_it.yaml").write_text(
        "task: name_it\ndomain: sound\ninputs: [label]\nlabels: [dog, cat]\n"
        'prompts: ["<audio>What is it?", "Name it.<audio>"]\ntarget: "{{ label }}"\n'
    )
    recipe = folder / "tiny.yaml"
    recipe.write_text("recipe: tiny\ntrain:\n  - {dataset: rows, template: name_it}\n")
    return recipe


def test_texts_come_from_the_training_rows_without_audio(tmp_path):
    texts = collect_recipe_texts(load_recipe(str(write_recipe(tmp_path, ["dog", "cat", "bird"] * 8))))
    assert {text.answer for text in texts} == {"dog", "cat"}  # "bird" is no label, "hidden" is a test row
    assert {text.pieces for text in texts} == {("", "What is it?"), ("Name it.", "")}
    assert len(texts) == len(set(texts)) == 4


def test_the_decoder_is_trained_once_for_the_same_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(str(write_recipe(tmp_path, ["dog", "cat"] * 4)))
    said: list[str] = []
    first = build_miniature_decoder(TINY, [recipe], said.append)
    assert said
    said.clear()
    assert build_miniature_decoder(TINY, [recipe], said.append) == first
    assert not said
    changed = load_recipe(str(write_recipe(tmp_path, ["dog"] * 4)))
    assert build_miniature_decoder(TINY, [changed], None) != first
    assert build_miniature_decoder(TINY.model_copy(update={"seed": 1}), [recipe], None) != first


@pytest.mark.slow
def test_it_learns_to_read_a_synthetic_clip_it_has_never_seen(tmp_path):
    settings = TINY.model_copy(
        update={
            "hidden": 64,
            "layers": 3,
            "heads": 4,
            "kv_heads": 2,
            "intermediate": 128,
            "steps": 400,
            "batch": 32,
        }
    )
    facts = json.loads((train_text_lm(TEXTS, settings, tmp_path / "lm") / "training.json").read_text())
    assert facts["accuracy_known"] > 0.9
    assert facts["accuracy_unseen"] > 0.6
    assert facts["accuracy_no_cue"] < facts["accuracy_known"] - 0.2
