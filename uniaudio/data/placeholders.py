"""Labels that may stand for a missing one, such as `n/a`: they are answers like any other, and named in notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uniaudio.data.template import Template

# Texts that stand for a missing label in many tables, in lower case: what pandas reads as no value, and marks of
# annotators, such as `xxx` in IEMOCAP where they did not agree.
PLACEHOLDERS = frozenset(
    ["n/a", "#n/a", "n.a.", "na", "#na", "<na>", "nan", "none", "null", "missing", "not available"]
) | {"unlabelled", "unlabeled", "-", "--", "?", "xxx"}


def is_placeholder(label: str) -> bool:
    """Return whether a label may stand for none, such as `n/a`; it is an answer like any other all the same."""
    return label.strip().lower() in PLACEHOLDERS


def describe_placeholders(counts: Mapping[tuple[str, str], int]) -> list[str]:
    """Return a sentence for each column whose values may mean that a row has no label, and how to leave the rows out.

    Args:
        counts: of rows, by (stored column, value); the column is empty where the value was computed or is in a list.
    """
    by_column: dict[str, dict[str, int]] = {}
    for (column, value), count in counts.items():
        by_column.setdefault(column, {})[value] = count
    sentences = []
    for column, values in by_column.items():
        listed = ", ".join(
            f"'{value}' in {count:,} {'row' if count == 1 else 'rows'}" for value, count in values.items()
        )
        how = "write `keep` under each split of the card"
        if column.isidentifier():
            only = next(iter(values)) if len(values) == 1 else None
            condition = f"{column} != {only!r}" if only is not None else f"{column} not in {list(values)}"
            how = f'write `keep: "{condition}"` under each split of the card'
        sentences.append(
            f"{f'`{column}`' if column else 'the answer'} is {listed}, learned and scored as an answer like any other; "
            f"if these rows have no label, leave them out: {how}"
        )
    return sentences


def find_placeholders(
    columns: Mapping[str, Any], template: Template, labels: Sequence[str]
) -> set[tuple[str, str]]:
    """Return the labels of a row that may stand for none, with the column that stores them, see
    ``describe_placeholders``.

    Args:
        columns: as they are stored. labels: the right answers that ``template`` makes of them.
    """
    placeholders = [label for label in labels if is_placeholder(label)]
    if not placeholders:
        return set()
    column = template.answer_column or ""
    stored = columns.get(column)
    if isinstance(stored, str) and is_placeholder(stored):
        return {(column, stored)}
    return {("", label) for label in placeholders}
