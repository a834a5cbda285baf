"""Examples to be asked in evaluation: in the order of the source, with the first wording, long clips in windows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from uniaudio.data.eval_sample import EvalSample, EvalSamples, sample_indexed_rows
from uniaudio.data.open_entries import open_entry
from uniaudio.data.permutation import hash_parts
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.data.row_clips import cut_long_clips, decode_clips
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import Row, Source
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import Example

LONGEST_CLIP = 600.0  # seconds of a clip that is evaluated as a whole, where `long_clips` does not say


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
    longest = (
        long_clips.seconds if long_clips.how == "skip" and long_clips.seconds is not None else LONGEST_CLIP
    )
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
