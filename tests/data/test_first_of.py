"""Columns with alternatives, lists as rows of their own, and splits that state their files."""

import json
import random
import tarfile

import pytest
from helpers.files import add, card, clip_bytes, compress, write_tar

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sampler import Mark, ShardCursor
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.paths import expand_braces
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError

CAPTIONS = [["a", "b", "c"], "d", ["e"], [], ["f", None, "g"]]
ANSWER = {"answer": {"first_of": "labels;caption", "each": True}}


def write_captions(folder, captions=CAPTIONS):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for n, value in enumerate(captions):
            add(tar, f"{n}.wav", clip_bytes(n))
            add(tar, f"{n}.json", json.dumps({"n": n, "caption": value}).encode())
    return "a.tar"


def answers(opened, rows):
    """Keys and answers of rows, as a template that takes `answer` sees them."""
    return [
        (row.key, value if isinstance(value := opened.fields(row.columns)["answer"], str) else value.reason)
        for row in rows
    ]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"label": "dog", "labels": "cat"}, "dog"),
        ({"label": None, "labels": "cat"}, "cat"),
        ({"label": float("nan"), "labels": 3}, "3"),
        ({"labels": 0.5}, "0.5"),
        ({"labels": True}, "True"),
        ({"label": [], "labels": ["a", "b"]}, ["a", "b"]),
        ({"label": {"x": 1}, "labels": ""}, ""),
    ],
)
def test_the_first_column_with_a_value_counts(tmp_path, row, answer):
    opened = card(tmp_path, {"jsonl": "."}, columns={"answer": {"first_of": ["label", "labels"]}})
    assert opened.fields(row)["answer"] == answer


def test_without_any_of_them_the_row_says_so(tmp_path):
    opened = card(tmp_path, {"jsonl": "."}, columns={"answer": {"first_of": "label;labels"}})
    problem = opened.fields({"text": "x"})["answer"]
    assert isinstance(problem, RowError)
    assert str(problem).endswith("columns.answer needs one of label, labels; columns: text")


EXPECTED = [
    ("0", "a"), ("0#2", "b"), ("0#3", "c"), ("1", "d"), ("2", "e"), ("3", "missing column"), ("4", "f"), ("4#2", "g"),
]  # fmt: skip


def test_each_caption_of_a_tar_is_a_row(tmp_path):
    opened = card(tmp_path, {"webdataset": write_captions(tmp_path)}, columns=ANSWER)
    source = open_source(opened, "train")
    assert source.size is None
    assert [(key.removeprefix("a/"), text) for key, text in answers(opened, source.rows())] == EXPECTED


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_each_caption_of_a_manifest_is_a_row(tmp_path, kind):
    rows = [{"audio": str(n), "labels": None, "caption": value} for n, value in enumerate(CAPTIONS)]
    if kind == "jsonl":
        (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:  # lists as pandas writes them, and an empty cell
        lines = [f'{row["audio"]},,"{row["caption"]}"' for row in rows]
        (tmp_path / "manifest.csv").write_text("\n".join(["audio,labels,caption", *lines]))
    opened = card(tmp_path, {kind: "."}, columns=ANSWER)
    source = open_source(opened, "train")
    read = answers(opened, source.rows())
    assert source.size == len(EXPECTED)
    assert [pair for pair in read if pair[0] != "3"] == [pair for pair in EXPECTED if pair[0] != "3"]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_stream_goes_on_within_the_captions_of_a_clip(tmp_path, size, streams):
    """Whatever the window and wherever a run stopped: the rows that follow are those that would have followed."""
    opened = card(tmp_path, {"webdataset": write_captions(tmp_path)}, columns=ANSWER)

    def cursor(stream, mark=Mark()):
        return ShardCursor(open_source(opened, "train"), "set", 7, stream, streams, size, 60, mark)

    keys = []
    for stream in range(streams):
        whole = cursor(stream)
        rows, marks = [], []
        for _ in range(20):
            marks.append(whole.mark)
            rows.append(whole.take().key)
        keys += rows
        for start in random.Random(0).sample(range(20), 6):
            again = cursor(stream, marks[start])
            assert [again.take().key for _ in range(20 - start)] == rows[start:]
    assert {key.removeprefix("a/") for key in keys} == {key for key, _ in EXPECTED}


def test_a_packed_set_has_its_captions_once(tmp_path):
    from uniaudio.commands.data_pack import pack_recipe

    card(tmp_path, {"webdataset": write_captions(tmp_path, CAPTIONS[:3])}, columns=ANSWER)
    template = {
        "task": "q",
        "domain": "sound",
        "inputs": ["answer"],
        "prompts": ["<audio>?"],
        "target": "{{ answer }}",
    }
    (tmp_path / "q.yaml").write_text(dump_yaml(template))
    line = {"dataset": "set", "template": str(tmp_path / "q.yaml")}
    (tmp_path / "r.yaml").write_text(dump_yaml({"recipe": "r", "train": [line]}))
    pack_recipe(str(tmp_path / "r.yaml"), tmp_path / "packed", 64)
    (entry,) = load_recipe(str(tmp_path / "packed" / "r.yaml")).train
    rows = list(open_source(entry.dataset, "train").rows())
    assert [entry.render_question(row, entry.templates[0]).answer for row in rows] == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]


def test_files_are_the_split_whatever_their_names_say(tmp_path):
    """The challenge's test files of CREMA-D and ESC-50: named after another split, and after none."""
    for name in ("test/valid_cremad_0", "test/esc50_fold_5", "train/esc50_fold_1", "train/esc50_fold_2"):
        write_tar(tmp_path / "data" / f"{name}.tar", [1])
    compress(tmp_path / "data" / "train" / "esc50_fold_2.tar", ".gz")
    splits = {
        "train": {"files": ["train/esc50_fold_1.tar", "train/esc50_fold_{2..2}.tar.gz"]},
        "test": {"name": "test", "files": "test/*.tar"},
    }
    opened = card(tmp_path, {"webdataset": "data/"}, splits=splits)
    for split, files in (
        ("train", ["fold_1.tar", "fold_2.tar.gz"]),
        ("test", ["fold_5.tar", "valid_cremad_0.tar"]),
    ):
        source = open_source(opened, split)
        assert [
            place.removeprefix(str(tmp_path)).rpartition("esc50_")[2].rpartition("/")[2]
            for place in source.shards
        ] == files
        assert all(isinstance(row, Row) for row in source.rows())


def test_files_need_one_place_of_shards(tmp_path):
    with pytest.raises(
        UserError, match="`files` need a single place of kind parquet or webdataset under `load`"
    ):
        card(tmp_path, {"jsonl": "data"}, splits={"train": {"files": "a.jsonl"}})
    with pytest.raises(UserError, match="`each` on a and b, but only one column can turn a row into several"):
        card(tmp_path, {"jsonl": "data"}, columns={n: {"first_of": n, "each": True} for n in "ab"})


@pytest.mark.parametrize(
    ("text", "first", "last", "count"),
    [
        ("a{00..51}", "a00", "a51", 52),
        ("a_000{00..193}", "a_000000", "a_000193", 194),
        ("a{1..12}", "a1", "a12", 12),
        ("a{0..3}", "a0", "a3", 4),
    ],
)
def test_ranges_are_written_as_shells_write_them(text, first, last, count):
    places = expand_braces(text)
    assert (places[0], places[-1], len(places)) == (first, last, count)
