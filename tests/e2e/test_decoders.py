"""Trained decoders and Whisper's own one through training, resume and questions."""

import json

import pytest
import torch
from helpers.run_folders import latest_checkpoint
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.utils import chat_template_utils

from uniaudio.build.model import load_model
from uniaudio.commands import preview as previewing
from uniaudio.commands.ask import answer_file_question
from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.preview import preview
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.evaluate.generation.generated_answers import generate
from uniaudio.model.lora import merge_lora
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint.reading import load_checkpoint


@pytest.fixture
def whisper_decoder(tone_run, chat_tokenizer):
    """A full Whisper with the tests' tokenizer."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=len(chat_tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperForConditionalGeneration(config).save_pretrained(tone_run.parent / "full")
    chat_tokenizer.save_pretrained(tone_run.parent / "full")
    return "decoder.path=full"


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["causal", "whisper"])
def test_it_trains_resumes_and_answers(tone_run, whisper_decoder, kind, how):
    overrides = ["train.max_steps=8", f"decoder={{kind: {kind}, train: {how}, lr: 1e-3}}"]
    overrides += [whisper_decoder if kind == "whisper" else "decoder.path=qwen"]
    out = tone_run.parent / "out"
    assert run_training(load_run(tone_run, overrides), None) == 0
    assert losses(out)[-1] < losses(out)[0]
    names = [n for n in load_checkpoint(latest_checkpoint(out)).model if n.startswith("decoder.")]
    assert bool(names) == (how != "frozen")
    if how == "lora":
        assert all("lora_" in name for name in names)
    again = tone_run.parent / "again"
    run_training(
        load_run(
            tone_run, [*overrides, f"output_dir={again}", "train.max_steps=4", "stages.0.schedule=constant"]
        ),
        None,
    )
    run_training(load_run(tone_run, [*overrides, f"output_dir={again}", "stages.0.schedule=constant"]), "yes")
    assert len(losses(again)) == 8
    assert isinstance(
        answer_file_question(str(out), tone_run.parent / "tones" / "0.wav", "Which tone is it?", 4), str
    )


def test_answers_of_whispers_decoder_in_a_batch_equal_answers_alone(tone_run, whisper_decoder):
    run_training(
        load_run(tone_run, ["decoder={kind: whisper, train: full, lr: 1e-3}", whisper_decoder]), None
    )
    loaded = load_model(str(tone_run.parent / "out"))
    from uniaudio.data.audio import decode
    from uniaudio.data.collate import collate_prompts
    from uniaudio.types import Example

    clips = [decode(tone_run.parent / "tones" / f"{i}.wav", 30, "clip") for i in (0, 7, 12)]
    examples = [
        Example(str(i), "tone", "tones", (clip,), ("", "Which tone is it?"), "-")
        for i, clip in enumerate(clips)
    ]

    def answers(some):
        batch = collate_prompts(some, loaded.format, loaded.model.count_slots, ("tone",))
        assert batch.audio_tokens == 0
        return generate(loaded.model, batch, loaded.format, 6)

    assert answers(examples) == [answers([example])[0] for example in examples]
    results = run_evaluation(str(tone_run.parent / "out"), None, None, None)
    assert results["tones:tone"]["examples"] == 10


def test_a_preview_shows_the_prompts_of_whispers_decoder(tone_run, whisper_decoder, capsys):
    """Its tokenizer has no chat template; training puts another token before a prompt than ``bos``."""
    full, config = tone_run.parent / "full", tone_run.with_name("whisper.yaml")
    tokenizer = AutoTokenizer.from_pretrained(full)
    tokenizer.chat_template = None
    (full / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(full)
    load_run(tone_run, ["decoder.kind=whisper", whisper_decoder]).save(config)
    preview(str(config), 1, None, 0)
    assert "<|startoftranscript|>" in capsys.readouterr().out


def test_a_preview_does_without_a_tokenizer_that_is_damaged(tone_run, capsys):
    (tone_run.parent / "qwen" / "tokenizer.json").write_text('{"version": "1.0"')
    preview(str(tone_run), 1, None, 0)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"because that of {tone_run.parent / 'qwen'} cannot be read on this machine" in shown
    assert "1. tones:tone" in shown
    with pytest.raises(UserError, match=r"--decoder .*qwen: no tokenizer could be loaded"):
        preview(str(tone_run), 1, str(tone_run.parent / "qwen"), 0)


def test_a_preview_reads_the_tokenizer_of_the_revision_in_the_config(tone_run, monkeypatch):
    requests = []

    def find(name, file, revision):
        requests.append((name, revision))
        return "in the cache"

    def load(name, **options):
        requests.append((name, options["revision"], options["local_files_only"]))
        raise OSError("nothing is loaded here")

    monkeypatch.setattr(previewing, "try_to_load_from_cache", find)
    monkeypatch.setattr(previewing.AutoTokenizer, "from_pretrained", load)
    load_run(tone_run, ["decoder={path: me/lm, revision: v2}"]).save(tone_run.with_name("hub.yaml"))
    preview(str(tone_run.with_name("hub.yaml")), 1, None, 0)
    assert requests == [("me/lm", "v2"), ("me/lm", "v2", True)]


DATED = (
    "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %b') + '<|im_end|>\\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def gpt2(tone_run, chat_tokenizer):
    """A GPT-2 of 128 positions, whose linear maps are ``Conv1D``, and a chat template that writes the date."""
    torch.manual_seed(0)
    folder = tone_run.parent / "gpt2"
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = GPT2Config(vocab_size=len(chat_tokenizer), bos_token_id=0, eos_token_id=2, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


def set_day(monkeypatch, day):
    class Clock(chat_template_utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_a_run_of_two_days_with_updates_of_conv1d_keeps_its_prompt(tone_run, gpt2, monkeypatch, capsys):
    """Losses fall and do not depend on the day of the resume; the merged decoder answers as the one with updates."""
    overrides = ["decoder={path: gpt2, train: lora, lr: 3e-3}", "stages.0.schedule=constant"]
    set_day(monkeypatch, 1)
    whole, halves = tone_run.parent / "whole", tone_run.parent / "halves"
    run_training(load_run(tone_run, [*overrides, f"output_dir={whole}"]), None)
    run_training(load_run(tone_run, [*overrides, f"output_dir={halves}", "train.max_steps=4"]), None)
    set_day(monkeypatch, 2)
    run_training(load_run(tone_run, [*overrides, f"output_dir={halves}"]), "yes")
    assert losses(halves) == losses(whole)
    assert sum(losses(whole)[-3:]) < sum(losses(whole)[:3])
    trained = load_checkpoint(latest_checkpoint(halves)).model
    updates = [name for name in trained if name.startswith("decoder.") and "lora_B" in name]
    assert {name.split(".")[-4] for name in updates} == {"c_attn", "c_fc", "c_proj"}
    assert all(trained[name].abs().max() > 0 for name in updates)

    loaded = load_model(str(halves))
    assert "Today is 01 Jan" in loaded.format.prefix
    embeds = Ragged(torch.randn(9, 64), torch.tensor([4, 5]))
    hidden = loaded.model.decoder.hidden(embeds)
    merge_lora(loaded.model.decoder.lm)
    assert not any("lora" in name for name, _ in loaded.model.decoder.named_parameters())
    torch.testing.assert_close(loaded.model.decoder.hidden(embeds), hidden, atol=1e-4, rtol=1e-4)

    capsys.readouterr()
    preview(str(halves), 1, None, 0)
    assert "Today is 01 Jan" in capsys.readouterr().out
    load_run(tone_run, overrides).save(tone_run.with_name("other.yaml"))
    preview(str(tone_run.with_name("other.yaml")), 1, None, 0)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Today is 02 Jan" in shown
    assert "a run keeps the date of its start" in shown


def test_positions_of_the_decoder_bound_questions_and_labels(tone_run, gpt2):
    run_training(load_run(tone_run, ["decoder={path: gpt2}", "train.max_steps=1"]), None)
    out, clip = str(tone_run.parent / "out"), tone_run.parent / "tones" / "0.wav"
    # ends where the positions do
    assert isinstance(answer_file_question(out, clip, "Which tone is it?", 200), str)
    with pytest.raises(
        UserError, match=r"the question cannot be used: text too long.*the decoder has 128 positions"
    ):
        answer_file_question(out, clip, "Which tone is it? " * 40, 4)
    template = tone_run.parent / "tone.yaml"
    long = "a tone that is higher than most of those that are heard in this house " * 2
    template.write_text(template.read_text().replace("- high", f"- high\n- {long.strip()}"))
    with pytest.raises(UserError, match="text too long"):
        run_evaluation(out, None, None, None)
