"""``uniaudio data stats``: what a recipe holds, and how much of it a run will see."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from uniaudio.build.recipe_of_run import open_recipe
from uniaudio.checks.odd_clips import decode_some_clips
from uniaudio.config.path_variables import leave_unset_variables
from uniaudio.config.run import RunConfig
from uniaudio.console import make_console, make_table, print_warning
from uniaudio.data.batching import compute_audio_cost
from uniaudio.data.long_clips import LongClips, list_piece_spans, list_training_pieces, read_row_seconds
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry, open_entry
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.errors import RowError, UserError
from uniaudio.outputs import write_json
from uniaudio.units import SECONDS_PER_HOUR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 30
ROWS_DECODED, SECONDS_DECODED = 100, 600.0  # of every source, to see whether clips are odd
SUPPOSED_SECONDS = 10.0  # of a clip, where no length is known


@dataclass
class EntryStats:
    """What was seen of one line of a recipe.

    Args:
        rows: of the source, None where nobody knows. looked_at, unusable: rows read here. hours: counted, or estimated
            from the rows read where ``estimated``. epochs: over the steps asked about. examples: of an epoch, more
            than rows where clips are cut into windows.
        seconds: of the examples that the rows read are trained as, before augmentation: crops and windows where long
            clips are cut.
        notes: what becomes of long clips, what is skipped, and what is odd about clips.
    """

    name: str
    share: float
    rows: int | None
    looked_at: int = 0
    unusable: int = 0
    hours: float | None = None
    estimated: bool = False
    epochs: float | None = None
    examples: float | None = None
    seconds: list[float] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def questions(self) -> float:
        """Mean number of questions about a clip, of the rows read that can be used."""
        usable = self.looked_at - self.unusable
        return len(self.answer_words) / usable if usable else 1.0

    @property
    def mean_seconds(self) -> float:
        """Mean length of the examples, before augmentation."""
        return float(np.mean(self.seconds)) if self.seconds else SUPPOSED_SECONDS


def measure_entry(entry: Entry, limit: int, longest: float = math.inf) -> EntryStats:
    """Read the first rows of a source: lengths from rows or headers, answers as they would be learned.

    Args:
        limit: of the rows that are read. longest: seconds of the longest clip of the run.

    Raises:
        UserError: when the source cannot be opened, or the entry's `long_clips` does not fit the run.
    """
    entry, source = open_entry(entry)
    long_clips = entry.choose_long_clips(longest, entry.name)
    stats = EntryStats(entry.name, entry.share, source.size)
    usable: list[Row] = []
    whole_seconds, num_cut, reasons = 0.0, 0, Counter[str]()
    for row in islice(source.rows(), limit):
        stats.looked_at += 1
        try:
            if not isinstance(row, Row):
                raise row
            answers = render_answers(entry, row)
            pieces = list_training_pieces(row, long_clips, longest)
        except RowError as problem:
            reasons[problem.reason] += 1
            continue
        whole_seconds += sum(read_row_seconds(row))
        num_cut += any(span is not None for piece, _ in pieces for span in list_piece_spans(row, piece))
        stats.seconds += [sum(lengths) for _, lengths in pieces]
        stats.answer_words += [len(answer.split()) for answer in answers]
        if len(usable) < ROWS_DECODED:
            usable.append(row)
    if skipped := describe_left_out(source.left_out):
        stats.notes.append(f"skipped: {skipped}")
    if unusable := describe_left_out(reasons):
        stats.unusable = reasons.total()
        stats.notes.append(f"rows that cannot be used: {unusable}")
    stats.notes += note_long_clips(stats, long_clips, num_cut, reasons["clip too long"])
    stats.notes += decode_some_clips(usable, SECONDS_DECODED).describe()
    total = stats.looked_at if stats.looked_at < limit else stats.rows
    stats.rows = stats.rows if stats.rows is not None else total
    if total and stats.looked_at:
        stats.hours = whole_seconds / SECONDS_PER_HOUR * total / stats.looked_at
        stats.examples = len(stats.seconds) / stats.looked_at * total
        stats.estimated = total > stats.looked_at
    elif stats.looked_at:
        stats.hours, stats.estimated = entry.dataset.split(entry.split).hours, True
    return stats


def render_answers(entry: Entry, row: Row) -> list[str]:
    """Return the answers to the questions about a row that can be asked, as in training.

    Raises:
        RowError: when none can be.
    """
    answers, problems = [], []
    for template in entry.templates:
        try:
            answers.append(entry.render_question(row, template).answer)
        except RowError as problem:
            problems.append(problem)
    if not answers:
        raise problems[0]
    return answers


def note_long_clips(stats: EntryStats, long_clips: LongClips, num_cut: int, num_too_long: int) -> list[str]:
    """Return what training makes of the clips that are too long, as a line; nothing where there are none.

    Args:
        num_cut, num_too_long: rows of those read whose clips are cropped or cut, or that are skipped.
    """
    if num_too_long:
        return [
            f"{num_too_long} of {stats.looked_at} rows read have clips that are too long for "
            "training and are skipped; `long_clips: crop` or `windows` would use a part or all of "
            "each"
        ]
    if num_cut:
        num_examples = (
            f", which makes {len(stats.seconds)} examples of them" if long_clips.how == "windows" else ""
        )
        return [
            f"long_clips: {long_clips.how} of {long_clips.seconds:g} s: cuts {num_cut} of "
            f"{stats.looked_at} rows read{num_examples}; lengths below are those of the pieces, "
            "hours those of the recordings"
        ]
    return []


def show_hours(name: str, out: Path | None, console: Console | None = None) -> float:
    """Print the hours that the cards of a recipe state for the splits it trains on, and return their sum.

    No data are opened, and folders that cards name by a variable need not be there. A split that several lines draw
    from counts once; a set of unknown hours counts as none.
    """
    console = console or make_console()
    with leave_unset_variables():
        recipe = open_recipe(name).recipe
    stats, hours = [], {}
    for entry in recipe.train:
        split = entry.dataset.split(entry.split)
        stats.append(EntryStats(entry.name, entry.share, split.rows, hours=split.hours))
        hours[entry.dataset.name, entry.split] = split.hours
    total = sum(value or 0.0 for value in hours.values())
    title = f"recipe {recipe.name}, hours as stated in the cards"
    table = make_table(title, "dataset:template", "hours", "share", numbers=2)
    for one in stats:
        table.add_row(one.name, "?" if one.hours is None else f"{one.hours:,.2f}", f"{one.share:.1%}")
    unknown = sum(value is None for value in hours.values())
    note = f" (and {unknown} of unknown length)" if unknown else ""
    table.add_row(f"{len(hours)} splits{note}", f"{total:,.2f}", "", style="bold")
    console.print(table)
    if out is not None:
        write_json(out, [asdict(one) for one in stats])
    return total


def estimate_examples_per_step(recipe: Recipe, stats: list[EntryStats], config: RunConfig) -> float:
    """Return the rows that one optimizer step takes on average, from the budget and the mean lengths.

    Args:
        stats: of the entries that the recipe trains on, in their order.
    """
    budget = config.stages[0].budget
    cost = sum(
        s.share * compute_audio_cost(s.mean_seconds, s.questions, budget.per_example, entry.longest_stretch)
        for entry, s in zip(recipe.train, stats, strict=True)
    )
    return (config.train.micro_batches or 1) * budget.audio_seconds / cost


def compute_mean_seconds(recipe: Recipe, stats: list[EntryStats]) -> float:
    """Return the mean length of the clips as they are drawn, as expected after augmentation."""
    return sum(
        s.share * s.mean_seconds * entry.mean_stretch for entry, s in zip(recipe.train, stats, strict=True)
    )


def count_stage_steps(recipe: Recipe, stats: list[EntryStats], config: RunConfig) -> int:
    """Return the steps of the first stage up to ``train.max_steps``, estimated where hours of audio end it."""
    stage = config.stages[0]
    steps = stage.steps
    if steps is None:
        seconds = estimate_examples_per_step(recipe, stats, config) * compute_mean_seconds(recipe, stats)
        steps = round(SECONDS_PER_HOUR * (stage.hours or 0) / seconds)
    return min(steps, config.train.max_steps or steps)


def show_stats(
    name: str,
    steps: int | None,
    limit: int,
    out: Path | None,
    plot: Path | None,
    console: Console | None = None,
) -> list[EntryStats]:
    """Print the table, and write JSON and a figure where paths are given.

    Args:
        name: recipe or run config. steps: optimizer steps that epochs are counted for (default: those of the stage).

    Raises:
        UserError: for steps without a run config, which alone knows how large a step is.
    """
    console = console or make_console()
    opened = open_recipe(name)
    recipe, config = opened.recipe, opened.config
    if steps is not None and config is None:
        raise UserError(
            f"--steps needs a run config, which determines the size of a step; {name} is a recipe"
        )
    stats = []
    for entry in recipe.train:
        with console.status(f"reading {entry.name}"):
            stats.append(measure_entry(entry, limit, opened.longest_clip))
    if config is not None:
        steps = steps or count_stage_steps(recipe, stats, config)
        examples = steps * estimate_examples_per_step(recipe, stats, config)
        for entry_stats in stats:
            if entry_stats.examples:
                entry_stats.epochs = entry_stats.share * examples / entry_stats.examples
    console.print(build_stats_table(recipe.name, stats, steps))
    for entry_stats in stats:
        for note in entry_stats.notes:
            print_warning(f"{entry_stats.name}: {note}", console)
    if out is not None:
        write_json(out, [asdict(one) for one in stats])
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_lengths(stats).savefig(plot, dpi=120, format="png")  # whatever the file is called
        console.print(f"figure: {plot}")
    return stats


def build_stats_table(name: str, stats: list[EntryStats], steps: int | None) -> Table:
    """Lay out one row per line of the recipe."""
    unusable = any(s.unusable for s in stats)
    columns = ["rows", "hours", "s min, median, max", "words", "share"]
    columns += [*(["epochs"] if steps else []), *(["unusable"] if unusable else [])]
    title = f"recipe {name}{f', {steps} steps' if steps else ''}"
    table = make_table(title, "dataset:template", *columns, numbers=len(columns))
    for s in stats:
        lengths = np.percentile(s.seconds, [0, 50, 100]) if s.seconds else [float("nan")] * 3
        hours = "?" if s.hours is None else f"{'~' if s.estimated else ''}{s.hours:.2f}"
        words = f"{np.mean(s.answer_words):.1f}" if s.answer_words else "?"
        cells = [s.name, "?" if s.rows is None else f"{s.rows:,}", hours]
        cells += [" ".join(f"{x:.1f}" for x in lengths), words, f"{s.share:.1%}"]
        if steps:
            cells.append("?" if s.epochs is None else f"{s.epochs:.1f}")
        if unusable:
            cells.append(f"{s.unusable} of {s.looked_at}")
        table.add_row(*cells)
    return table


def draw_lengths(stats: list[EntryStats]) -> Figure:
    """Draw for every source how long its clips and its answers are."""
    import matplotlib  # of an optional extra
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(9, 1.2 + 1.5 * len(stats)), layout="constrained")
        rows: Any = figure.subplots(len(stats), 2, squeeze=False, sharex="col")
        for s, (lengths, words) in zip(stats, rows, strict=True):
            lengths.hist(s.seconds, bins=BINS, color="#4c78a8")
            most = max([*s.answer_words, 1])
            words.hist(s.answer_words, bins=range(1, most + 2), color="#f58518", align="left")
            words.xaxis.set_major_locator(MaxNLocator(integer=True))
            lengths.set_xlim(left=0)
            lengths.set_title(s.name, loc="left", fontsize=9)
            lengths.set_ylabel("rows")
        rows[-1][0].set_xlabel("seconds of a row's clips")
        rows[-1][1].set_xlabel("words of an answer")
        return figure
