"""Classes of a probed task that may stand for a missing label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from uniaudio.data.placeholders import is_placeholder
from uniaudio.evaluate.probing.task_rows import TaskRows


def count_placeholders(rows: TaskRows) -> dict[str, int]:
    """Return the classes that may stand for a missing label, such as `n/a`, with their clips."""
    if rows.task.kind not in ("clip", "multilabel"):
        return {}
    answers = [(answer,) if rows.task.kind == "clip" else answer for answer in rows.answers]
    counts = Counter(label for labels in answers for label in set(labels) if is_placeholder(label))
    return dict(sorted(counts.items()))


def describe_placeholder_classes(name: str, placeholders: Mapping[str, int], is_folder: bool) -> list[str]:
    """Say which classes of a task may stand for a missing label, and how to leave their clips out.

    Args:
        placeholders: see ``count_placeholders``. is_folder: the task is a labelled folder, which has no card.
    """
    how = "take them out of the manifest" if is_folder else "write `keep` under each split of the card"
    return [
        f"{name}: '{label}' is the class of {count:,} {'clip' if count == 1 else 'clips'}, probed like any other; if "
        f"these have no label, leave them out: {how}"
        for label, count in placeholders.items()
    ]
