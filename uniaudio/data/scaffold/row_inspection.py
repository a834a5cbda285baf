"""The rows of stored splits as `uniaudio new` reads them: columns, lengths of some clips, and what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from uniaudio.console import WorkProgress
from uniaudio.data.card import DatasetCard, make_card
from uniaudio.data.card_file import CardFile
from uniaudio.data.field_values import Classes
from uniaudio.data.importers.base import NOT_STATED
from uniaudio.data.keep_conditions import KEY, Condition
from uniaudio.data.long_clips import read_row_seconds
from uniaudio.data.scaffold.answer_column import Answer
from uniaudio.data.scaffold.column_profiles import ColumnProfile, profile_columns
from uniaudio.data.scaffold.layouts import Layout
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.text_rows import is_slow, read_text_rows, spread_rows
from uniaudio.errors import RowError, UserError

MEASURED, MEASURED_FAR = 200, 20  # clips of a split whose length is read; over a network
COUNTED_AT_ONCE = 1000  # rows between two updates of the bar


@dataclass
class SplitRows:
    """The rows of a stored split, with what was read of them.

    Args:
        rows: number in the data, None where nobody knows. lengths: of some clips, in seconds.
        errors: rows that cannot be used, by reason. measured: clips that were looked at, for the lengths.
    """

    columns: list[Mapping[str, Any]] = field(default_factory=list)
    rows: int | None = None
    sample: str = ""
    lengths: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    measured: int = 0
    unreadable: int = 0
    left_out: str = ""
    classes: Mapping[str, Classes] = field(default_factory=dict)


def make_trial_card(layout: Layout, split: str, place: str) -> DatasetCard:
    """Return the card of a stored split before any is written; messages name the option in its place."""
    content = {
        "dataset": "new",
        "load": layout.load,
        "license": NOT_STATED,
        "audio": layout.audio,
        "splits": {split: {"name": split}},
    }
    return make_card(CardFile.model_validate(content), Path(f"--data {place}"))


def read_split(layout: Layout, split: str, place: str, console: Console) -> SplitRows:
    """Read what the rows of a stored split say, and the lengths of some clips.

    Raises:
        UserError: when the split cannot be opened.
    """
    card = make_trial_card(layout, split, place)
    source = open_source(card, split)
    texts = read_text_rows(source, card)
    read = SplitRows(rows=source.size)
    with WorkProgress(console, "rows") as progress:
        work = progress.begin(f"reading {split}", texts.count)
        for number, row in enumerate(texts, 1):
            if number % COUNTED_AT_ONCE == 0:
                progress.count(work, COUNTED_AT_ONCE)
            if isinstance(row, Row):
                read.columns.append({KEY: row.key, **row.columns})
            else:
                read.errors[row.reason] += 1
    read.sample = texts.sample
    if read.rows is None and not read.sample:
        read.rows = len(read.columns) + read.errors.total()
    read.classes = source.classes
    read.left_out = describe_left_out(source.left_out)
    for row in choose_measured_rows(source, card):
        read.measured += 1
        try:
            if not isinstance(row, Row):
                raise row
            read.lengths.append(sum(read_row_seconds(row)))
        except RowError as problem:
            read.unreadable += 1
            if not read.errors[problem.reason]:
                read.errors[problem.reason] = 0  # named, but not how many there are
    return read


def choose_measured_rows(source: Source, card: DatasetCard) -> Iterator[Row | RowError]:
    """Yield rows, with their clips, whose lengths speak for all."""
    if isinstance(source, IndexedSource):
        return spread_rows(source, MEASURED)
    return islice(source.rows(), MEASURED_FAR if is_slow(source.shards, card) else MEASURED)


def refuse_empty(profiles: Mapping[str, ColumnProfile], splits: Mapping[str, SplitRows], where: str) -> None:
    """Refuse data without rows, or whose rows say nothing.

    Raises:
        UserError: with what there is, and what is missing.
    """
    rows = sum(len(split.columns) for split in splits.values())
    if not rows:
        reasons = Counter[str]()
        for split in splits.values():
            reasons.update(split.errors)
        raise UserError(f"{where}: no row can be read ({', '.join(reasons) or 'there are no rows'})")
    if not set(profiles) - {"file_name"}:
        skipped = [split.left_out for split in splits.values() if split.left_out]
        raise UserError(
            f"{where}: contains {rows:,} recording(s) without labels or texts; put them into one folder per label, "
            "add a .txt with the text next to each (on disk), or add a metadata.csv with the columns "
            f"file_name and label (or text){'; skipped: ' + ', '.join(skipped) if skipped else ''}"
        )
    unreadable = sum(split.unreadable for split in splits.values())
    if unreadable and unreadable == sum(split.measured for split in splits.values()):
        reason = next(iter(reason for split in splits.values() for reason in split.errors))
        raise UserError(f"{where}: none of the first {unreadable} recordings can be read ({reason})")


def close_labels(answer: Answer, splits: Mapping[str, SplitRows]) -> Answer:
    """Return the answer with the classes that the data name; without a closed set where only a sample was read."""
    if answer.kind not in ("label", "tags"):
        return answer
    for split in splits.values():
        if answer.column in split.classes:
            return replace(answer, labels=tuple(str(name) for name in split.classes[answer.column].values))
    return replace(answer, labels=()) if any(split.sample for split in splits.values()) else answer


def count_split_rows(name: str, content: Mapping[str, Any], splits: Mapping[str, SplitRows]) -> int | None:
    """Return the rows of a split of the card; None where they are not known."""
    stored = splits[content.get("name", name if name in splits else "train")]
    if "keep" not in content:
        return stored.rows
    keep = Condition(content["keep"], f"splits.{name}.keep")
    kept = 0
    for row in stored.columns:
        with suppress(UserError, RowError):
            kept += keep.is_true(row)
    if not stored.sample:
        return kept
    return None if stored.rows is None else round(kept / len(stored.columns) * stored.rows)


def share_of_unusable(splits: Mapping[str, SplitRows], answer: Answer) -> float:
    """Return the share of rows without an answer or that cannot be read, and of clips that cannot be opened."""
    rows = sum(len(split.columns) + split.errors.total() for split in splits.values())
    profile = profile_columns(
        {answer.column: row.get(answer.column)} for split in splits.values() for row in split.columns
    )
    filled = profile[answer.column].filled if answer.column in profile else 0
    measured = max(1, sum(split.measured for split in splits.values()))
    unreadable = sum(split.unreadable for split in splits.values()) / measured
    return min(1.0, 1 - filled / max(1, rows) + unreadable)
