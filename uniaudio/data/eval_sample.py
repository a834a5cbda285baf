"""Which rows of an evaluation set a cap takes: a sample over all of its classes, the same every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from uniaudio.data.permutation import hash_parts
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.errors import RowError

MOST_CANDIDATES = 20_000  # rows that are looked at to choose among; a larger set is sampled in two steps
STREAMED_CANDIDATES = (
    10  # of a source without an index, for each row that is wanted: looking at a row means reading it
)
Address = tuple[int, int]  # shard and row in it; of a source by index (0, index)


@dataclass(frozen=True)
class EvalSample:
    """The rows of an evaluation set that are evaluated.

    Args:
        addresses: in the order of the source; None for all of its rows.
        rows: of the whole split; None where only reading all of it would tell.
    """

    addresses: tuple[Address, ...] | None
    rows: int | None


class EvalSamples:
    """Chooses the samples of evaluation sets and remembers them: a run evaluates the same sets again and again."""

    def __init__(self) -> None:
        self.samples: dict[tuple[object, ...], EvalSample] = {}

    def choose(self, entry: EvalEntry, source: Source, limit: int | None) -> EvalSample:
        """Choose as ``choose_sample`` does, once for each set and limit."""
        key = (str(entry.dataset.path), entry.name, entry.split, limit, getattr(source, "shards", ()))
        if key not in self.samples:
            self.samples[key] = choose_sample(entry, source, limit)
        return self.samples[key]


def choose_sample(entry: EvalEntry, source: Source, limit: int | None) -> EvalSample:
    """Choose at most ``limit`` rows of a set, spread over the answers that they have.

    Every class (rows with the same right answer) keeps its share of the rows, and has one at least where the limit
    allows. Where there are more different answers than rows are wanted, as with transcripts, rows are drawn from all
    alike. Which ones is a function of the dataset's name and the rows' keys alone, so every run, model and process
    takes the same rows.

    A large set is looked at in part. Of a source with an index these are ``MOST_CANDIDATES`` rows from all of it; of
    another ``STREAMED_CANDIDATES`` for each row that is wanted, as many from the beginning of each shard.
    """
    if limit is None or (source.size is not None and source.size <= limit):
        return EvalSample(None, source.size)
    groups: dict[str | None, list[tuple[int, Address]]] = defaultdict(list)
    looked_at = 0
    for address, row in iterate_candidates(entry, source, limit):
        key = row.key if isinstance(row, Row) else str(address)
        groups[render_answer(row, entry)].append((hash_parts("evaluate", entry.dataset.name, key), address))
        looked_at += 1
    rows = source.size
    if rows is None and looked_at < limit * STREAMED_CANDIDATES:
        rows = looked_at
    if rows is not None and rows <= limit:
        return EvalSample(None, rows)
    return EvalSample(tuple(sorted(draw_addresses(groups, limit))), rows)


def iterate_candidates(
    entry: EvalEntry, source: Source, limit: int
) -> Iterator[tuple[Address, Row | RowError]]:
    """Yield the rows to choose among with their addresses; rows that the split does not keep are none."""
    if isinstance(source, IndexedSource):
        indices: Sequence[int] = range(source.size)
        if source.size > MOST_CANDIDATES:
            # one of each of so many stretches of equal length, so that all of the set is seen whatever its order
            stretch = source.size / MOST_CANDIDATES
            offsets = (hash_parts("candidate", entry.dataset.name, i) / 2**64 for i in range(MOST_CANDIDATES))
            indices = [int((i + offset) * stretch) for i, offset in enumerate(offsets)]
        for index in indices:
            yield (0, index), source.read_row_or_error(index)
    else:
        share = -(-limit * STREAMED_CANDIDATES // max(len(source.shards), 1))
        for shard in range(len(source.shards)):
            numbered = enumerate(source.shard_rows(shard))
            kept = (((shard, index), row) for index, row in numbered if row is not None)
            yield from islice(kept, share)


def render_answer(row: Row | RowError, entry: EvalEntry) -> str | None:
    """Return the first right answer of a row; None where it cannot be used."""
    if isinstance(row, RowError):
        return None
    try:
        return entry.render_question(row, entry.template).references[0]
    except RowError:
        return None


def draw_addresses(groups: Mapping[str | None, list[tuple[int, Address]]], limit: int) -> list[Address]:
    """Return ``limit`` addresses, those with the lowest numbers of every group."""
    if len(groups) > limit:
        everything = sorted(pair for pairs in groups.values() for pair in pairs)
        return [address for _, address in everything[:limit]]
    total = sum(map(len, groups.values()))
    shares = {answer: limit * len(pairs) / total for answer, pairs in groups.items()}
    counts = {answer: max(1, int(share)) for answer, share in shares.items()}
    # rounding leaves some to give, and classes that have their one row more than their share some to take
    while (rest := limit - sum(counts.values())) != 0:
        step = 1 if rest > 0 else -1
        changeable = [answer for answer in groups if rest > 0 or counts[answer] > 1]
        owed = max(changeable, key=lambda answer: (step * (shares[answer] - counts[answer]), str(answer)))
        counts[owed] += step
    return [address for answer, pairs in groups.items() for _, address in sorted(pairs)[: counts[answer]]]


def sample_indexed_rows(source: Source, sample: EvalSample) -> Iterator[Row | RowError]:
    """Yield the rows of a sample in the order of the source; those that cannot be used come as their error."""
    if sample.addresses is None:
        yield from source.rows()
    elif isinstance(source, IndexedSource):
        yield from (source.read_row_or_error(index) for _, index in sample.addresses)
    else:
        wanted = defaultdict(set)
        for shard, index in sample.addresses:
            wanted[shard].add(index)
        for shard, indices in sorted(wanted.items()):
            for index, row in enumerate(islice(source.shard_rows(shard), max(indices) + 1)):
                if index in indices and row is not None:
                    yield row
