"""Which rows of which dataset are drawn, for which step: logical streams, each a pure function of its position.

The examples of a run come from a fixed number of logical streams. Micro-batch ``m`` of the run is the next one of
stream ``m mod streams``. Every stream draws its own part of every source, so ranks and workers share the streams out
among themselves and read nothing twice; which rank or worker serves a stream changes nothing in what it gives.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from uniaudio.config.limits import MAX_TEXT_TOKENS
from uniaudio.data.batching import PlannedRow, compute_row_cost, make_micro_batches
from uniaudio.data.long_clips import LongClips, cut_long_clips, measure_clips
from uniaudio.data.permutation import count_draws_before, derive_phase, hash_parts, make_row_rng
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry
from uniaudio.data.sampler import Cut, IndexedCursor, Mark, ShardCursor, WindowCursor
from uniaudio.data.segment import TIME_COLUMNS
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.sources.retries import MAX_OUTAGE
from uniaudio.data.template import Rendered
from uniaudio.errors import RowError, UserError
from uniaudio.types import SAMPLE_RATE

# questions that cannot be used, one after the other, before a stream gives up; pools of few rows are none by chance
MOST_UNUSABLE = 16


@dataclass(frozen=True)
class StreamState:
    """The position of one logical stream.

    Args:
        pool: index of its pool. taken: micro-batches of it that are used up.
        marks: entry index to ``Mark`` at the beginning of the pool, for sources without an index.
    """

    pool: int = 0
    taken: int = 0
    marks: Mapping[int, Mark] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        """Return plain values, few of them: a run has as many states as streams."""
        return [self.pool, self.taken, {str(entry): list(mark) for entry, mark in self.marks.items()}]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> StreamState:
        """Read what ``to_json`` wrote."""
        return cls(data[0], data[1], {int(entry): Mark(*mark) for entry, mark in data[2].items()})


@dataclass(frozen=True)
class PlannedBatch:
    """One micro-batch: its rows, what was left out on the way to it, the draws behind it, and the position then."""

    rows: tuple[PlannedRow, ...]
    skips: tuple[Skip, ...]
    drawn: Mapping[str, int]
    state: StreamState

    @property
    def cost(self) -> float:
        """Share of the budget that is used."""
        return sum(row.cost for row in self.rows)


@dataclass(frozen=True)
class Mixture:
    """A recipe over open sources with everything that its order depends on.

    Args:
        audio_seconds, per_example, tokens: budget of a micro-batch; a row costs its seconds plus ``per_example`` of the
            first, and the tokens of its questions of the last (None: not counted), a shared beginning once.
        pool: examples that a stream sorts by length together. window: rows of a shard that are shuffled together.
        micro_batches: of one step, over all ranks. streams: logical streams, a multiple of ``micro_batches``.
        count_slots: audio tokens of a clip of so many samples.
        patience: seconds to wait for a read. max_outage: seconds of pauses that are added in an outage of the network.
        shares_prefixes: whether questions about the same clips may share the beginning of their prompts.
    """

    recipe: Recipe
    sources: Sequence[Source]
    format: ChatFormat
    count_slots: Callable[[int], int]
    seed: int
    audio_seconds: float
    per_example: float
    max_seconds: float
    micro_batches: int
    streams: int
    tokens: int | None = None
    pool: int = 256
    window: int = 256
    patience: float = 300.0
    max_outage: float = MAX_OUTAGE
    shares_prefixes: bool = False

    @cached_property
    def source_fingerprints(self) -> dict[str, str]:
        """What tells whether the rows of each entry are still the same, by the entry's name."""
        return {
            entry.name: source.fingerprint(used_columns(entry))
            for entry, source in zip(self.recipe.train, self.sources, strict=True)
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides about the order: a position means something under the same one only."""
        facts: tuple[Any, ...] = (
            [(entry.name, repr(entry.constants), entry.share) for entry in self.recipe.train],
            list(self.source_fingerprints.values()),
            (self.audio_seconds, self.per_example, self.tokens, self.max_seconds),
            (self.pool, self.window, self.micro_batches, self.streams),
        )
        # checkpoints from before there was this limit go on
        if self.format.max_text_tokens != MAX_TEXT_TOKENS:
            facts += ((self.format.max_text_tokens,),)
        if any(long_clips != LongClips("skip") for long_clips in self.long_clips):
            facts += (self.long_clips,)
        stretches = [entry.longest_stretch for entry in self.recipe.train]
        if any(stretch != 1 for stretch in stretches):
            facts += (("stretch", stretches),)
        return f"{hash_parts(self.seed, repr(facts)):016x}"

    @cached_property
    def long_clips(self) -> tuple[LongClips, ...]:
        """What becomes of the long clips of each entry, with its lengths stated.

        Raises:
            UserError: for crops and windows that are longer than the longest clip.
        """
        return tuple(
            entry.choose_long_clips(self.max_seconds, f"recipe {self.recipe.name}: {entry.name}")
            for entry in self.recipe.train
        )

    def iterate_stream(
        self, index: int, state: StreamState | None = None, say: Callable[[str], None] = lambda what: None
    ) -> Iterator[PlannedBatch]:
        """Yield the endless micro-batches of a logical stream from a position on.

        Args:
            say: is told of every row before it is touched.

        Raises:
            UserError: when whole pools hold nothing that can be used, or a source has no rows.
        """
        return LogicalStream(self, index, state or StreamState(), say).iterate_batches()


def explain_unusable_rows(skips: Sequence[Skip], draws: int) -> str:
    """Return a sentence about draws that gave nothing to train on, with the first row of each dataset and reason."""
    first = {(skip.source, skip.reason): skip for skip in reversed(skips)}
    reasons = [f"{s.source}: {s.reason}, as row {s.row}, {s.detail}" for _, s in sorted(first.items())]
    return f"none of {draws} rows in a row can be used ({'; '.join(reasons)})"


def used_columns(entry: Entry) -> frozenset[str]:
    """Return the columns of a source's rows that the card, its split and the templates of an entry may read."""
    card = entry.dataset
    keep = card.split(entry.split).keep
    return frozenset[str]().union(
        card.audio,
        TIME_COLUMNS,
        ("duration", "segment_start", "segment_end"),  # what sources themselves read
        card.time_columns,
        keep.names if keep is not None else (),
        *(text.names for text in card.columns.values()),
        *(template.inputs for template in entry.templates),
    )


class LogicalStream:
    """One stream of a mixture: pools of rows, sorted by length and cut into micro-batches."""

    def __init__(self, mixture: Mixture, index: int, state: StreamState, say: Callable[[str], None]) -> None:
        self.mixture, self.index, self.state, self.say = mixture, index, state, say
        self.cursors = [self.open_cursor(entry) for entry in range(len(mixture.sources))]
        self.phases = [derive_phase(mixture.seed, entry.name, index) for entry in mixture.recipe.train]

    def open_cursor(self, entry: int) -> IndexedCursor | WindowCursor | ShardCursor:
        mixture, source = self.mixture, self.mixture.sources[entry]
        seed = hash_parts(mixture.seed, mixture.recipe.train[entry].name)
        mark = self.state.marks.get(entry, Mark())
        long_clips = mixture.long_clips[entry]
        cut: Cut | None = None
        if long_clips.how == "windows":
            cut = partial(cut_long_clips, long_clips=long_clips)
        if isinstance(source, IndexedSource):
            rows = IndexedCursor(source, seed, self.index, mixture.streams)
            return rows if cut is None else WindowCursor(rows, mixture.window, cut, mark)
        return ShardCursor(
            source,
            mixture.recipe.train[entry].dataset.name,
            seed,
            self.index,
            mixture.streams,
            mixture.window,
            mixture.patience,
            mark,
            mixture.max_outage,
            cut,
        )

    def marks(self) -> dict[int, Mark]:
        return {
            i: cursor.mark for i, cursor in enumerate(self.cursors) if not isinstance(cursor, IndexedCursor)
        }

    def iterate_batches(self) -> Iterator[PlannedBatch]:
        """Yield micro-batch after micro-batch, pool after pool."""
        pool, taken = self.state.pool, self.state.taken
        pending: list[Skip] = []
        drawn: Counter[str] = Counter()
        unusable: list[Skip] = []  # of the pools since a row that could be used
        barren = 0  # draws of these pools
        while True:
            marks = self.marks()
            rows, skips, draws = self.draw_pool(pool)
            unusable, barren = ([], 0) if rows else ([*unusable, *skips], barren + draws.total())
            if barren >= MOST_UNUSABLE:
                raise UserError(explain_unusable_rows(unusable, barren))
            batches = make_micro_batches(rows, hash_parts(self.mixture.seed, "pool", self.index, pool))
            if taken == 0:  # a continued pool has told of them before
                pending += skips
                drawn.update(draws)
            for index in range(taken, len(batches)):
                yield PlannedBatch(batches[index], tuple(pending), drawn, StreamState(pool, index + 1, marks))
                pending, drawn = [], Counter()
            pool, taken = pool + 1, 0

    def draw_pool(self, pool: int) -> tuple[list[PlannedRow], list[Skip], Counter[str]]:
        """Draw the rows of a pool; leave out what can be ruled out without decoding. Counts draws by dataset."""
        rows: list[PlannedRow] = []
        skips: list[Skip] = []
        draws: Counter[str] = Counter()
        size = self.mixture.pool
        for i, (entry, cursor) in enumerate(zip(self.mixture.recipe.train, self.cursors, strict=True)):
            first, end = (count_draws_before(entry.share, self.phases[i], size * p) for p in (pool, pool + 1))
            for j in range(first, end):
                k = j * self.mixture.streams + self.index
                self.say(f"{entry.dataset.name}, the row of draw {k}")
                row = cursor.take(j) if isinstance(cursor, IndexedCursor) else cursor.take()
                rows += self.plan_row(i, entry, k, row, skips)
            draws[entry.dataset.name] += (end - first) * len(entry.templates)
            if isinstance(cursor, ShardCursor):
                skips += cursor.take_troubles()
        return rows, skips, draws

    def plan_row(
        self, index: int, entry: Entry, k: int, row: Row | RowError, skips: list[Skip]
    ) -> list[PlannedRow]:
        """Return the row with its questions, or nothing; what is wrong with it goes to ``skips``, once per question."""
        name = entry.dataset.name
        num_questions = len(entry.templates)
        if isinstance(row, RowError):
            skips += [Skip.of(name, f"draw {k}", row)] * num_questions
            return []
        self.say(f"{name}, row {row.key}")
        try:
            row, seconds = self.fit_clips(index, entry, k, row)
            audio_tokens = sum(self.audio_tokens(seconds))
        except RowError as problem:
            skips += [Skip.of(name, row.key, problem)] * num_questions
            return []
        rng = make_row_rng(self.mixture.seed, entry.name, k)
        questions = []
        for template in entry.templates:
            try:
                rendered = entry.render_question(row, template, rng)
                self.check_texts(rendered, audio_tokens)
                questions.append((template.task, rendered))
            except RowError as problem:
                skips.append(Skip.of(name, row.key, problem))
        if not questions:
            return []
        texts = [rendered for _, rendered in questions]
        cost = compute_row_cost(self.mixture, seconds, texts, entry.longest_stretch)
        return [PlannedRow(index, k, row, sum(seconds), cost, tuple(questions))]

    def fit_clips(self, index: int, entry: Entry, k: int, row: Row) -> tuple[Row, list[float]]:
        """Return a row, cropped where its entry says so, and the seconds of every clip, when they can be used.

        The place of a crop is drawn by the example's generator: it depends on nothing but the seed and the draw.
        """
        mixture = self.mixture
        long_clips = mixture.long_clips[index]
        if long_clips.how == "crop":
            rng = random.Random(hash_parts("crop", mixture.seed, entry.name, k))
            (row,) = cut_long_clips(row, long_clips, rng)
        return row, measure_clips(row, long_clips, mixture.max_seconds)

    def audio_tokens(self, seconds: Sequence[float]) -> list[int]:
        """Return the audio tokens of clips of such lengths; none where the budget does not count tokens."""
        if self.mixture.tokens is None:
            return []
        return [self.mixture.count_slots(round(length * SAMPLE_RATE)) for length in seconds]

    def check_texts(self, rendered: Rendered, audio_tokens: int) -> None:
        """Refuse texts that cannot be used; the ids themselves are only looked at where the budget counts them."""
        if self.mixture.tokens is not None:
            self.mixture.format.check_question(rendered.prompt, rendered.answer, audio_tokens)
            return
        for text in (*rendered.prompt, rendered.answer):
            self.mixture.format.check_data_text(text)
