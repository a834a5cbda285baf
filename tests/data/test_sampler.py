"""Positions in sources: every row once per epoch over all streams, and the same rows again from any position."""

import struct
from collections import Counter

import pytest
from helpers.sources import Rows, Shards
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.data.sampler import IndexedCursor, Mark, ShardCursor, iterate_units
from uniaudio.errors import RowError, UserError


def cursor(source, stream=0, streams=1, size=4, mark=Mark(), seed=3):
    return ShardCursor(source, "set", seed, stream, streams, size, 5.0, mark)


def epoch_rows(source, stream, streams, epoch, size=4):
    """Keys that a stream takes while its mark is in one epoch."""
    reader, result = cursor(source, stream, streams, size), []
    while True:
        row = reader.take()
        if reader.mark.epoch == epoch:
            result.append(row.key)
        if reader.mark.epoch > epoch:
            return result


@given(size=st.integers(1, 60), streams=st.integers(1, 9), epochs=st.integers(1, 3))
def test_indexed_rows_come_once_in_each_epoch_over_all_streams(size, streams, epochs):
    cursors = [IndexedCursor(Rows(size), 1, stream, streams) for stream in range(streams)]
    rows = [cursors[k % streams].take(k // streams) for k in range(size * epochs)]
    for epoch in range(epochs):
        keys = [int(row.key) for row in rows[epoch * size : (epoch + 1) * size]]
        assert sorted(keys) == list(range(size))


def test_a_row_that_cannot_be_had_is_a_draw_like_any_other():
    taken = [IndexedCursor(Rows(5, bad={2}), 1, 0, 1).take(j) for j in range(5)]
    assert sum(isinstance(row, RowError) for row in taken) == 1


@given(shards=st.integers(1, 12), streams=st.integers(1, 12), epoch=st.integers(0, 5))
def test_units_deal_out_each_row_once(shards, streams, epoch):
    rows = Counter(
        (unit.shard, row)
        for stream in range(streams)
        for unit in iterate_units(shards, epoch, stream, streams, seed=1)
        for row in range(30)
        if row % unit.parts == unit.part
    )
    assert set(rows.values()) == {1}
    assert len(rows) == shards * 30


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    streams=st.integers(1, 5),
    size=st.integers(1, 7),
    epoch=st.integers(0, 2),
)
def test_sharded_rows_come_once_in_each_epoch_over_all_streams(counts, streams, size, epoch):
    if not sum(counts):
        return
    source = Shards(*counts)
    result = [key for stream in range(streams) for key in epoch_rows(source, stream, streams, epoch, size)]
    assert sorted(result) == sorted(f"{s}/{r}" for s, count in enumerate(counts) for r in range(count))


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    streams=st.integers(1, 4),
    size=st.integers(1, 7),
    first=st.integers(0, 25),
)
def test_a_position_gives_the_rest(counts, streams, size, first):
    source = Shards(*counts, hidden={(0, 1)})
    whole = cursor(source, streams - 1, streams, size)
    for _ in range(first):
        whole.take()
    again = cursor(Shards(*counts, hidden={(0, 1)}), streams - 1, streams, size, Mark(*whole.mark))
    assert [again.take().key for _ in range(12)] == [whole.take().key for _ in range(12)]
    assert again.mark == whole.mark


def test_a_continued_cursor_reads_no_more_than_a_window_again():
    source = Shards(10_000)
    reader = cursor(source, size=50)
    for _ in range(5020):
        reader.take()
    fresh = Shards(10_000)
    cursor(fresh, size=50, mark=reader.mark).take()
    assert fresh.opened[0] == (0, (5000, 50_000))
    assert fresh.rows_read <= 100  # the window, and the one behind it in the background


def test_windows_are_shuffled_and_epochs_differ():
    source = Shards(40)
    first, second = (epoch_rows(source, 0, 1, epoch, size=40) for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    in_order = [f"0/{i}" for i in range(40)]
    assert first != in_order
    assert second not in (in_order, first)


def test_a_broken_shard_is_reported_and_the_others_go_on():
    source = Shards(4, 4, 4, broken={1: 2})
    reader, keys = cursor(source, size=100), []
    for _ in range(10):
        keys.append(reader.take().key)
    assert sorted(keys) == ["0/0", "0/1", "0/2", "0/3", "1/0", "1/1", "2/0", "2/1", "2/2", "2/3"]
    [skip] = reader.take_troubles()
    assert (skip.source, skip.row, skip.reason, skip.detail) == (
        "set",
        "shard1",
        "broken shard",
        "cut at row 2",
    )
    assert reader.take_troubles() == []
    again = cursor(source, size=100, mark=reader.mark)
    again.take()
    assert all(message.row != "shard1" for message in again.take_troubles()) or again.mark.epoch == 1


def test_one_row_serves_every_stream_and_no_row_is_a_mistake():
    for stream in range(6):
        reader = cursor(Shards(1), stream, 6)
        assert [reader.take().key for _ in range(3)] == ["0/0"] * 3
    with pytest.raises(UserError, match="dataset set has no rows"):
        cursor(Shards(0, 0), 1, 4).take()
    with pytest.raises(UserError, match="dataset set has no rows; shard0: cut at row 0"):
        cursor(Shards(3, broken={0: 0})).take()


def test_a_stuck_read_names_the_shard():
    class Stuck(Shards):
        def read(self, shard, place):
            import time

            time.sleep(3)
            yield from super().read(shard, place)

    reader = ShardCursor(Stuck(5), "far", 0, 0, 1, 4, 0.2, Mark())
    with pytest.raises(UserError, match=r"dataset far: shard0 from row 0 on could not be read within 0\.2 s"):
        reader.take()


def test_whatever_ends_the_reading_of_a_shard_leaves_the_others():
    class Odd(Shards):
        def read(self, shard, place):
            yield from super().read(shard, place)
            if shard == 1:
                raise struct.error("odd header")

    reader = cursor(Odd(2, 2, 2), 0, 1)
    assert sorted(reader.take().key for _ in range(6)) == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    [skip, *_] = reader.take_troubles()
    assert (skip.row, skip.reason, skip.detail) == ("shard1", "broken shard", "shard1 (odd header)")
