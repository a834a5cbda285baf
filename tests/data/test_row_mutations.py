"""No row of data ends a run: rows damaged at random give examples, skipped rows with their key, or one sentence."""

import contextlib
import json
import random
from dataclasses import asdict, replace

import pytest
from helpers.damage import GOOD_CLIPS, json_text, mutated_line, write_clips
from rich.console import Console

from uniaudio.checks.first_rows import check_entry
from uniaudio.commands.data_pack import pack_split
from uniaudio.commands.data_stats import measure_entry
from uniaudio.commands.preview import show_row
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.eval_examples import open_examples
from uniaudio.data.loader import make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.segment import SegmentColumns
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.generation.predictions import Answers, PredictionSettings, iterate_question_chunks
from uniaudio.tiny.recipe_texts import collect_recipe_texts

ROWS = 24  # of a manifest
KEEPS = (None, "fold != 3", "fold < 5", "label == 'low' or fold > 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe over a manifest that every test writes anew."""
    folder = tmp_path_factory.mktemp("mutated")
    write_clips(folder)
    template = {
        "task": "tone",
        "domain": "sound",
        "inputs": ["label"],
        "prompts": ["<audio>Which? {{ label }}"],
    }
    (folder / "tone.yaml").write_text(dump_yaml({**template, "target": "{{ label }}"}))
    (folder / "one_of.yaml").write_text(
        dump_yaml({**template, "task": "one_of", "prompts": ["<audio>Which?"], "target_one_of": "label"})
    )
    lines = [{"dataset": "rows", "template": ["tone", "one_of"]}]
    evaluate = [{"dataset": "rows", "template": name, "split": "train"} for name in ("tone", "one_of")]
    (folder / "all.yaml").write_text(dump_yaml({"recipe": "all", "train": lines, "evaluate": evaluate}))
    return folder


def good_row(rng):
    return {
        "audio": rng.choice(GOOD_CLIPS),
        "label": rng.choice(("low", "high")),
        "fold": 1,
        "duration": 0.3,
    }


def write_rows(folder, seed):
    """Write the card and a manifest of good and damaged rows; return how many rows are good."""
    rng = random.Random(seed)
    keep = rng.choice(KEEPS)
    split = {"train": {} if keep is None else {"keep": keep}}
    card = {"dataset": "rows", "load": {"jsonl": "rows.jsonl"}, "license": "CC0-1.0", "splits": split}
    (folder / "rows.yaml").write_text(dump_yaml(card))
    lines, good = [], 0
    for _ in range(ROWS):
        if rng.random() < 0.4:
            lines.append(json_text({**good_row(rng), "fold": 2}).encode())
            good += 1
        else:
            lines.append(mutated_line(good_row(rng), rng))
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return good


def check_skips(skips):
    for skip in skips:
        assert skip.source == "rows"
        assert skip.row
        assert skip.reason
        json.dumps(asdict(skip), ensure_ascii=False).encode()
        assert len(skip.row) + len(skip.detail) < 1200


def train_once(recipe, format):
    """Return the ids of all examples of the first pass over the rows, and what was skipped."""
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    mixture = Mixture(
        recipe, sources, format, lambda n: n // 1280 + 1, 0, 1e6, 0.1, 3.0, 1, 1, pool=sources[0].size
    )
    step = next(make_loader(mixture, recipe.list_tasks(), 0, 1, 0, 2))
    assert step.drawn == {"rows": 2 * sources[0].size}
    assert len(step.micro[0].ids) + len(step.skips) == 2 * sources[0].size
    return step.micro[0].ids, step.skips


def evaluate_once(recipe, format):
    """Go through both evaluation sets, whole and as a sample."""
    for entry in recipe.evaluate:
        for limit in (None, 5):
            settings = PredictionSettings(max_new_tokens=8, batch_seconds=60.0)
            examples = open_examples(entry, limit)
            answers = Answers()
            chunks = iterate_question_chunks(examples, format, settings, lambda n: n // 1280 + 1, answers)
            usable = sum(map(len, chunks))
            check_skips(skip for _, skip in answers.skips)
            assert usable == len(answers.questions)
            assert usable + len(answers.skips) == examples.size


def try_tools(recipe, out):
    (entry,) = recipe.train
    stats = measure_entry(entry, 1000)
    assert stats.unusable < stats.looked_at
    collect_recipe_texts(recipe, 100)
    out.mkdir()
    rows, lost, *_ = pack_split(entry.dataset, entry.split, out, 1 << 20, Console(quiet=True))
    manifest = out / "rows" / "train.jsonl"
    assert len(manifest.read_text().split("\n")) == rows + 1
    assert len((out / "skipped.jsonl").read_text().split("\n")) == lost + 1
    load = entry.dataset.load.model_copy(update={"jsonl": str(manifest)})
    # clips are cut when they are packed, as the card written for them says
    packed = open_source(replace(entry.dataset, load=load, segment=SegmentColumns()), "train")
    assert not any(isinstance(row, RowError) for row in packed.rows())
    assert packed.size == rows


@pytest.mark.parametrize("seed", range(40))
def test_damaged_rows_are_skipped_with_their_key(folder, tmp_path, chat_tokenizer, seed):
    good = write_rows(folder, seed)
    format = ChatFormat(chat_tokenizer, None, 1000)
    recipe = load_recipe(str(folder / "all.yaml"))
    ids, skips = train_once(recipe, format)
    check_skips(skips)
    assert len(ids) >= 2 * good
    evaluate_once(recipe, format)
    try_tools(recipe, tmp_path / "packed")
    with contextlib.suppress(UserError):  # as where a template needs a column that the first row lacks
        check_entry(recipe.train[0])
    source = open_source(recipe.train[0].dataset, "train")
    show_row(Console(quiet=True), "1. ", recipe.train[0], source, (seed, 0), format)
