"""Tars: every sample once, from any byte offset, and what is made of damage and of odd members."""

import json
import tarfile

import pytest
from helpers.files import add, card, clip_bytes, numbers, write_tar
from helpers.resuming import check_places

from uniaudio.data.audio_files import probe_seconds
from uniaudio.data.encoded_audio import FilePart
from uniaudio.data.sources.base import BrokenShardError, Place, Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError


def source_of(tmp_path, place="a.tar", **more):
    return open_source(card(tmp_path, {"webdataset": place, **more.pop("load", {})}, **more), "train")


def write_members(path, *members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            add(tar, name, content)


def output(source):
    """Keys of rows and reasons of errors."""
    return [row.key if isinstance(row, Row) else row.reason for row in source.rows()]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_all_samples_come_once_from_every_place(tmp_path, format):
    write_tar(tmp_path / "tars" / "set_0000.tar", range(5), format)
    write_tar(tmp_path / "tars" / "set_0001.tar", range(5, 7), format, folder="a.b/")
    write_tar(tmp_path / "tars" / "set_0002.tar", [], format)
    write_tar(tmp_path / "tars" / "set_0003.tar", [7], format)
    places = [
        "tars",
        "tars/set_{0000..0003}.tar",
        "tars/*.tar",
        ["tars/set_000{0,1}.tar", "tars/set_000[23].tar"],
    ]
    for place in places:
        source = source_of(tmp_path, place)
        assert len(source.shards) == 4
        assert numbers(source.rows()) == [(i, i) for i in range(8)]
        assert check_places(source) == [5, 2, 0, 1]
    rows = list(source.rows())
    assert isinstance(rows[1].audio[0].source, FilePart)
    assert rows[1].columns["text"] == "text 1"
    assert "text" not in rows[2].columns
    assert rows[6].audio[0].read_seconds() == pytest.approx(1606 / 16000)
    assert probe_seconds(rows[6].audio[0].source) == pytest.approx(1606 / 16000)
    assert rows[3].columns["__key__"] == "ü" * 60 + "0003"
    assert rows[5].key == "set_0001/a.b/0005"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_place_is_the_byte_of_the_next_samples_first_header(tmp_path, format):
    write_tar(tmp_path / "a.tar", range(6), format)
    with tarfile.open(tmp_path / "a.tar") as tar:
        begins = [member.offset for member in tar if member.name.endswith(".flac")]
        last = tar.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    result = [behind for _, behind in source_of(tmp_path).read(0, Place())]
    assert result == [Place(i + 1, at) for i, at in enumerate([*begins[1:], end])]


def test_a_cut_tar_gives_all_samples_that_are_whole(tmp_path):
    """Cut at every record, the boundaries of members among them: never half a sample, never a quiet end."""
    write_tar(tmp_path / "whole.tar", range(4))
    content = (tmp_path / "whole.tar").read_bytes()
    ends = [behind.offset for _, behind in source_of(tmp_path, "whole.tar").read(0, Place())]
    with tarfile.open(tmp_path / "whole.tar") as tar:
        clips = [m.offset_data + -(-m.size // 512) * 512 for m in tar if m.name.endswith(".flac")]
    for size in range(0, ends[-1] + 1, 512):
        (tmp_path / "a.tar").write_bytes(content[:size])
        result = []
        reason = f"truncated at byte {size}" if size else "is empty"
        with pytest.raises(BrokenShardError, match=rf"a\.tar: {reason}"):
            result.extend(row.columns["n"] for row, _ in source_of(tmp_path).read(0, Place()))
        # a sample is known to be whole when the next one has begun
        assert result == list(range(sum(begun <= size for begun in clips[1:])))
    (tmp_path / "a.tar").write_bytes(content[: ends[-1] + 512])
    assert numbers(source_of(tmp_path).rows()) == [(i, i) for i in range(4)]


@pytest.mark.parametrize("damage", [b"x" * 512, b"\x80" * 512])
def test_a_damaged_header_ends_a_shard_behind_its_good_rows(tmp_path, damage):
    write_tar(tmp_path / "a.tar", range(8))
    write_tar(tmp_path / "b.tar", range(8, 10))
    source = source_of(tmp_path, ["a.tar", "b.tar"])
    at = list(source.read(0, Place()))[4][1].offset
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[at : at + 512] = damage
    (tmp_path / "a.tar").write_bytes(content)
    rows = list(source.rows())
    assert numbers(row for row in rows if isinstance(row, Row)) == [(i, i) for i in [0, 1, 2, 3, 8, 9]]
    (problem,) = (row for row in rows if isinstance(row, RowError))
    assert problem.reason == "broken shard"
    assert f"damaged at byte {at}" in problem.detail


def test_sizes_that_cannot_be_are_damage(tmp_path):
    """A negative size would lead back to the same header for ever, a wrong length of a pax record too."""
    write_members(tmp_path / "a.tar", ("a.wav", clip_bytes(1)), ("b.wav", clip_bytes(2)))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[124:136] = b"\xff" * 11 + b"\x00"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BrokenShardError, match=r"damaged at byte 0 .a size of -256"):
        list(source_of(tmp_path).read(0, Place()))
    write_members(tmp_path / "a.tar", ("ü" * 60 + ".wav", clip_bytes(1)))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content.replace(b"134 path=", b"000 path="))
    with pytest.raises(BrokenShardError, match=r"damaged at byte 512 .a pax record of 0 bytes"):
        list(source_of(tmp_path).read(0, Place()))


def test_the_first_of_samples_with_one_key_is_used_and_the_others_reported(tmp_path):
    write_members(
        tmp_path / "a.tar",
        ("a.wav", clip_bytes(1)),
        ("a.json", b'{"n": 1}'),
        ("a.wav", clip_bytes(2)),
        ("a.json", b'{"n": 2}'),
        ("a.wav", clip_bytes(3)),
        ("b.wav", clip_bytes(4)),
        ("b.json", b'{"n": 4}'),
    )
    source = source_of(tmp_path)
    assert output(source) == ["a/a", "duplicate key", "duplicate key", "a/b"]
    assert numbers(row for row in source.rows() if isinstance(row, Row)) == [(1, 1), (4, 4)]
    assert check_places(source) == [4]


def test_bad_samples_are_rows_that_cannot_be_used(tmp_path):
    write_members(
        tmp_path / "a.tar",
        ("b.txt", b"no audio"),
        ("c.wav", clip_bytes(1)),
        ("c.json", b"{no json"),
        ("c2.wav", clip_bytes(1)),
        ("c2.json", b'[["n", 1]]'),
        ("../../d.wav", clip_bytes(4)),
        ("/e.wav", clip_bytes(5)),
        ("f.wav", clip_bytes(5)),
        ("f.flac", clip_bytes(5, "FLAC")),
    )
    source = source_of(tmp_path)
    assert output(source) == [
        "missing audio",
        "broken metadata",
        "broken metadata",
        "a/../../d",
        "a//e",
        "too many clips",
    ]
    assert check_places(source) == [6]
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "set.yaml"}  # nothing is unpacked


def test_members_become_columns(tmp_path):
    write_members(
        tmp_path / "a.tar",
        ("README", b"no sample"),
        ("x/a.cls", b"3\n"),
        ("x/a.json", b'{"n": 1, "__key__": "other"}'),
        ("x/._a.wav", b"what some systems add"),
        ("x/a.npy", b"\x93NUMPY\xff\x00"),
        ("x/a.mp4", b"\0" * ((1 << 24) + 1)),
        ("x/a.lang", "zürich".encode()),
        ("x/a.WAV", clip_bytes(7)),
        ("b.m4a", b"what libsndfile cannot read"),
    )
    source = source_of(tmp_path)
    first, second = source.rows()
    assert first.columns == {"__key__": "x/a", "cls": "3", "n": 1, "lang": "zürich"}
    assert numbers([first]) == [(1, 7)]
    with pytest.raises(RowError, match="broken audio: a/b"):
        second.audio[0].read_seconds()
    assert check_places(source) == [2]


def test_links_folders_and_names_in_other_encodings(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "ü.wav", clip_bytes(1))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "ü.wav", 3244  # nothing follows all the same
        tar.addfile(link)
        add(tar, "b.wav", clip_bytes(2))
    source = source_of(tmp_path)
    assert output(source) == ["a/\\xfc", "a/b"]
    assert check_places(source) == [2]


def test_pairs_and_conditions(tmp_path):
    write_members(
        tmp_path / "a.tar",
        *(
            (f"{n}.{side}.wav", clip_bytes(10 * n + i))
            for n in range(4)
            for i, side in enumerate(["one", "two"])
        ),
    )
    source = source_of(tmp_path, audio=["first", "second"], splits={"train": {"keep": "__key__ != '2'"}})
    assert output(source) == ["a/0", "a/1", "a/3"]
    assert check_places(source) == [4]  # a row that is not kept counts as well
    assert [len(row.audio) for row in source.rows()] == [2, 2, 2]


def test_tars_of_a_split(tmp_path):
    write_tar(tmp_path / "x" / "train_0.tar", range(2))
    write_tar(tmp_path / "x" / "test_0.tar", range(2, 3))
    write_tar(tmp_path / "y" / "dev" / "0.tar", range(3, 5))
    write_tar(tmp_path / "y" / "train" / "0.tar", range(5, 6))
    splits = {"train": {}, "test": {"name": "test"}, "dev": {"name": "dev"}}

    def read(place, split):
        return [
            n
            for n, _ in numbers(
                open_source(card(tmp_path, {"webdataset": place}, splits=splits), split).rows()
            )
        ]

    assert (read("x", "train"), read("x", "test")) == ([0, 1], [2])
    assert (read("x/{split}*.tar", "train"), read("x/{split}_{0..0}.tar", "test")) == ([0, 1], [2])
    assert (read("y", "dev"), read("y", "train")) == ([3, 4], [5])
    assert read(["x/train_0.tar", "x/*.tar"], "train") == [0, 1]  # no file twice
    with pytest.raises(UserError, match=r"splits\.dev: \S+x has no split 'dev'; leave out `name`"):
        read("x", "dev")


def test_files_with_the_same_name_give_different_keys(tmp_path):
    for part in ("de", "en"):
        write_tar(tmp_path / "x" / part / "0.tar", range(1))
    assert [row.key.partition("/")[0] for row in source_of(tmp_path, "x").rows()] == ["de", "en"]
    assert len(set(output(source_of(tmp_path, "x")))) == 2


def test_tars_through_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    write_tar(tmp_path / "a.tar", range(5))
    with fsspec.open("memory://far/ü-0.tar", "wb") as far:
        far.write((tmp_path / "a.tar").read_bytes())
    source = source_of(tmp_path, ["memory://far/ü-{0..0}.tar", "memory://far/gone.tar"])
    assert isinstance(next(source.read(0, Place()))[0].audio[0].source, bytes)
    with pytest.raises(BrokenShardError, match=r"memory://far/gone\.tar"):
        next(source.read(1, Place()))
    assert check_places(source_of(tmp_path, "memory://far/ü-0.tar")) == [5]
    fsspec.filesystem("memory").rm("/far", recursive=True)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("noscheme://x/a.tar", "noscheme://x/a.tar cannot be read .Protocol not known: noscheme"),
        ("https://x/*.tar", r"files on a web server cannot be listed; write \{0000\.\.0012\}"),
    ],
)
def test_urls_that_can_never_be_read(tmp_path, place, message):
    with pytest.raises(UserError, match=message):
        source_of(tmp_path, place)


def test_a_sample_without_the_column_of_the_condition_is_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(3):
            add(tar, f"{n}.wav", clip_bytes(n))
            if n != 1:
                add(tar, f"{n}.json", json.dumps({"n": n}).encode())
    source = source_of(tmp_path, splits={"train": {"keep": "n != 2"}})
    first, second = source.rows()
    assert first.columns["n"] == 0
    assert (second.reason, "keep needs 'n'" in second.detail) == ("missing column", True)
