"""Shards of which a part cannot be read: how many rows are lost, and when it is too many."""

import gzip
import json
import os

import pytest
from helpers.files import card, write_parquet, write_tar
from helpers.sources import Shards

from uniaudio.data.sampler import Mark, ShardCursor
from uniaudio.data.skipped_rows import BrokenShard, SkipLedger
from uniaudio.data.sources.base import BrokenShardError, Place
from uniaudio.data.sources.paths import read_size
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError

ROWS = 20


@pytest.fixture
def tars(tmp_path):
    """Four tars of twenty rows each."""
    for part in range(4):
        write_tar(tmp_path / "set" / f"{part}.tar", range(ROWS * part, ROWS * (part + 1)))
    return tmp_path / "set"


def losses(folder, kind="webdataset"):
    """Read everything once, as a stream does, and return the shards that broke."""
    source = open_source(card(folder.parent, {kind: str(folder)}), "train")
    cursor = ShardCursor(source, "set", 1, 0, 1, 10_000, 60.0, Mark())
    window = cursor.read_window(Mark())
    assert all(isinstance(skip, BrokenShard) for skip in window.skips)
    return window.skips


def complaint(skips, allowed=0.05):
    ledger = SkipLedger(allowed)
    ledger.add({"set": 100}, skips)
    return ledger.explain_problem()


def cut_to(file, share):
    os.truncate(file, int(read_size(str(file)) * share))


def test_four_tars_cut_in_half_have_lost_half_of_all_rows(tars):
    for part in range(4):
        cut_to(tars / f"{part}.tar", 0.5)
    skips = losses(tars)
    assert [skip.rows for skip in skips] == pytest.approx([10] * 4, abs=2)
    assert sum(skip.share for skip in skips) == pytest.approx(0.5, abs=0.06)
    assert "lost about" in complaint(skips)
    assert "4 broken shard(s)" in complaint(skips)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
def test_a_cut_tar_is_compared_with_the_others(tars, share):
    cut_to(tars / "2.tar", share)
    (skip,) = losses(tars)
    assert skip.rows == pytest.approx(ROWS * (1 - share), abs=3)
    assert skip.share == pytest.approx((1 - share) / 4, abs=0.03)
    assert bool(complaint([skip])) is (skip.share > 0.05)


def test_a_tar_that_is_damaged_in_the_middle_has_lost_what_lies_behind(tars):
    file = tars / "1.tar"
    for damage in (b"\xff", b"\0"):  # a header that is none, and one that looks like the end
        content = bytearray(file.read_bytes())
        at = len(content) * 3 // 4 // 512 * 512
        damaged = content[:at] + damage * 4096 + content[at + 4096 :]
        file.write_bytes(damaged)
        (skip,) = losses(tars)
        assert skip.rows == pytest.approx(5, abs=2)
        file.write_bytes(content)
    assert losses(tars) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS; fetch the file itself"),
        (gzip.compress(b"0" * 5000), "is compressed; decompress it"),
    ],
)
def test_a_file_that_is_no_tar_is_named(tars, content, message):
    (tars / "1.tar").write_bytes(content)
    (skip,) = losses(tars)
    assert message in skip.detail


def test_two_tars_written_one_behind_the_other_are_reported(tars):
    first, second = tars / "0.tar", tars / "1.tar"
    first.write_bytes(first.read_bytes() + second.read_bytes())
    (skip,) = losses(tars)
    assert "zeros, with more members after them" in skip.detail
    assert skip.rows == pytest.approx(ROWS, abs=4)


def test_parquet_files_know_their_rows(tmp_path):
    write_parquet(tmp_path / "set", files=4, rows=20, group=5)
    file = sorted((tmp_path / "set").glob("*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 10 : len(content) // 5] = bytes(len(content) // 5 - len(content) // 10)
    file.write_bytes(content)
    skips = losses(tmp_path / "set", "parquet")
    assert skips
    assert all(skip.rows <= 5 for skip in skips)
    assert sum(skip.share for skip in skips) == pytest.approx(sum(skip.rows for skip in skips) / 80)
    cut_to(file, 0.9)  # without its footer
    (skip,) = losses(tmp_path / "set", "parquet")
    assert skip.rows == pytest.approx(18, abs=3)


def test_a_source_that_cannot_tell_has_lost_as_much_as_it_gave_or_a_whole_shard():
    window = ShardCursor(Shards(10, 10, broken={1: 4}), "set", 1, 0, 1, 100, 60.0, Mark()).read_window(Mark())
    (skip,) = window.skips
    assert (skip.rows, skip.share) == (4, 4 / 16)
    window = ShardCursor(Shards(10, 10, broken={1: 0}), "set", 1, 0, 1, 100, 60.0, Mark()).read_window(Mark())
    (skip,) = window.skips
    assert (skip.rows, skip.share) == (0, 0.5)


def test_one_broken_shard_of_many_ends_no_run_however_early_it_comes_and_counts_once():
    skip = BrokenShard("set", "a.tar", "broken shard", "cut", 500, 0.0005)
    ledger = SkipLedger(0.05)
    for _ in range(3):
        ledger.add({"set": 12}, [skip])
    assert ledger.explain_problem() == ""
    again = SkipLedger(0.05, json.loads(json.dumps(ledger.counts())))
    assert again.shards == {"set": {"a.tar": (500, 0.0005, "cut")}}
    said = SkipLedger(0.05)
    (sentence,) = again.report_new_shards(said)
    assert sentence == (
        "dataset set: shard a.tar is broken (cut): about 500 of its rows are lost, 0.1% of the dataset"
    )
    assert again.report_new_shards(said) == []


def test_rows_and_shards_count_together():
    ledger = SkipLedger(0.05)
    ledger.add({"set": 100}, [BrokenShard("set", "a.tar", "broken shard", "cut", 30, 0.06)])
    assert ledger.explain_problem().startswith(
        "set lost about 30 rows, 6.0% of the dataset, in 1 broken shard(s)"
    )


def test_a_shard_that_is_not_there_is_named_once_without_a_number_of_rows():
    url = "http://host/b.tar"
    skip = BrokenShard.estimate("set", url, 4, 0, RowError("broken shard", f"{url}: 404 Not Found"))
    ledger = SkipLedger(0.05)
    ledger.add({"set": 32}, [skip])
    assert ledger.report_new_shards(SkipLedger(0.05)) == [
        f"dataset set: shard {url} is broken (404 Not Found): all of its rows are lost, 25.0% of the dataset"
    ]
    assert ledger.explain_problem() == (
        f"set lost 25.0% of the dataset in 1 broken shard(s) (the first is {url}: 404 Not Found) and 0 of 32 other "
        "rows, more than data.max_skipped_share=0.05 allows; skipped.jsonl names them"
    )


def test_broken_shards_still_raise_behind_their_rows(tars):
    cut_to(tars / "0.tar", 0.5)
    source = open_source(card(tars.parent, {"webdataset": str(tars)}), "train")
    with pytest.raises(BrokenShardError, match="truncated at byte") as problem:
        list(source.read(0, Place()))
    assert problem.value.is_cut
