"""Rows of large manifests: the same as objects would be, and in memory once for all processes."""

import math
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.data.sources import manifest, row_table
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.row_table import RowTable, share_listing, share_rows, write_table
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError

BROKEN = RowError("broken metadata", "line 3: not JSON")
BROKEN.key = "line 3"
ROWS = [
    ("a.wav", {"audio": "a.wav", "label": "dog", "n": 2**80, "x": -0.1, "tags": ["é", None, True]}),
    ("b.wav#2", {"audio": "b.wav", "label": "half a \udce9", "nested": {"path": "p", "offset": 3}}),
    ("line 3", BROKEN),
    ("c", {"audio": "c", "label": ""}),
]


def test_rows_come_back_as_they_were(tmp_path):
    table = write_table(ROWS, tmp_path)
    assert len(table) == 4
    assert [table[0], table[1], table[-1]] == [ROWS[0], ROWS[1], ROWS[3]]
    assert list(table[0][1]) == ["audio", "label", "n", "x", "tags"]
    assert table[:2] == ROWS[:2]
    key, problem = table[2]
    assert (key, str(problem), problem.reason, problem.detail, problem.key) == (
        "line 3",
        str(BROKEN),
        "broken metadata",
        "line 3: not JSON",
        "line 3",
    )
    with pytest.raises(IndexError):
        table[4]
    again = pickle.loads(pickle.dumps(table))
    assert again[1] == ROWS[1]


def test_what_cannot_be_encoded_stays_an_object(tmp_path):
    other = ("k", {"audio": tmp_path, "x": math.nan})
    table = write_table([ROWS[0], other], tmp_path)
    assert table[1] is other
    assert table[0] == ROWS[0]


def test_the_same_rows_are_one_file_and_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(row_table, "SHARED_ROWS", 3)
    assert share_rows(ROWS[:2], tmp_path) == ROWS[:2]
    assert not list(tmp_path.iterdir())
    first = share_rows(ROWS, tmp_path)
    second = share_rows(list(ROWS), tmp_path)
    assert isinstance(first, RowTable)
    assert [file.name for file in tmp_path.iterdir()] == [first.path.name] == [second.path.name]
    old = time.time() - row_table.KEPT_SECONDS - 5
    os.utime(first.path, (old, old))
    other = share_rows(ROWS[1:], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [other.path.name]
    assert first[0] == ROWS[0]  # mapped before


@pytest.fixture
def listing(tmp_path, monkeypatch):
    """A function that lists the rows of a file; it counts how often they are made."""
    monkeypatch.setattr(row_table, "SHARED_ROWS", 3)
    monkeypatch.setattr(row_table, "SHARED_BYTES", 1)
    file = tmp_path / "manifest.jsonl"
    file.write_text("rows")

    def share(*facts):
        def build():
            share.builds += 1
            time.sleep(0.1)
            return list(ROWS)

        return share_listing(file, facts, build, tmp_path / "rows")

    share.builds, share.file = 0, file
    return share


def test_of_several_processes_one_reads_a_large_file(listing):
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(listing, ["train"] * 4))
    assert listing.builds == 1
    assert len({table.path for table in tables}) == 1
    assert all(table[:2] == ROWS[:2] for table in tables)


def test_a_listing_is_made_anew_when_anything_that_decides_it_is_other(listing, monkeypatch):
    first = listing("train")
    listing("test")
    assert listing.builds == 2
    listing.file.write_text("other rows")
    listing("train")
    assert listing.builds == 3
    monkeypatch.setattr(row_table, "hash_code", lambda: "another version")
    listing("train")
    assert listing.builds == 4
    first.path.unlink()
    assert listing("train")[3] == ROWS[3]
    assert listing.builds == 5
    listing("train")
    assert listing.builds == 5


def test_a_large_manifest_is_parsed_once(tone_run, monkeypatch, tmp_path):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_table, "SHARED_ROWS", 1)
    monkeypatch.setattr(row_table, "SHARED_BYTES", 1)
    card = load_card(str(tone_run.parent / "tones.yaml"))
    first = open_source(card, "train")
    tests = {row.key for row in open_source(card, "test").rows()}
    monkeypatch.setattr(manifest, "read_jsonl", lambda path: pytest.fail("read once more"))
    again = open_source(card, "train")
    label = first.fingerprint(["label"])
    assert first.fingerprint([]) != label
    monkeypatch.setattr(ListedSource, "hash_columns", lambda *given: pytest.fail("hashed once more"))
    assert again.fingerprint(["label"]) == label
    assert [row.key for row in again.rows()] == [row.key for row in first.rows()]
    assert not tests & {row.key for row in again.rows()}


def test_a_large_table_under_another_suffix_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_table, "SHARED_ROWS", 1)
    monkeypatch.setattr(row_table, "SHARED_BYTES", 1)
    texts = []
    for suffix in ("tsv", "csv"):
        (tmp_path / f"table.{suffix}").write_text('audio\ttext\na.wav\t"Hello"\n')
        content = {
            "dataset": "d",
            "load": {"csv": f"table.{suffix}"},
            "license": "x",
            "splits": {"train": {}},
        }
        (tmp_path / "d.yaml").write_text(dump_yaml(content))
        texts.append(open_source(load_card(str(tmp_path / "d.yaml")), "train").row(0).columns["text"])
    assert texts == ['"Hello"', "Hello"]


def test_old_files_of_another_user_stay_and_hinder_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(row_table, "SHARED_ROWS", 1)
    theirs = tmp_path / "theirs.rows"
    theirs.write_bytes(b"x")
    os.utime(theirs, (0, 0))
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == theirs:
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert isinstance(share_rows(ROWS, tmp_path), RowTable)
    assert theirs.exists()


def test_a_folder_that_cannot_be_written_leaves_the_rows_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(row_table, "SHARED_ROWS", 3)
    (tmp_path / "file").touch()
    assert share_rows(ROWS, tmp_path / "file" / "rows") is ROWS


def test_a_large_manifest_is_read_as_a_small_one(tone_run, monkeypatch, tmp_path):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    card = load_card(str(tone_run.parent / "tones.yaml"))
    plain = open_source(card, "train")
    monkeypatch.setattr(row_table, "SHARED_ROWS", 10)
    shared = open_source(card, "train")
    assert isinstance(shared.listed, RowTable)
    assert shared.fingerprint(["label"]) == plain.fingerprint(["label"])
    assert [row.key for row in shared.rows()] == [row.key for row in plain.rows()]
    assert shared.row(7) == plain.row(7)


MEASURE = """
import sys
from pathlib import Path
from uniaudio.data.sources.row_table import write_table

rows = ((f"clips/{i:09d}.flac", {"audio": f"clips/{i:09d}.flac", "text": f"words of row {i} " * 4, "duration": i / 7})
        for i in range(200_000))
table = write_table(rows, Path(sys.argv[1]))
total = sum(len(table[i][1]["text"]) for i in range(0, len(table), 100))
facts = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup") if ":" in line)
print(int(facts["Anonymous"].split()[0]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads Linux's figures of memory")
def test_many_rows_take_next_to_no_private_memory(tmp_path):
    small = MEASURE.replace("200_000", "200")
    sizes = [
        int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path)])) for code in (small, MEASURE)
    ]
    assert sizes[1] - sizes[0] < 10_000  # KiB; as objects they are 140,000
