"""Every kind of source: all rows once, the rest from any place, and what is said about bad input."""

import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from made_up_files import add, card, clip_bytes, numbers, write_parquet, write_tar

from uniaudio.data.audio import FilePart, decode, probe_seconds
from uniaudio.data.source import BrokenShardError, Place, Row, open_source
from uniaudio.data.sources.remote import expand_braces
from uniaudio.errors import RowError, UserError


@pytest.fixture
def parquet(tmp_path):
    """Ten rows in two files with row groups of three, audio embedded as the Hub has it."""
    write_parquet(tmp_path / "data")
    return tmp_path


def check_places(source):
    """From every place of every shard, reading gives the tail of the whole, and the places are the same."""
    for shard in range(len(source.shards)):
        whole = list(source.read(shard, Place()))
        assert [behind.row for _, behind in whole] == list(range(1, len(whole) + 1))
        places = [Place(), *(behind for _, behind in whole)]
        for start, place in enumerate(places):
            rest = list(source.read(shard, place))
            assert [behind for _, behind in rest] == [behind for _, behind in whole[start:]]
            assert [r and r.key for r, _ in rest] == [r and r.key for r, _ in whole[start:]]


def test_parquet_shards_are_row_groups(parquet):
    source = open_source(card(parquet, {"parquet": "data"}), "train")
    assert source.size == 10
    assert len(source.shards) == 4  # 3 + 2 rows in each file
    assert numbers(source.rows()) == [(i, i) for i in range(10)]
    assert len({row.key for row in source.rows()}) == 10
    check_places(source)


def test_keep_is_applied_before_audio_is_read(parquet, monkeypatch):
    odd = {"train": {"keep": "label == 'odd'"}}
    source = open_source(card(parquet, {"parquet": "data"}, splits=odd), "train")
    assert source.size is None
    assert numbers(source.rows()) == [(i, i) for i in (1, 3, 5, 7, 9)]
    check_places(source)
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
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is no parquet file"):
        open_source(card(parquet, {"parquet": "data"}), "train")


@pytest.mark.parametrize("files", [1, 3])
def test_a_hub_dataset_is_streamed_by_shards(tmp_path, files):
    write_parquet(tmp_path / "data", files=files, rows=4)
    source = open_source(card(tmp_path, {"hub": str(tmp_path / "data")}), "train")
    assert source.size is None
    assert len(source.shards) == files
    assert sorted(numbers(source.rows())) == [(i, i) for i in range(4 * files)]
    check_places(source)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_webdataset_tars(tmp_path, format):
    write_tar(tmp_path / "tars" / "set_0000.tar", range(5), format)
    write_tar(tmp_path / "tars" / "set_0001.tar", range(5, 7), format, folder="a.b/")
    write_tar(tmp_path / "tars" / "set_0002.tar", [], format)
    for place in ("tars", "tars/set_{0000..0002}.tar", "tars/*.tar"):
        source = open_source(card(tmp_path, {"webdataset": place}), "train")
        assert len(source.shards) == 3
        assert numbers(source.rows()) == [(i, i) for i in range(7)]
    check_places(source)
    rows = list(source.rows())
    assert isinstance(rows[1].audio[0].source, FilePart)
    assert rows[1].columns["text"] == "text 1"
    assert "text" not in rows[2].columns
    assert rows[6].audio[0].known_seconds() == pytest.approx(1606 / 16000)
    assert probe_seconds(rows[6].audio[0].source) == pytest.approx(1606 / 16000)
    assert rows[3].columns["__key__"] == "ü" * 60 + "0003"


def test_a_cut_or_damaged_tar_gives_what_lies_before(tmp_path):
    write_tar(tmp_path / "a.tar", range(8))
    content = (tmp_path / "a.tar").read_bytes()
    source = open_source(card(tmp_path, {"webdataset": "a.tar"}), "train")
    *_, (_, place) = list(source.read(0, Place()))[:5]
    for damaged in (
        content[: place.offset + 700],
        content[: place.offset] + b"x" * 512 + content[place.offset + 512 :],
    ):
        (tmp_path / "a.tar").write_bytes(damaged)
        found = []
        with pytest.raises(BrokenShardError, match=r"a\.tar: (cut|damaged) at byte \d+"):
            found.extend(row.columns["n"] for row, _ in source.read(0, Place()))
        assert [row.columns["n"] for row in source.rows() if isinstance(row, Row)][:4] == [0, 1, 2, 3]
        assert isinstance(list(source.rows())[-1], RowError)


def test_bad_samples_in_a_tar_are_rows_that_cannot_be_used(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.wav", clip_bytes(1))
        add(tar, "a.wav", clip_bytes(1))
        add(tar, "b.txt", b"no audio")
        add(tar, "c.wav", clip_bytes(1))
        add(tar, "c.json", b"{no json")
        add(tar, "../../d.wav", clip_bytes(4))
        add(tar, "e.wav", clip_bytes(5))
        add(tar, "e.flac", clip_bytes(5, "FLAC"))
    rows = list(open_source(card(tmp_path, {"webdataset": "a.tar"}), "train").rows())
    assert [row.reason if isinstance(row, RowError) else row.key for row in rows] == [
        "duplicate key",
        "missing audio",
        "broken metadata",
        "a/../../d",
        "too many clips",
    ]


def test_audiofolder_labels_come_from_folders_and_metadata(tmp_path):
    for label in ("dog", "cat"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "clips" / label / "1.flac", np.zeros(1600, np.int16), 16000)
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,age\ndog/1.flac,3\n")
    source = open_source(card(tmp_path, {"audiofolder": "clips"}), "train")
    rows = [source.row(i) for i in range(source.size)]
    assert [(row.columns["label"], row.columns.get("age")) for row in rows] == [("cat", None), ("dog", "3")]
    assert rows[0].audio[0].known_seconds() == pytest.approx(0.1)


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
    (folder / "manifest.tsv").write_text("audio\tn\nä.wav\t1\t2\n")
    with pytest.raises(UserError, match=r"manifest\.tsv: line 2: has more fields than the header's 2"):
        open_source(card(tmp_path, {"csv": "Töne 1"}), "train")


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
    assert ref.known_seconds() == pytest.approx(0.1)
    assert samples.tolist() == [200] * 1600
    assert len(decode(second.audio[0].source, 0.6, "u2", second.audio[0].span)) == 8000
    with pytest.raises(RowError, match=r"span outside of the recording: u3: 0\.5 to 4 s of 1\.00 s"):
        decode(third.audio[0].source, 10, "u3", third.audio[0].span)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("wav.scp", "rec1 sox long.flac -t wav - |\n", r"wav\.scp: line 1: rec1 is a command"),
        ("wav.scp", "rec1\n", r"wav\.scp: line 1: needs at least 2 words"),
        ("segments", "u1 rec2 0 1\n", r"segments: line 1: wav\.scp has no recording 'rec2'"),
        ("segments", "u1 rec1 a b\n", r"segments: line 1: times must be seconds"),
    ],
)
def test_kaldi_mistakes(kaldi, file, text, message):
    (kaldi / "kaldi" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(card(kaldi, {"kaldi": "kaldi"}), "train")


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


def test_broken_manifests_name_the_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav"}\n{"audio": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl: line 2: not JSON"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")
    (tmp_path / "rows.jsonl").write_text('{"path": "a.wav"}\n')
    with pytest.raises(UserError, match="no audio column 'audio'; columns: path"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train").row(0)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="keeps no rows"):
        open_source(card(tmp_path, {"jsonl": "rows.jsonl"}), "train")


def test_braces():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand_braces("plain") == ["plain"]
