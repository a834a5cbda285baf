"""Compressed tars: the rows of the tar inside, from every place, and without reading from the beginning each time."""

import gzip

import fsspec
import pytest
from helpers.files import card, compress, numbers, write_tar
from helpers.resuming import check_places

from uniaudio.data.sources import compressed, webdataset
from uniaudio.data.sources.base import BrokenShardError, Place
from uniaudio.data.sources.source_kinds import open_source


def source_of(tmp_path, place):
    return open_source(card(tmp_path, {"webdataset": str(place)}), "train")


@pytest.fixture
def tar(tmp_path):
    write_tar(tmp_path / "a.tar", range(12))
    return tmp_path / "a.tar"


def facts(source):
    """Keys, columns and clips as bytes, and the place behind each."""
    return [
        (row.key, row.columns, getattr(clip := row.audio[0].source, "read", lambda clip=clip: clip)(), behind)
        for row, behind in source.read(0, Place())
    ]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_rows_and_places_are_those_of_the_tar_inside(tmp_path, tar, suffix):
    packed = source_of(tmp_path, compress(tar, suffix))
    assert facts(packed) == facts(source_of(tmp_path, tar))
    assert check_places(packed) == [12]
    assert numbers(packed.rows()) == [(n, n) for n in range(12)]


def test_a_compressed_tar_is_read_by_url(tmp_path, tar):
    with fsspec.open("memory://far/a.tar.gz", "wb") as far:
        far.write(compress(tar, ".gz").read_bytes())
    source = source_of(tmp_path, "memory://far/a.tar.gz")
    assert check_places(source) == [12]
    fsspec.filesystem("memory").rm("/far", recursive=True)
    with pytest.raises(BrokenShardError, match=r"memory://far/a\.tar\.gz"):
        list(source.read(0, Place()))


def test_archives_of_several_gzip_members_are_read_to_their_end(tmp_path, tar):
    content = tar.read_bytes()
    (tmp_path / "b.tgz").write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    assert numbers(source_of(tmp_path, tmp_path / "b.tgz").rows()) == [(n, n) for n in range(12)]


def test_a_reader_that_was_left_goes_on_where_it_was(tmp_path, tar, monkeypatch):
    """Window after window: each byte is decompressed once; without the reader (another process) it is found again."""
    opened = []
    plain = compressed.DecompressedFile
    monkeypatch.setattr(compressed, "DecompressedFile", lambda *args: opened.append(1) or plain(*args))
    source = source_of(tmp_path, compress(tar, ".gz"))
    place, keys = Place(), []
    while True:
        rows = source.read(0, place)
        read = [next(rows, None) for _ in range(5)]
        rows.close()
        if read[0] is None:
            break
        keys += [pair[0].columns["n"] for pair in read if pair is not None]
        place = next(pair[1] for pair in reversed(read) if pair is not None)
    assert keys == list(range(12))
    assert len(opened) <= 2  # once for all windows, and once behind the end
    webdataset.PAUSED.process = -1  # as after a fork
    rows = source.read(0, Place())
    for _ in range(5):
        _, place = next(rows)
    rows.close()
    webdataset.PAUSED.process = -1
    assert next(source.read(0, place))[0].columns["n"] == 5


def test_a_reader_may_be_left_more_often_than_calls_nest(tmp_path):
    write_tar(tmp_path / "many.tar", range(1500))
    source = source_of(tmp_path, compress(tmp_path / "many.tar", ".gz"))
    place, keys = Place(), []
    while len(keys) < 1500:
        rows = source.read(0, place)
        row, place = next(rows)
        rows.close()
        keys.append(row.columns["n"])
    assert keys == list(range(1500))


def test_only_so_many_readers_are_kept():
    readers = compressed.PausedReaders(most=2)
    for offset in (1, 2, 3):
        readers.put("a", offset, offset, iter([offset * 10]))
    assert readers.take("a", 1) is None
    first, rest = readers.take("a", 3)
    assert [first, *rest] == [3, 30]
    assert readers.take("a", 3) is None


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_or_damaged_archive_is_a_broken_shard_behind_its_rows(tmp_path, tar, suffix):
    content = compress(tar, suffix).read_bytes()
    for damaged in (content[: len(content) // 2], content[:2000] + bytes(200) + content[2200:]):
        place = tmp_path / f"b.tar{suffix}"
        place.write_bytes(damaged)
        result = []
        with pytest.raises(BrokenShardError, match=r"b\.tar"):
            result.extend(row for row, _ in source_of(tmp_path, place).read(0, Place()))
        assert len(result) < 12
    place.write_bytes(b"no archive at all")
    with pytest.raises(BrokenShardError, match=r"b\.tar"):
        list(source_of(tmp_path, place).read(0, Place()))
