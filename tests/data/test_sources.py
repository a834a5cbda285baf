"""Manifests, folders and tables: all rows once, the rest from any place, and what is said about bad input."""

import bz2
import codecs
import gzip
import json
import lzma
import math
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.files import card, clip_bytes, compress, numbers, write_parquet, write_tar
from helpers.resuming import check_places

from uniaudio.data.audio import decode
from uniaudio.data.field_values import has_no_value
from uniaudio.data.sources.audio_columns import parse_audio, parse_seconds
from uniaudio.data.sources.base import BrokenShardError, Place, Row
from uniaudio.data.sources.in_memory import make_unique
from uniaudio.data.sources.paths import expand_braces
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError


@pytest.fixture
def parquet(tmp_path):
    """Ten rows in two files with row groups of three, audio embedded as the Hub has it."""
    write_parquet(tmp_path / "data")
    return tmp_path


def test_parquet_shards_are_row_groups(parquet):
    source = open_source(card(parquet, {"parquet": "data"}), "train")
    assert source.size == 10
    assert len(source.shards) == 4  # 3 + 2 rows in each file
    assert numbers(source.rows()) == [(i, i) for i in range(10)]
    assert [row.key for row in source.rows()][4:7] == [
        "train-00000-of-00002/4",
        "train-00001-of-00002/0",
        "train-00001-of-00002/1",
    ]
    assert check_places(source) == [3, 2, 3, 2]


def test_parquet_files_with_the_same_name_give_different_keys(tmp_path):
    for part in ("de", "en"):
        write_parquet(tmp_path / "data" / part, files=1, rows=1)
    rows = open_source(card(tmp_path, {"parquet": "data"}), "train").rows()
    assert [row.key for row in rows] == ["de/train-00000-of-00001/0", "en/train-00000-of-00001/0"]


def test_only_the_clips_that_the_card_names_are_read(tmp_path):
    clips = {name: {"bytes": clip_bytes(value), "path": None} for name, value in (("one", 1), ("two", 2))}
    table = pyarrow.Table.from_pylist([{**clips, "n": 2}, {"one": None, "two": None, "n": 3}])
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = open_source(card(tmp_path, {"parquet": "a.parquet"}, audio="two"), "train").rows()
    assert dict(first.columns) == {"n": 2}
    assert numbers([first]) == [(2, 2)]
    assert second.reason == "missing column"
    pair = open_source(card(tmp_path, {"parquet": "a.parquet"}, audio=["two", "one"]), "train")
    assert [decode(ref.source, 1, "x")[0] for ref in next(pair.rows()).audio] == [2, 1]
    wrong = open_source(card(tmp_path, {"parquet": "a.parquet"}, audio="three"), "train")
    with pytest.raises(UserError, match=r"a\.parquet has no audio column 'three'; columns: one, two, n"):
        next(wrong.rows())


def test_only_the_row_groups_from_a_place_on_are_read(parquet, monkeypatch):
    pq.write_table(pq.read_table(parquet / "data"), parquet / "all.parquet", row_group_size=2)
    source = open_source(card(parquet, {"parquet": f"file://{parquet}/all.parquet"}), "train")
    assert (len(source.shards), source.size) == (1, None)  # not looked at before its turn, as any URL
    assert check_places(source) == [10]
    read = []
    plain = pq.ParquetFile.iter_batches

    def watched(self, size, row_groups, columns):
        read.append(row_groups)
        return plain(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert numbers(row for row, _ in source.read(0, Place(5))) == [(i, i) for i in range(5, 10)]
    assert read == [[2], [3], [4]]


def test_keep_is_applied_before_audio_is_read(parquet, monkeypatch):
    odd = {"train": {"keep": "label == 'odd'"}}
    source = open_source(card(parquet, {"parquet": "data"}, splits=odd), "train")
    assert source.size is None
    assert numbers(source.rows()) == [(i, i) for i in (1, 3, 5, 7, 9)]
    assert check_places(source) == [3, 2, 3, 2]  # rows that are not kept count as well
    wrong = card(parquet, {"parquet": "data"}, splits={"train": {"keep": "fold == 1"}})
    with pytest.raises(UserError, match="the rows have no column 'fold'"):
        next(open_source(wrong, "train").rows())

    def refuse(*args, **options):
        raise AssertionError("audio was read")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refuse)
    none = {"train": {"keep": "n > 99"}}
    assert list(open_source(card(parquet, {"parquet": "data"}, splits=none), "train").rows()) == []


def test_a_damaged_parquet_file_is_a_broken_shard_and_all_damaged_a_mistake(parquet):
    first, second = sorted((parquet / "data").iterdir())
    first.write_bytes(first.read_bytes()[:-20])
    source = open_source(card(parquet, {"parquet": "data"}), "train")
    rows = list(source.rows())
    assert isinstance(rows[0], RowError)
    assert rows[0].reason == "broken shard"
    assert numbers(rows[1:]) == [(i, i) for i in range(5, 10)]
    second.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is not a Parquet file"):
        open_source(card(parquet, {"parquet": "data"}), "train")


def test_a_library_that_gives_no_reason_is_named_by_its_exception(parquet, monkeypatch):
    def fail(place):
        raise OSError

    monkeypatch.setattr(pq, "read_metadata", fail)
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is not a Parquet file \(OSError\)"):
        open_source(card(parquet, {"parquet": "data"}), "train")


def test_a_damaged_page_breaks_its_row_group_alone(parquet):
    first = min((parquet / "data").iterdir())
    page = pq.read_metadata(first).row_group(1).column(2).data_page_offset
    content = bytearray(first.read_bytes())
    content[page : page + 40] = b"\xff" * 40
    first.write_bytes(content)
    source = open_source(card(parquet, {"parquet": "data"}), "train")
    with pytest.raises(BrokenShardError, match=r"train-00000-of-00002\.parquet: "):
        list(source.read(1, Place()))
    good = [row for row in source.rows() if isinstance(row, Row)]
    assert numbers(good) == [(i, i) for i in (0, 1, 2, 5, 6, 7, 8, 9)]


def test_a_split_that_is_not_there_is_never_all_rows(parquet):
    splits = {"train": {}, "test": {"name": "test"}}
    (parquet / "rows.jsonl").write_text('{"audio": "a.wav"}\n')
    for load in ({"parquet": "data"}, {"jsonl": "rows.jsonl"}, {"audiofolder": "data"}, {"kaldi": "data"}):
        with pytest.raises(UserError, match=r"splits\.test: \S+ has no split 'test'; leave out `name`"):
            open_source(card(parquet, load, splits=splits), "test")
    (parquet / "data" / "test.jsonl").write_text('{"audio": "b.wav"}\n')
    source = open_source(card(parquet, {"jsonl": "data"}, splits=splits), "test")
    assert source.row(0).key == "b.wav"


def test_audiofolder_labels_come_from_folders_and_metadata(tmp_path):
    for label in ("dog", "cat"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "clips" / label / "1.flac", np.zeros(1600, np.int16), 16000)
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,age\ndog/1.flac,3\n")
    source = open_source(card(tmp_path, {"audiofolder": "clips"}), "train")
    rows = [source.row(i) for i in range(source.size)]
    assert [(row.columns["label"], row.columns.get("age")) for row in rows] == [("cat", None), ("dog", "3")]
    assert rows[0].audio[0].read_seconds() == pytest.approx(0.1)
    (tmp_path / "clips" / "cat" / "._1.flac").write_bytes(b"what some systems add")
    lines = [("dog/1.flac", "a"), ("gone.flac", "b"), ("dog/1.flac", "c")]
    (tmp_path / "clips" / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in lines)
    )
    source = open_source(card(tmp_path, {"audiofolder": "clips"}), "train")
    assert [(row.key, row.columns.get("text")) for row in source.rows()] == [
        ("cat/1.flac", None),
        ("dog/1.flac", "a"),
        ("dog/1.flac#2", "c"),
        ("gone.flac", "b"),
    ]
    with pytest.raises(RowError, match=r"missing file: \S+gone\.flac"):
        source.row(3).audio[0].read_seconds()


def test_manifests_name_files_beside_them_anywhere_in_tars_and_parts_of_files(tmp_path):
    folder = tmp_path / "Töne 1"
    folder.mkdir()
    (folder / "ä.wav").write_bytes(clip_bytes(1))
    (tmp_path / "far.wav").write_bytes(clip_bytes(2))
    write_tar(folder / "some.tar", [3])
    with tarfile.open(folder / "some.tar") as tar:
        member = tar.getmembers()[0]
    part = {"path": "some.tar", "offset": member.offset_data, "size": member.size}
    lines = [
        {"audio": "ä.wav", "n": 1},
        {"audio": str(tmp_path / "far.wav"), "n": 2},
        {"audio": f"some.tar::{'ü' * 60}0003.flac", "n": 3},
        {"audio": part, "n": 3},
        {"audio": "ä.wav", "n": 1},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_source(card(tmp_path, {"jsonl": "Töne 1"}), "train")
    assert numbers(source.rows()) == [(1, 1), (2, 2), (3, 3), (3, 3), (1, 1)]
    assert [row.key for row in source.rows()][0::4] == ["ä.wav", "ä.wav#2"]
    (folder / "manifest.tsv").write_text("audio\tn\nä.wav\t1\nsome.tar::gone.flac\t7\n")
    rows = list(open_source(card(tmp_path, {"csv": "Töne 1"}), "train").rows())
    assert rows[0].columns == {"audio": "ä.wav", "n": "1"}
    assert rows[1].reason == "missing file"
    (folder / "manifest.tsv").write_text('audio\tn\nä.wav\t"Yes," he said.\n')
    (row,) = open_source(card(tmp_path, {"csv": "Töne 1"}), "train").rows()
    assert row.columns["n"] == '"Yes," he said.'
    (folder / "rows.csv").write_text('audio,duration,n\nä.wav,2.5,"Yes, ""he"" said."\nä.wav,,\n')
    first, second = open_source(card(tmp_path, {"csv": "Töne 1/rows.csv"}), "train").rows()
    assert (first.audio[0].read_seconds(), first.columns["n"]) == (2.5, 'Yes, "he" said.')
    assert second.audio[0].read_seconds() == pytest.approx(0.1)
    (folder / "manifest.tsv").write_text("audio\tn\nä.wav\t1\t2\n")
    with pytest.raises(UserError, match=r"none of 1 rows .*line 2: has more fields than the header's 2"):
        open_source(card(tmp_path, {"csv": "Töne 1"}), "train")


def test_other_spellings_of_a_path_are_the_same_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.wav").write_bytes(clip_bytes(1))
    write_tar(tmp_path / "dotted.tar", [1, 2], folder="./sub/")
    write_tar(tmp_path / "plain.tar", [4], folder="sub/")
    lines = [
        {"audio": "sub\\a.wav", "n": 1},
        {"audio": "sub/a.WAV", "n": 1},
        {"audio": "dotted.tar::sub/0001.flac", "n": 1},
        {"audio": "dotted.tar::./sub/0002.flac", "n": 2},
        {"audio": "plain.tar::./sub/0004.flac", "n": 4},
        {"audio": "sub\\b.wav", "n": 5},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    *rows, last = open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").rows()
    assert numbers(rows) == [(1, 1), (1, 1), (1, 1), (2, 2), (4, 4)]
    with pytest.raises(RowError, match=r"missing file: \S+b\.wav"):
        last.audio[0].read_seconds()


def test_line_ends_in_a_transcript_and_marks_at_the_beginning_of_a_file(tmp_path):
    text = "a\u2028b\x85c"
    lines = [json.dumps({"audio": "a.wav", "text": text}, ensure_ascii=False) for _ in range(2)]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\r\n".join(lines), newline="")
    source = open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")
    assert [row.columns["text"] for row in source.rows()] == [text, text]


def test_keys_that_come_again_stay_apart():
    assert make_unique(["a", "a", "a#2", "b", "a"]) == ["a", "a#2", "a#2#2", "b", "a#3"]


@pytest.fixture
def kaldi(tmp_path):
    folder = tmp_path / "kaldi"
    folder.mkdir()
    ramp = np.repeat(np.arange(10, dtype=np.int16) * 100, 1600)  # a tenth of a second at every level
    soundfile.write(folder / "long.flac", ramp, 16000)
    (folder / "wav.scp").write_text("rec1 long.flac\n")
    (folder / "segments").write_text("u1 rec1 0.2 0.3\nu2 rec1 0.5 1.0\nu3 rec1 0.5 4.0\n")
    (folder / "text").write_text("u1 two words\nu2\n")
    (folder / "utt2spk").write_text("u1 anna\nu2 bert\n")
    (folder / "utt2lang").write_text("u1 de\n")
    return tmp_path


def test_kaldi_folders(kaldi):
    source = open_source(card(kaldi, {"kaldi": "kaldi"}), "train")
    first, second, third = source.rows()
    assert [first.columns[c] for c in ("id", "recording", "text", "speaker", "lang")] == [
        "u1", "rec1", "two words", "anna", "de",
    ]  # fmt: skip
    ref = first.audio[0]
    samples = decode(ref.source, 1.0, "u1", ref.span)
    assert ref.read_seconds() == pytest.approx(0.1)
    assert samples.tolist() == [200] * 1600
    assert len(decode(second.audio[0].source, 0.6, "u2", second.audio[0].span)) == 8000
    with pytest.raises(RowError, match=r"span outside of the recording: u3: 0\.5 to 4 s of 1\.00 s"):
        decode(third.audio[0].source, 10, "u3", third.audio[0].span)
    assert "speaker" not in third.columns


def test_kaldi_folders_without_segments(kaldi):
    (kaldi / "kaldi" / "segments").unlink()
    (kaldi / "kaldi" / "text").write_text("rec1\tone  two\n")
    (kaldi / "kaldi" / "wav.scp").write_text("rec1\tlong.flac\nrec2 gone away.flac\n")
    first, second = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
    assert (first.key, first.columns["text"], first.audio[0].read_seconds()) == ("rec1", "one  two", 1.0)
    with pytest.raises(RowError, match=r"missing file: .*gone away\.flac"):
        second.audio[0].read_seconds()


def test_a_segment_that_ends_before_it_begins_is_a_bad_row(kaldi):
    (kaldi / "kaldi" / "segments").write_text("u1 rec1 0.3 0.2\nu2 rec1 0.5 1.0\n")
    first, second = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
    assert (first.reason, second.key) == ("empty audio", "u2")


def test_a_segment_without_an_end_is_the_rest_of_the_recording(kaldi):
    (kaldi / "kaldi" / "segments").write_text("u1 rec1 0.3 -1\nu2 rec1 9 -1\n")
    whole = soundfile.info(kaldi / "kaldi" / "long.flac").duration
    first, second = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
    assert first.audio[0].read_seconds() == pytest.approx(whole - 0.3)
    assert len(first.audio[0].decode(30)) == round((whole - 0.3) * 16000)
    assert second.reason == "empty audio"


BAD_KALDI_LINES = pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("wav.scp", "rec1 sox long.flac -t wav - |\n", r"wav\.scp: line 1: rec1 is a command"),
        ("wav.scp", "rec1\n", r"wav\.scp: line 1: needs at least 2 words"),
        ("segments", "u1 rec2 0 1\n", r"segments: line 1: wav\.scp has no recording 'rec2'"),
        ("segments", "u1 rec1 a b\n", r"segments: line 1: times must be seconds"),
        ("segments", "u1 rec1 0 nan\n", r"segments: line 1: times must be seconds, got 0 nan"),
        ("segments", "u1 rec1 0 1 1\n", r"segments: line 1: names a channel"),
        ("segments", "u1 rec1 0\n", r"segments: line 1: needs at least 4 words"),
    ],
)


@BAD_KALDI_LINES
def test_kaldi_folders_without_a_usable_line_are_mistakes(kaldi, file, text, message):
    (kaldi / "kaldi" / file).write_text(text)
    with pytest.raises(UserError, match=rf"none of \d rows .* can be read \(broken metadata: .*{message}"):
        open_source(card(kaldi, {"kaldi": "kaldi"}), "train")


@BAD_KALDI_LINES
def test_a_bad_line_of_a_kaldi_file_costs_its_utterances_alone(kaldi, file, text, message):
    (kaldi / "kaldi" / "wav.scp").write_text("rec1 long.flac\nrec9 long.flac\n")
    (kaldi / "kaldi" / "segments").write_text("u1 rec1 0.2 0.3\nu9 rec9 0.5 1.0\n")
    good = {"wav.scp": "rec9 long.flac\n", "segments": "u9 rec9 0.5 1.0\n"}[file]
    (kaldi / "kaldi" / file).write_text(text + good)
    bad, row = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
    assert (bad.key, bad.reason, row.key) == ("u1", "broken metadata", "u9")
    with pytest.raises(RowError, match=message):
        raise bad
    (kaldi / "kaldi" / "segments").unlink()
    if file == "wav.scp":
        bad, row = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
        assert (bad.key, bad.reason, row.key) == ("rec1", "broken metadata", "rec9")


def test_a_name_that_comes_again_in_a_kaldi_file_is_a_bad_row(kaldi):
    (kaldi / "kaldi" / "wav.scp").write_text("rec1 long.flac\nrec1 b.flac\n")
    rows = list(open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows())
    assert [row.key for row in rows] == ["rec1", "u1", "u2", "u3"]
    assert "wav.scp: line 2: 'rec1' is already in an earlier line" in str(rows[0])
    (kaldi / "kaldi" / "segments").unlink()
    first, again = open_source(card(kaldi, {"kaldi": "kaldi"}), "train").rows()
    assert (first.columns["path"], again.key, again.reason) == ("long.flac", "rec1#2", "broken metadata")


def test_a_bad_line_of_a_column_of_kaldi_concerns_those_who_use_the_column(kaldi):
    (kaldi / "kaldi" / "utt2spk").write_text("u1 anna\nu2\nu3 carl\n")
    (kaldi / "kaldi" / "text").write_text("u1 one\nu2 two\nu1 other\n")
    data = card(kaldi, {"kaldi": "kaldi"}, columns={"who": "{{ speaker }}", "said": "{{ text }}"})
    rows = list(open_source(data, "train").rows())
    fields = [data.fields(row.columns) for row in rows]
    assert [fields[0]["who"], fields[1]["said"], fields[2]["who"]] == ["anna", "two", "carl"]
    assert "utt2spk: line 2: needs at least 2 words, has 'u2'" in str(fields[1]["who"])
    assert "text: line 3: 'u1' is already in an earlier line" in str(fields[0]["said"])
    kept = open_source(
        card(kaldi, {"kaldi": "kaldi"}, splits={"train": {"keep": "speaker != 'carl'"}}), "train"
    )
    assert [(row.key, isinstance(row, RowError)) for row in kept.rows()] == [("u1", False), ("u2", True)]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"jsonl": "nothing"}, "there is no manifest"),
        ({"csv": "nothing"}, "there is no manifest"),
        ({"kaldi": "nothing"}, "there is no folder"),
        ({"audiofolder": "nothing"}, "there is no folder"),
        ({"parquet": "nothing"}, "there is no parquet file"),
        ({"webdataset": "nothing-{0..3}.tar"}, r"there is no tar file at \S+nothing-0\.tar"),
        ({"webdataset": "nothing-{a}.tar"}, r"neither a range such as \{000\.\.012\} nor a list"),
        ({"hub": "/nothing/here/at/all"}, "cannot be opened"),
    ],
)
def test_places_that_do_not_exist(tmp_path, load, message):
    with pytest.raises(UserError, match=message):
        open_source(card(tmp_path, load), "train")


def test_broken_lines_of_a_manifest_are_rows_that_cannot_be_used(tmp_path):
    (tmp_path / "a.wav").write_bytes(clip_bytes(1))
    deep = '{"audio": "a.wav", "n": ' + "[" * 100_000 + "]" * 100_000 + "}"
    lines = ['{"audio": "a.wav", "n": 1}', '{"audio": ', "[1]", '{"n": 9' + "0" * 400 + "}", deep, '{"n": 5}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    good, *bad = open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").rows()
    assert numbers([good]) == [(1, 1)]
    assert [(row.key, row.reason) for row in bad] == [
        ("line 2", "broken metadata"),
        ("line 3", "broken metadata"),
        ("line 4", "broken metadata"),
        ("line 5", "broken metadata"),
        ("5", "missing column"),
    ]
    (tmp_path / "rows.csv").write_text("audio,n\na.wav,1\na.wav\na.wav,1,2\n" + f"a.wav,{'long ' * 50_000}\n")
    good, fewer, more, long = open_source(card(tmp_path, {"csv": "rows.csv"}), "train").rows()
    assert [(row.key, row.reason) for row in (fewer, more)] == [
        ("line 3", "broken metadata"),
        ("line 4", "broken metadata"),
    ]
    assert len(long.columns["n"]) == 250_000


@pytest.mark.parametrize("compressor", [gzip, bz2, lzma])
def test_compressed_manifests_are_mistakes(tmp_path, compressor):
    (tmp_path / "rows.jsonl.packed").write_bytes(compressor.compress(b'{"audio": "a.wav"}\n'))
    with pytest.raises(UserError, match=r"rows\.jsonl\.packed is compressed; decompress it"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl.packed"}), "train")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            POINTER,
            r"rows\.jsonl is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
        ),
        ("rows.csv", POINTER, r"rows\.csv is a pointer of Git LFS"),
        ("rows.parquet", POINTER, r"rows\.parquet is not a Parquet file \(it is a pointer of Git LFS"),
        ("rows.parquet", b" <html>gone</html>", r"rows\.parquet is not a Parquet file \(it is a web page"),
        ("rows.xlsx", b"PK\x03\x04", r"rows\.xlsx is a workbook; save its sheet as CSV"),
        (
            "rows.csv",
            "audio,n\na.wav,1\n".encode("utf-16-le"),
            r"rows\.csv: is not UTF-8 text, but probably UTF-16",
        ),
        (
            "rows.jsonl",
            b'[\n {"audio": "a.wav"},\n {"audio": "b.wav"}\n]',
            "holds a JSON list; write one object per",
        ),
        ("rows.jsonl", b'[{"audio": "a.wav"}]', "holds a JSON list; write one object per"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    kind = {".jsonl": "jsonl", ".parquet": "parquet"}.get(f".{name.partition('.')[2]}", "csv")
    with pytest.raises(UserError, match=message):
        open_source(card(tmp_path, {kind: name}), "train")


def test_numbers_in_json_that_are_none_have_no_value(tmp_path):
    (tmp_path / "a.wav").write_bytes(clip_bytes(1))
    lines = [
        '{"audio": "a.wav", "n": NaN}',
        '{"audio": "a.wav", "n": -Infinity}',
        '{"audio": "a.wav", "n": NoN}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    first, second, third = open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").rows()
    assert has_no_value(first.columns["n"])
    assert has_no_value(second.columns["n"])
    assert third.reason == "broken metadata"


def test_manifests_of_which_no_row_can_be_read_are_mistakes(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"audio": \n')
    with pytest.raises(UserError, match=r"none of 1 rows of \S+rows\.jsonl can be read .*line 1: not JSON"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")
    (tmp_path / "rows.jsonl").write_text('{"path": "a.wav"}\n')
    with pytest.raises(UserError, match="no audio column 'audio'; columns: path"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="keeps no rows"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")


def test_rows_of_which_a_condition_cannot_be_decided_are_bad_rows_of_every_split(tmp_path):
    (tmp_path / "a.wav").write_bytes(clip_bytes(1))
    rows = [{"fold": 1}, {"fold": "none"}, {}, {"fold": 7}]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"audio": "a.wav", **row}) + "\n" for row in rows)
    )
    splits = {"train": {"keep": "fold < 5"}, "test": {"name": "train", "keep": "fold > 5"}}
    content = card(tmp_path, {"jsonl": "rows.jsonl"}, splits=splits)
    train, test = (list(open_source(content, split).rows()) for split in ("train", "test"))
    assert [row.columns["fold"] for row in (train[0], test[-1])] == [1, 7]
    for bad, first in ((train[1:], 2), (test[:-1], 1)):
        names = ["a.wav", "a.wav#2", "a.wav#3"][first - 1 :]
        assert [(row.key, row.reason) for row in bad] == [
            (names[0], "broken metadata"),
            (names[1], "missing column"),
        ]


@pytest.mark.parametrize("stated", ["0.5", -1, 0, True, None, [1], math.nan, math.inf, 10**400])
def test_stated_lengths_that_are_no_positive_numbers_are_not_believed(stated):
    assert parse_seconds(stated) is None


@pytest.mark.parametrize(
    ("value", "holds"),
    [([{"path": "a.wav"}], "a list of dict"), ([0.1, 0.2], "a list of float"), ([], "an empty list")],
)
def test_a_list_in_an_audio_column_is_named(tmp_path, value, holds):
    with pytest.raises(
        RowError, match=rf"broken metadata: clip: {holds}; give one clip as a path, its bytes, or"
    ):
        parse_audio(value, {}, tmp_path, "clip")


@pytest.mark.parametrize("content", ["text", 5, [1, 2], {"a": 1}])
def test_bytes_that_are_no_bytes_are_broken_metadata(tmp_path, content):
    with pytest.raises(RowError, match="`bytes` holds"):
        parse_audio({"bytes": content, "path": None}, {}, tmp_path, "row 1")


def test_braces():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain") == ["plain"]
    with pytest.raises(UserError, match=r"\{¹\.\.²\} is neither a range"):
        expand_braces("a-{¹..²}.tar")


def test_members_before_the_damage_of_an_archive_are_found(tmp_path):
    write_tar(tmp_path / "a.tar", range(1, 6))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[: len(content) // 2])
    compress(tmp_path / "a.tar", ".gz")
    lines = [{"audio": f"a.tar::{n:04d}.flac", "n": n} for n in (1, 5)]
    lines.append({"audio": {"path": "a.tar", "offset": "far", "size": 3}, "n": 0})
    lines.append({"audio": "a.tar.gz::0001.flac", "n": 1})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, third, fourth = open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").rows()
    assert numbers([first]) == [(1, 1)]
    assert "damaged before it" in str(second)
    assert third.reason == "broken metadata"
    assert "a.tar.gz is compressed, so its files cannot be read one by one" in str(fourth)


def test_an_open_quote_costs_one_line_of_a_table(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.wav").write_bytes(clip_bytes(1))
    lines = [
        "audio,text",
        'a.wav,"two',
        'lines"',
        'b.wav,"open',
        "c.wav,low",
        'd.wav,"high, ""tone"""',
        'a.wav,"x"y',
    ]
    (tmp_path / "rows.csv").write_text("\r\n".join(lines) + "\r\n")
    rows = list(open_source(card(tmp_path, {"csv": "rows.csv"}), "train").rows())
    assert [row.key for row in rows] == ["a.wav", "line 4", "c.wav", "d.wav", "line 7"]
    texts = [row.columns["text"] for row in rows if isinstance(row, Row)]
    assert texts == ["two\r\nlines", "low", 'high, "tone"']
    (tmp_path / "rows.csv").write_text("audio,text\n" + 'a.wav,"open\n' + "b.wav,low\n" * 3)
    rows = list(open_source(card(tmp_path, {"csv": "rows.csv"}), "train").rows())
    assert [row.key for row in rows] == ["line 2", "b.wav", "b.wav#2", "b.wav#3"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "kaldi", "audiofolder"])
def test_manifests_with_a_byte_order_mark(tmp_path, encoding, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ä.wav").write_bytes(clip_bytes(1))
    files = {
        "jsonl": {"manifest.jsonl": '{"audio": "ä.wav", "text": "größer"}\r\n'},
        "csv": {"manifest.csv": "audio,text\r\nä.wav,größer\r\n"},
        "kaldi": {"wav.scp": "u1 ä.wav\r\n", "text": "u1 größer\r\n"},
        "audiofolder": {"metadata.csv": "file_name,text\r\nä.wav,größer\r\n"},
    }[kind]
    for name, text in files.items():
        mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
        (folder / name).write_bytes(mark + text.encode(encoding))
    [row] = open_source(card(tmp_path, {kind: "data"}), "train").rows()
    assert row.columns["text"] == "größer"
    assert row.audio[0].read_seconds() == pytest.approx(0.1)


def test_bytes_that_are_no_utf_16_cost_their_row_alone(tmp_path):
    (tmp_path / "a.wav").write_bytes(clip_bytes(1))
    content = "audio\ttext\na.wav\tone\na.wav\tbad \ud800\na.wav\tthree".encode("utf-16", "surrogatepass")
    (tmp_path / "rows.tsv").write_bytes(content + b"!")
    data = card(tmp_path, {"csv": "rows.tsv"}, columns={"said": "{{ text }}"})
    fields = [data.fields(row.columns)["said"] for row in open_source(data, "train").rows()]
    assert fields[0] == "one"
    assert [str(field).isascii() for field in fields] == [True, False, False]


def bad_text(values):
    """Return a column of text from bytes that need not be UTF-8."""
    plain = pyarrow.array(values, pyarrow.binary())
    return pyarrow.StringArray.from_buffers(len(values), *plain.buffers()[1:])


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_a_value_of_parquet_that_is_no_utf_8_costs_its_row_alone(tmp_path, kind):
    (tmp_path / "data").mkdir()
    clips = pyarrow.array([clip_bytes(n) for n in range(4)])
    table = {
        "audio": pyarrow.StructArray.from_arrays(
            [clips, bad_text([b"0.wav", b"1.wav", b"2.wav", b"\xff"])], ["bytes", "path"]
        ),
        "text": bad_text([b"zero", b"\xff\xfe", b"two", b"three"]),
        "n": [0, 1, 2, 3],
    }
    pq.write_table(pyarrow.table(table), tmp_path / "data" / "train.parquet")
    data = card(tmp_path, {kind: str(tmp_path / "data")}, columns={"said": "{{ text }}"})
    zero, one, two, three = open_source(data, "train").rows()
    assert numbers([zero, one, two]) == [(0, 0), (1, 1), (2, 2)]
    assert [data.fields(row.columns)["said"] for row in (zero, two)] == ["zero", "two"]
    assert data.fields(one.columns)["said"].reason == "broken metadata"
    assert isinstance(three, RowError)


def test_a_bad_value_of_parquet_metadata_costs_its_row_alone(tmp_path):
    (tmp_path / "data").mkdir()
    for n in range(3):
        (tmp_path / "data" / f"{n}.wav").write_bytes(clip_bytes(n))
    names = [f"{n}.wav" for n in range(3)]
    table = pyarrow.table({"file_name": names, "text": bad_text([b"zero", b"\xff", b"two"])})
    pq.write_table(table, tmp_path / "data" / "metadata.parquet")
    data = card(tmp_path, {"audiofolder": "data"}, columns={"said": "{{ text }}"})
    fields = [data.fields(row.columns)["said"] for row in open_source(data, "train").rows()]
    assert (fields[0], fields[1].reason, fields[2]) == ("zero", "broken metadata", "two")
