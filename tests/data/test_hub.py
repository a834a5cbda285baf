"""Datasets in the Hub's layout, streamed by ``datasets`` itself: local folders stand for repositories."""

import zipfile

import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import card, clip_bytes, numbers, write_parquet
from helpers.resuming import check_places
from torch.utils.data import DataLoader, IterableDataset

from uniaudio.data.sources.base import BrokenShardError, Place, Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.sources.url_files import open_by_scheme
from uniaudio.errors import RowError, UserError


def hub(tmp_path, folder="data", **more):
    return open_source(card(tmp_path, {"hub": str(tmp_path / folder)}, **more), "train")


@pytest.mark.parametrize("files", [1, 3])
def test_a_dataset_is_streamed_by_shards(tmp_path, files):
    write_parquet(tmp_path / "data", files=files, rows=4)
    source = hub(tmp_path)
    assert source.size is None
    assert len(source.shards) == files
    assert numbers(source.rows()) == [(i, i) for i in range(4 * files)]
    assert [row.key for row in source.rows()][:5] == ["0/0", "0/1", "0/2", "0/3", "1/0"][: 4 * files]
    assert check_places(source) == [4] * files


def test_shards_of_any_size_give_every_row_once(tmp_path):
    write_parquet(tmp_path / "data", files=3, rows=1)
    first, middle, last = sorted((tmp_path / "data").iterdir())
    table = pq.read_table(first)
    pq.ParquetWriter(middle, table.schema).close()  # no rows
    pq.write_table(pyarrow.concat_tables([table] * 40), last, row_group_size=7)  # more than are taken at once
    source = hub(tmp_path)
    assert numbers(source.rows()) == [(0, 0)] * 41
    assert check_places(source) == [1, 0, 40]


def test_rows_that_are_not_kept_count(tmp_path):
    write_parquet(tmp_path / "data", files=2, rows=4)
    source = hub(tmp_path, splits={"train": {"keep": "label == 'odd'"}})
    assert numbers(source.rows()) == [(i, i) for i in (1, 3, 5, 7)]
    assert check_places(source) == [4, 4]


def test_folders_and_archives_of_audio_files(tmp_path):
    """Nothing is decoded or encoded on the way; files in archives (or on the Hub) are read when their row comes."""
    metadata = "file_name,n\n" + "".join(f"{n}.wav,{n}\n" for n in range(3))
    (tmp_path / "files").mkdir()
    (tmp_path / "zipped").mkdir()
    (tmp_path / "files" / "metadata.csv").write_text(metadata)
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        archive.writestr("metadata.csv", metadata)
        for n in range(3):
            (tmp_path / "files" / f"{n}.wav").write_bytes(clip_bytes(n))
            archive.writestr(f"{n}.wav", clip_bytes(n))
    for folder in ("files", "zipped"):
        source = hub(tmp_path, folder)
        assert numbers(source.rows()) == [(i, i) for i in range(3)]
        assert check_places(source) == [3]


def test_paths_in_tables_of_a_folder_are_relative_to_it(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.wav").write_bytes(clip_bytes(1))
    (folder / "train.jsonl").write_text('{"audio": "a.wav", "n": 1}\n')
    assert numbers(open_source(card(tmp_path, {"hub": str(folder)}), "train").rows()) == [(1, 1)]


def test_configurations_are_listed_where_one_has_to_be_named(tmp_path):
    folder = tmp_path / "data"
    for name in ("de", "en"):
        write_parquet(folder / name, files=1)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("de", "en"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(UserError, match="has several configurations; set `config` to one of 'de', 'en'"):
        open_source(card(tmp_path, {"hub": str(folder)}), "train")
    named = card(tmp_path, {"hub": str(folder), "config": "en"})
    assert len(numbers(open_source(named, "train").rows())) == 5


def test_a_file_that_is_gone_is_one_bad_row(tmp_path):
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        archive.writestr("metadata.csv", "file_name,n\n0.wav,0\ngone.wav,1\n")
        archive.writestr("0.wav", clip_bytes(0))
    first, second = hub(tmp_path, "zipped").rows()
    assert numbers([first]) == [(0, 0)]
    assert isinstance(second, RowError)
    assert (second.reason, "gone.wav" in second.detail) == ("missing file", True)


def test_a_clip_in_an_archive_is_read_again_after_a_failure(tmp_path, monkeypatch):
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        archive.writestr("metadata.csv", "file_name,n\n0.wav,0\n1.wav,1\n")
        for n in range(2):
            archive.writestr(f"{n}.wav", clip_bytes(n))
    failures, pauses = [ConnectionError("reset"), TimeoutError("slow")], []

    def open_or_fail(url, timeout):
        if failures:
            raise failures.pop()
        return open_by_scheme(url, timeout)

    monkeypatch.setattr("uniaudio.data.sources.hub.open_by_scheme", open_or_fail)
    monkeypatch.setattr("uniaudio.data.sources.retries.ANSWERED", {})
    monkeypatch.setattr("uniaudio.data.sources.retries.time.sleep", pauses.append)
    assert numbers(hub(tmp_path, "zipped").rows()) == [(0, 0), (1, 1)]
    assert pauses == [1.0, 2.0]


def test_a_damaged_file_breaks_its_shard_alone(tmp_path):
    write_parquet(tmp_path / "data", files=2, rows=4)
    source = hub(tmp_path)
    last = max((tmp_path / "data").iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    assert numbers(row for row in source.rows() if isinstance(row, Row)) == [(i, i) for i in range(4)]
    with pytest.raises(BrokenShardError, match=r"data:train:1: "):
        list(source.read(1, Place()))
    last.unlink()
    with pytest.raises(BrokenShardError, match=r"data:train:1: "):
        list(source.read(1, Place()))


def test_mistakes_are_reported_when_a_dataset_is_opened(tmp_path):
    write_parquet(tmp_path / "data")
    with pytest.raises(UserError, match=r"load\.hub: \S+data cannot be opened .*test"):
        hub(tmp_path, splits={"train": {"name": "test"}})
    with pytest.raises(UserError, match="the rows have no column 'fold'"):
        next(hub(tmp_path, splits={"train": {"keep": "fold == 1"}}).rows())


class InWorkers(IterableDataset):
    """Each worker reads every shard, as logical streams may do."""

    def __init__(self, source):
        self.source = source

    def __iter__(self):
        for shard in range(len(self.source.shards)):
            yield [row.columns["n"] for row, _ in self.source.read(shard, Place(1))]


def test_torch_workers_do_not_take_rows_from_each_other(tmp_path):
    write_parquet(tmp_path / "data", files=2, rows=3)
    result = list(DataLoader(InWorkers(hub(tmp_path)), batch_size=None, num_workers=2))
    assert result == [[1, 2], [1, 2], [4, 5], [4, 5]]
