"""Which rows of an evaluation set are asked, and their examples: in order, the first wording, long clips in windows."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from uniaudio.data.long_clips import REST, cut_long_clips
from uniaudio.data.permutation import hash_parts
from uniaudio.data.recipe_entries import EvalEntry, open_entry
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import IndexedSource, Row, ShardedSource, Source, decode_clips
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import Example

MOST_CANDIDATES = 20_000  # rows that are looked at to choose among; a larger set is sampled in two steps
# of a source without an index, for each row that is wanted: looking at a row means reading it
STREAMED_CANDIDATES = 10
Address = tuple[int, int]  # shard and row in it; of a source by index (0, index)
LONGEST_CLIP = 600.0  # seconds of a clip that is evaluated as a whole, where `long_clips` does not say


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

    A large set is looked at in part. Of a source with an index these are up to ``MOST_CANDIDATES`` rows from all of it,
    or all rows where that many do not suffice; of another ``STREAMED_CANDIDATES`` for each row that is wanted, as many
    from the beginning of each shard (see ``add_shard_rows``).
    """
    if limit is None or (source.size is not None and source.size <= limit):
        return EvalSample(None, source.size)
    candidates = Candidates(entry)
    rows = source.size
    if isinstance(source, IndexedSource):
        for index in choose_candidate_indices(entry.dataset.name, source.size, limit):
            candidates.add((0, index), source.read_row_or_error(index))
    elif add_shard_rows(candidates, source, limit) and rows is None:
        rows = candidates.count
    if rows is not None and rows <= limit:
        return EvalSample(None, rows)
    return EvalSample(tuple(sorted(draw_addresses(candidates.groups, limit))), rows)


@dataclass
class Candidates:
    """The rows to choose among: numbers that decide between them, and addresses, by their first right answer.

    Args:
        groups: rows that cannot be used stand under None. count: of all rows.
    """

    entry: EvalEntry
    groups: dict[str | None, list[tuple[int, Address]]] = field(default_factory=dict)
    count: int = 0

    def add(self, address: Address, row: Row | RowError) -> None:
        """Add a row by its address."""
        key = row.key if isinstance(row, Row) else str(address)
        number = hash_parts("evaluate", self.entry.dataset.name, key)
        self.groups.setdefault(render_answer(row, self.entry), []).append((number, address))
        self.count += 1


def choose_candidate_indices(name: str, size: int, limit: int) -> Sequence[int]:
    """Return the indices of the rows to choose among: all, or one of each of ``MOST_CANDIDATES`` stretches of rows.

    Args:
        name: of the dataset. size: rows of the source. limit: rows that are wanted.
    """
    if size <= MOST_CANDIDATES:
        return range(size)
    # stretches of equal length, so that all of the set is seen whatever its order
    stretch = size / MOST_CANDIDATES
    offsets = (hash_parts("candidate", name, i) / 2**64 for i in range(MOST_CANDIDATES))
    # a row that lies in two stretches may be drawn of both, and is a candidate once
    indices = list(dict.fromkeys(int((i + offset) * stretch) for i, offset in enumerate(offsets)))
    return indices if len(indices) >= limit else range(size)


def add_shard_rows(candidates: Candidates, source: ShardedSource, limit: int) -> bool:
    """Add as many rows of the beginning of each shard, and return whether these are all rows of the split.

    Where a split has most of its rows in few shards, these are read further, until there are enough candidates.

    Args:
        limit: rows that are wanted.
    """
    wanted = limit * STREAMED_CANDIDATES
    shards: Sequence[int] = range(len(source.shards))
    first, end = 0, -(-wanted // max(len(shards), 1))
    while True:
        unread = []  # shards with more rows
        for shard in shards:
            numbered = enumerate(source.shard_rows(shard))
            kept = ((index, row) for index, row in numbered if row is not None)
            for index, row in islice(kept, first, end):
                candidates.add((shard, index), row)
            if next(kept, None) is not None:
                unread.append(shard)
        if not unread or candidates.count >= limit:
            return not unread
        shards, first, end = unread, end, end + -(-(wanted - candidates.count) // len(unread))


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


def build_example(row: Row, entry: EvalEntry, max_seconds: float) -> tuple[Example, tuple[str, ...]]:
    """Decode and render one row with the first wording; return it with all its right answers.

    Raises:
        RowError: when the row cannot be used.
    """
    rendered = entry.render_question(row, entry.template)
    clips = decode_clips(row, max_seconds)
    if entry.augmenter is not None:
        with convert_to_row_error("broken audio", row.key):
            rng = random.Random(hash_parts("condition", row.key))
            clips = tuple(entry.augmenter.augment(clip, rng) for clip in clips)
    example = Example(
        id=f"{entry.dataset.name}/{entry.split}/{row.key}",
        task=entry.template.task,
        dataset=entry.dataset.name,
        clips=clips,
        prompt=rendered.prompt,
        answer=rendered.answer,
        window=row.window,
    )
    return example, rendered.references


def iterate_windows(
    row: Row, entry: EvalEntry, window_seconds: float
) -> Iterator[tuple[Example, tuple[str, ...]]]:
    """Yield the examples of a row with all its right answers: one, or one for each window of a long clip, in order.

    Args:
        window_seconds: length of windows and crops where ``long_clips`` does not say.

    Raises:
        RowError: when the row, or one of its windows, cannot be used.
    """
    long_clips = entry.choose_long_clips(window_seconds)
    longest = LONGEST_CLIP
    if long_clips.seconds is not None:
        is_limit = long_clips.how == "skip"
        longest = long_clips.seconds if is_limit else max(longest, long_clips.seconds + REST)
    for piece in cut_long_clips(row, long_clips):
        yield build_example(piece, entry, longest)


@dataclass(frozen=True)
class EvalExamples:
    """The examples of an evaluation entry: all of them, or a sample (see ``choose_sample``)."""

    entry: EvalEntry
    source: Source
    sample: EvalSample

    @property
    def rows(self) -> int | None:
        """How many rows the split has; None where only reading all of it would tell."""
        return self.sample.rows

    @property
    def size(self) -> int | None:
        """How many of them are evaluated."""
        return self.sample.rows if self.sample.addresses is None else len(self.sample.addresses)


def open_examples(entry: EvalEntry, limit: int | None, samples: EvalSamples | None = None) -> EvalExamples:
    """Open the rows of an evaluation entry, at most ``limit`` of them.

    Args:
        samples: chooses which, and remembers the choice where the set is opened again.

    Raises:
        UserError: when the source cannot be opened.
    """
    entry, source = open_entry(entry)
    return EvalExamples(entry, source, (samples or EvalSamples()).choose(entry, source, limit))


def iterate_examples(
    examples: EvalExamples, window_seconds: float, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, tuple[Example, tuple[str, ...]] | Skip]]:
    """Yield examples with all their right answers, and the place of their row, in the order of the source.

    The windows of a long clip follow one another. A row that cannot be used comes as ``Skip``, once; windows of it may
    have come before.

    Args:
        window_seconds: see ``iterate_windows``.
        share: (i, n) takes every n-th row from row i on; the others are not decoded.
    """
    entry = examples.entry
    first, step = share
    for place, row in islice(
        enumerate(sample_indexed_rows(examples.source, examples.sample)), first, None, step
    ):
        name = entry.dataset.name
        if isinstance(row, RowError):
            yield place, Skip.of(name, f"row {place}", row)
            continue
        try:
            for item in iterate_windows(row, entry, window_seconds):
                yield place, item
        except RowError as problem:
            yield place, Skip.of(name, row.key, problem)
