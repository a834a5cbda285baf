"""What `uniaudio check` sees in all rows: labels, empty answers, repeated rows, rows on both sides, lengths."""

import io
import json
import re

import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import clip_bytes, write_tar
from helpers.range_server import serve_ranges
from rich.console import Console

from uniaudio.checks.all_rows import build_rows_table, describe_problems, read_all_rows, refuse_many_unusable
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.console import WorkProgress
from uniaudio.data import text_rows
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.http import VERSIONS
from uniaudio.errors import UserError


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe over ``manifest.jsonl`` whose clips are read by nobody: they are not there."""
    files = {
        "r.yaml": {
            "recipe": "r",
            "train": [{"dataset": "d", "template": "t"}],
            "evaluate": [{"dataset": "d", "template": "t"}],
        },
        "t.yaml": {"task": "t", "domain": "sound", "inputs": ["label"], "prompts": ["<audio>?"]},
        "d.yaml": {"dataset": "d", "load": {"jsonl": "manifest.jsonl"}, "license": "CC0-1.0"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(dump_yaml(content))
    change(tmp_path, "t.yaml", target="{{ label }}", labels=["rook", "wren"])
    keep = {side: {"keep": f"split == '{side}'"} for side in ("train", "test")}
    change(tmp_path, "d.yaml", splits=keep)
    return tmp_path / "r.yaml"


def change(folder, name, **changes):
    (folder / name).write_text(dump_yaml({**load_yaml(folder / name), **changes}))


def write_rows(recipe_file, rows):
    text = "".join(json.dumps({"split": "train", "duration": 2.0, **row}) + "\n" for row in rows)
    (recipe_file.parent / "manifest.jsonl").write_text(text)


def look(recipe_file, longest=100.0, format=None):
    """Return (findings by split, problems, table)."""
    recipe = load_recipe(str(recipe_file))
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    with WorkProgress(console, "rows") as progress:
        entries = (*recipe.train, *recipe.evaluate)
        findings = {id(entry): read_all_rows(entry, progress, format) for entry in entries}
    console.print(build_rows_table("one", list(findings.values())))
    problems = describe_problems(recipe, findings, longest, "data.max_seconds")
    return {one.entry.split: one for one in findings.values()}, problems, screen.getvalue()


def rows_of(split, count, **columns):
    return [
        {"audio": f"{split}{n}.wav", "label": ("rook", "wren")[n % 2], "split": split, **columns}
        for n in range(count)
    ]


def test_rows_without_a_problem_say_nothing(recipe_file):
    write_rows(recipe_file, [*rows_of("train", 6), *rows_of("test", 2)])
    findings, problems, table = look(recipe_file)
    assert problems == []
    assert (findings["train"].read, findings["train"].used) == (6, 6)
    assert "2 of 2" in table
    assert "1-5 s 100%" in table


def test_unknown_labels_far_behind_the_first_rows_are_listed_by_label(recipe_file):
    rows = [*rows_of("train", 300), *rows_of("test", 2)]
    for number in (200, 210, 220, 230):
        rows[number]["label"] = "wern"
    rows[250]["label"] = "rok"
    rows[260]["label"] = None
    write_rows(recipe_file, rows)
    findings, problems, _table = look(recipe_file)
    assert problems[:3] == [
        "d:t, split train: skipped: 4 unknown label ('wern' is not one of the labels of t: rook, wren): "
        "train200.wav, train210.wav, train220.wav ...",
        "d:t, split train: skipped: 1 unknown label ('rok' is not one of the labels of t: rook, wren): train250.wav",
        "d:t, split train: skipped: 1 missing column: train260.wav (template t needs 'label'; it has no value)",
    ]
    assert findings["train"].used == 294
    refuse_many_unusable(findings["train"], 0.05)
    with pytest.raises(
        UserError, match=r"6 of 300 rows cannot be used, more than data\.max_skipped_share .* 4 unk"
    ):
        refuse_many_unusable(findings["train"], 0.01)


def test_a_small_set_is_refused_by_the_share_that_its_run_would_meet(recipe_file):
    rows = [*rows_of("train", 9), *rows_of("test", 2)]
    for number in (1, 4, 7):
        rows[number]["label"] = None
    write_rows(recipe_file, rows)
    findings, _problems, _table = look(recipe_file)
    with pytest.raises(UserError, match=r"3 of 9 rows cannot be used, .* 3 missing column: train1\.wav"):
        refuse_many_unusable(findings["train"], 0.05)
    refuse_many_unusable(findings["train"], 0.34)


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_texts_that_the_decoder_cannot_use_are_listed(recipe_file, chat_tokenizer, has_tokenizer):
    change(recipe_file.parent, "t.yaml", labels=None)
    change(recipe_file.parent, "d.yaml", load={"csv": "rows.csv"})
    rows = [*rows_of("train", 40), *rows_of("test", 2)]
    rows[30]["label"] = "tür"
    rows[32]["label"] = "a<|im_end|>b"
    rows[34]["label"] = "wren " * 30
    text = "audio,label,split,duration\n" + "".join(
        f"{row['audio']},{row['label']},{row['split']},2\n" for row in rows
    )
    (recipe_file.parent / "rows.csv").write_text(text, encoding="latin-1")
    format = ChatFormat(chat_tokenizer, max_text_tokens=100) if has_tokenizer else None
    findings, problems, _table = look(recipe_file, format=format)
    assert problems[0].startswith(
        "d:t, split train: skipped: 1 broken text: train30.wav ('t\\udcfcr' is not valid"
    )
    assert findings["train"].used == (37 if has_tokenizer else 39)
    if has_tokenizer:
        assert "1 special token in text: train32.wav" in problems[1]
        assert "1 text too long: train34.wav" in problems[2]


@pytest.mark.parametrize(("code", "broken"), [(404, 1), (503, 0)])
def test_a_shard_that_is_not_there_counts_by_its_share_as_in_training(recipe_file, code, broken):
    """It comes as one row that cannot be used, but holds a quarter of all; a server that fails may be back later."""
    folder = recipe_file.parent
    with serve_ranges() as serving:
        load = {"webdataset": f"{serving.root}/{{0..3}}.tar"}
        change(folder, "d.yaml", load=load, splits={"train": {}, "test": {}})
        change(folder, "t.yaml", inputs=["n"], target="{{ n }}", labels=None)
        for n in range(4):
            write_tar(folder / f"{n}.tar", range(10 * n, 10 * n + 10))
            serving.files[f"/{n}.tar"] = (folder / f"{n}.tar").read_bytes()
        serving.files["/2.tar"] = b""
        serving.answer = lambda first, last: (
            serving.proper(first, last) if serving.content else (code, {}, b"")
        )
        findings, problems, _ = look(recipe_file)
    VERSIONS.clear()
    train = findings["train"]
    assert (train.read, train.used, train.broken, train.lost_share) == (31, 30, broken, broken / 4)
    url = f"{serving.root}/2.tar: {code}"
    assert problems[0].startswith(f"d:t, split train: skipped: 1 broken shard: {url} ")
    if broken:
        message = (
            r"^dataset d, split train: about 25\.0% of its rows are in broken shards, and 0 of 30 others cannot be used"
            rf", more than data\.max_skipped_share allows \(0\.24\): 1 broken shard: {re.escape(url)} Not Found$"
        )
        with pytest.raises(UserError, match=message):
            refuse_many_unusable(train, 0.24)
    refuse_many_unusable(train, 0.3)


def test_empty_answers_are_listed(recipe_file):
    change(recipe_file.parent, "t.yaml", labels=None)
    (recipe_file.parent / "t.yaml").write_text(
        (recipe_file.parent / "t.yaml").read_text().replace("labels: null\n", "")
    )
    rows = [*rows_of("train", 40), *rows_of("test", 2)]
    rows[30]["label"] = "  "
    write_rows(recipe_file, rows)
    _, problems, _ = look(recipe_file)
    assert problems == ["d:t, split train: skipped: 1 empty answer (template t): train30.wav"]


def test_labels_that_no_row_has_are_named(recipe_file):
    change(recipe_file.parent, "t.yaml", labels=["rook", "wren", "tit", "owl"])
    write_rows(recipe_file, [*rows_of("train", 6), *rows_of("test", 2)])
    _, problems, table = look(recipe_file)
    assert "d:t, split train: 2 of 4 labels do not occur in any row: tit, owl" in problems
    assert "2 of 4" in table


def test_labels_that_differ_in_case_alone_are_named(recipe_file):
    change(recipe_file.parent, "t.yaml", labels=["rook", "wren", "Rook", "WREN "])
    write_rows(recipe_file, [*rows_of("train", 6), *rows_of("test", 2)])
    _, problems, _ = look(recipe_file)
    assert any(
        "split train: labels differ only in upper and lower case: rook, Rook (and 1 more); to "
        "merge them" in each
        for each in problems
    )


def test_labels_that_may_stand_for_none_are_named_and_used(recipe_file):
    """Null and empty labels are skipped by reason; a spelled one is an answer, in a closed set and in an open one."""
    rows = [*rows_of("train", 9), *rows_of("test", 2)]
    for number, label in enumerate(["n/a", "", None, "N/A", "n/a"]):
        rows[number]["label"] = label
    write_rows(recipe_file, rows)
    how = "learned and scored as an answer like any other; if these rows have no label, leave them out: write"
    template = load_yaml(recipe_file.parent / "t.yaml")
    del template["labels"]
    for closed_set in ({"labels": ["rook", "wren", "n/a", "N/A"]}, {}):
        (recipe_file.parent / "t.yaml").write_text(dump_yaml(template | closed_set))
        findings, problems, _ = look(recipe_file)
        assert findings["train"].used == 7
        assert [each for each in problems if "split train" in each and "skipped" in each] == [
            "d:t, split train: skipped: 1 empty answer (template t): train1.wav",
            "d:t, split train: skipped: 1 missing column: train2.wav (template t needs 'label'; it has no value)",
        ]
        assert (
            f"d:t, split train: `label` is 'n/a' in 2 rows, 'N/A' in 1 row, {how} "
            "`keep: \"label not in ['n/a', 'N/A']\"` under each split of the card"
        ) in problems
        assert not any("split test: `label`" in each for each in problems)


def test_transcripts_that_are_a_dash_are_texts(recipe_file):
    content = load_yaml(recipe_file.parent / "t.yaml") | {"scoring": {"metric": "wer"}}
    del content["labels"]
    (recipe_file.parent / "t.yaml").write_text(dump_yaml(content))
    write_rows(recipe_file, [*rows_of("train", 6, label="none"), *rows_of("test", 2)])
    assert not any("like any other" in each for each in look(recipe_file)[1])


@pytest.mark.parametrize(("streams", "times"), [(4, 16), (1, 4), (0, 0)])
def test_pools_that_hold_a_row_several_times_are_noted(recipe_file, streams, times):
    write_rows(recipe_file, [*rows_of("train", 10), *rows_of("test", 2)])
    recipe = load_recipe(str(recipe_file))
    with WorkProgress(Console(file=io.StringIO()), "rows") as progress:
        findings = {id(e): read_all_rows(e, progress) for e in (*recipe.train, *recipe.evaluate)}
    problems = describe_problems(recipe, findings, 100.0, "data.max_seconds", 40, streams)
    noted = [each for each in problems if "data.pool" in each]
    if not times:
        assert noted == []
        return
    assert noted == [
        f"d:t, split train: with data.pool 40 and data.streams {streams}, a row is drawn about "
        f"{times} times before clips are sorted by length, so copies of a clip end up in one "
        f"micro-batch; set data.pool to {40 // times}"
    ]


def test_ids_and_clips_that_come_twice(recipe_file):
    rows = [*rows_of("train", 10), *rows_of("test", 2)]
    for number, row in enumerate(rows):
        row["utt_id"] = f"u{number}"
    rows[5]["utt_id"] = "u1"
    rows.append({**rows[3], "utt_id": "u3b"})  # the same clip and answer
    rows.append({**rows[4], "label": "wren", "utt_id": "u4b"})  # two answers to one clip are two rows
    write_rows(recipe_file, rows)
    assert look(recipe_file)[1] == [
        "d:t, split train: 1 rows repeat the `utt_id` of an earlier row: u1",
        "d:t, split train: 1 rows repeat the clip and the answer of an earlier row: "
        f"{recipe_file.parent}/train3.wav",
    ]


def test_clips_that_are_trained_and_tested_on(recipe_file):
    rows = [*rows_of("train", 10), *rows_of("test", 4)]
    rows[-1]["audio"] = rows[-2]["audio"] = "train3.wav"
    rows[-2]["label"] = "wren"
    write_rows(recipe_file, rows[:-1])
    assert look(recipe_file)[1] == [
        "d:t, split test: 1 of 3 clips are also trained on in d:t, split train, so scores on them "
        f"mean little: {recipe_file.parent}/train3.wav"
    ]


def test_segments_of_one_recording_are_different_clips(recipe_file):
    rows = [
        {"audio": "long.wav", "label": "rook", "split": split, "start": start, "end": start + 1.0}
        for split, start in (("train", 0.0), ("train", 1.0), ("test", 2.0))
    ]
    write_rows(recipe_file, rows)
    assert not [text for text in look(recipe_file)[1] if "clip" in text]


def write_tables(folder, names):
    for split, clips in names.items():
        table = {
            "audio": [{"bytes": clip_bytes(n), "path": name} for n, name in enumerate(clips)],
            "label": [("rook", "wren")[int(name[0]) % 2] for name in clips],
            "id": [str(n) for n in range(len(clips))],
        }
        pq.write_table(pyarrow.table(table), folder / f"{split}.parquet")
    change(folder, "d.yaml", load={"parquet": "*.parquet"}, splits={"train": {}, "test": {"name": "test"}})


def test_names_in_tables_mean_a_clip_where_their_rows_are_alike(recipe_file):
    write_tables(recipe_file.parent, {"train": ["0.wav", "1.wav", "2.wav"], "test": ["1.wav", "4.wav"]})
    assert [text for text in look(recipe_file)[1] if "trained on" in text] == [
        "d:t, split test: 1 of 2 clips are also trained on in d:t, split train, so scores on them "
        f"mean little: {recipe_file.parent}/1.wav"
    ]


def test_ids_that_begin_anew_in_every_split_mean_nothing(recipe_file):
    write_tables(recipe_file.parent, {"train": ["0.wav", "1.wav"], "test": ["3.wav", "4.wav"]})
    assert look(recipe_file)[1] == []


def test_clips_of_tables_are_not_read_for_their_texts(recipe_file, monkeypatch):
    write_tables(recipe_file.parent, {"train": ["0.wav", "1.wav"], "test": ["3.wav"]})
    read = []
    monkeypatch.setattr(
        "uniaudio.data.sources.parquet.memoryview", lambda value: read.append(value), raising=False
    )
    monkeypatch.setattr("uniaudio.checks.all_rows.sample_clip_lengths", lambda source: [1.0])
    findings, _, _ = look(recipe_file)
    assert findings["train"].used == 2
    assert read == []


def test_clips_that_are_too_long_are_reported(recipe_file):
    rows = [*rows_of("train", 10), *rows_of("test", 2)]
    rows[1]["duration"] = 40.0
    write_rows(recipe_file, rows)
    _findings, problems, table = look(recipe_file, longest=30.0)
    assert problems == [
        "d:t, split train: 10.0% of the clips are longer than 30 s (data.max_seconds) and are skipped; see `long_clips`"
    ]
    assert "1-5 s 90%, 30-60 s 10%" in table


def test_of_many_rows_a_spread_sample_is_read_and_stated(recipe_file, monkeypatch):
    monkeypatch.setattr(text_rows, "MOST_ROWS", 100)
    rows = [*rows_of("train", 1000), *rows_of("test", 2)]
    rows[990]["label"] = "tit"
    write_rows(recipe_file, rows)
    findings, problems, table = look(recipe_file)
    assert findings["train"].read == 100
    assert "d:t, split train: only 100 rows, spread over 1,000 are read" in problems
    assert any("'tit'" in text for text in problems)
    assert "100 *" in table


def test_shards_are_read_in_a_spread_order():
    assert text_rows.spread_over(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert sorted(text_rows.spread_over(13)) == list(range(13))
    assert text_rows.spread_over(1) == [0]
