"""What `uniaudio new` prints: what was seen of the data, what was chosen, and the next commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from uniaudio.data.labels import describe_equal_spellings
from uniaudio.data.placeholders import describe_placeholders, is_placeholder
from uniaudio.data.scaffold.answer_column import Answer
from uniaudio.data.scaffold.column_profiles import ColumnProfile
from uniaudio.data.scaffold.row_inspection import SplitRows
from uniaudio.data.scaffold.task_files import TaskDescription
from uniaudio.errors import escape_text

SHOWN_LABELS, SHOWN_COLUMNS = 5, 12


def show_task(
    task: TaskDescription,
    splits: Mapping[str, SplitRows],
    profiles: Mapping[str, ColumnProfile],
    paths: Sequence[Path],
    console: Console,
) -> None:
    """Print what was seen, what was chosen, and the next commands."""

    def say(text: str) -> None:
        console.print(escape_text(text), soft_wrap=True)

    lengths = [length for split in splits.values() for length in split.lengths]
    ends = dict.fromkeys(f"{length:.1f}" for length in (min(lengths), max(lengths))) if lengths else ()
    clips = f", clips of {' to '.join(ends)} s" if ends else ""
    counts = ", ".join(f"{name} {describe_count(rows)}" for name, rows in (task.rows or {}).items())
    say(f"data: {task.layout.what}{clips}")
    rows_read = sum(len(split.columns) for split in splits.values())
    say(f"answer: {describe_answer_column(task.answer, profiles, rows_read)}")
    say(f"splits: {counts} rows, by {task.division.reason}")
    for name, split in splits.items():
        if split.sample:
            say(f"note: {name}: inspected {split.sample}")
        if split.left_out:
            say(f"note: skipped: {split.left_out}")
    unusable = Counter[str]()
    for split in splits.values():
        unusable.update(split.errors)
    if unusable:
        say(f"note: rows that cannot be used: {describe_reasons(unusable)}; `uniaudio check` lists them")
    spellings = [note for note in (describe_equal_spellings(task.answer.labels),) if note]
    spellings += note_placeholders(task.answer, profiles[task.answer.column])
    for note in (*task.layout.notes, *note_outer_folders(task, splits), *spellings, *task.division.notes):
        say(f"note: {note}")
    say(f"wrote {', '.join(map(str, paths))}")
    config = shlex.quote(str(paths[-1]))
    say(f"next: uniaudio train {config}")
    say(f"or first: uniaudio preview {config} -n 3")
    say(f"          uniaudio check {config}")


def note_outer_folders(task: TaskDescription, splits: Mapping[str, SplitRows]) -> list[str]:
    """Return a sentence about the folders above those that labels are named after, where there are several."""
    if "audiofolder" not in task.load or task.answer.column != "label":
        return []
    names = (str(row.get("file_name", "")) for split in splits.values() for row in split.columns)
    outer = sorted({name.split("/")[0] for name in names if name.count("/") > 1})
    if len(outer) < 2:
        return []
    shown = ", ".join(outer[:SHOWN_LABELS])
    return [
        f"the label is the folder of the clip; for the folders above it ({shown} ...) write "
        "`columns: {outer: \"{{ file_name.split('/')[0] }}\"}` in the card, and use `outer` "
        "in the template"
    ]


def note_placeholders(answer: Answer, profile: ColumnProfile) -> list[str]:
    """Return a sentence about labels that may stand for none."""
    if answer.kind not in ("label", "tags"):
        return []
    counts = profile.values
    if answer.kind == "tags" and not answer.is_list:
        counts = profile.split_values(answer.separator)
    column = answer.column if answer.kind == "label" and not answer.is_list else ""
    return describe_placeholders(
        {(column, value): count for value, count in counts.items() if is_placeholder(value)}
    )


def describe_count(rows: int | None) -> str:
    return "?" if rows is None else f"{rows:,}"


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Return reasons with the rows of each, where they were counted."""
    return ", ".join(f"{reason} ({count:,})" if count else reason for reason, count in reasons.items())


def describe_answer_column(answer: Answer, profiles: Mapping[str, ColumnProfile], rows: int) -> str:
    """Return a sentence about the column that was chosen, and the others.

    Args:
        rows: that were read.
    """
    profile = profiles[answer.column]
    empty = rows - profile.filled
    kinds = {
        "label": f"a label with {len(answer.labels) or profile.different:,} values",
        "tags": f"several of {len(answer.labels) or profile.different:,} labels",
        "number": f"a number with {profile.different:,} values, learned as text",
        "transcript": "a transcript",
        "caption": "a description",
        "reply": f"the answer to the question in `{answer.question}`",
        "text": "a text",
    }
    counts = (
        profile.split_values(answer.separator)
        if answer.kind == "tags" and not answer.is_list
        else profile.values
    )
    common = [f"{value[:40]} {count:,}" for value, count in counts.most_common(SHOWN_LABELS)]
    if answer.kind not in ("label", "tags", "number"):
        common = [value[:60] for value, _ in counts.most_common(1)]
    more = " ..." if len(counts) > len(common) else ""
    others = [f"`{name}`" for name in profiles if name != answer.column][:SHOWN_COLUMNS]
    listed = f"; other columns: {', '.join(others)}" if others else ""
    lacking = f"; {empty:,} rows have none" if empty else ""
    return f"`{answer.column}` ({answer.reason}): {kinds[answer.kind]} ({', '.join(common)}{more}){lacking}{listed}"
