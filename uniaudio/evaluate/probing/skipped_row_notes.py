"""Sentences about the rows of a task that were left out, and about clips that are odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from uniaudio.data.audio import ADVICE
from uniaudio.data.skipped_rows import Skip


def describe_first_skip(skipped: Sequence[Skip]) -> str:
    """Say why the first row that was left out cannot be used; nothing where none was."""
    if not skipped:
        return ""
    detail = f" ({skipped[0].detail})" if skipped[0].detail else ""
    return f"; first skipped row: {skipped[0].row}: {skipped[0].reason}{detail}"


def describe_skipped(skipped: Sequence[Skip]) -> str:
    """Count rows that were left out by reason: "3 rows skipped: 2 broken audio, 1 missing file"."""
    reasons = Counter(skip.reason for skip in skipped).most_common()
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return f"{len(skipped)} {'row' if len(skipped) == 1 else 'rows'} skipped: {listed}"


def describe_rows(name: str, skipped: Sequence[Skip], notices: Mapping[str, int]) -> list[str]:
    """Say which rows of a task were left out, and which of its clips are odd.

    Args:
        notices: the number of clips that are odd, by kind.
    """
    sentences = [f"{name}: {describe_skipped(skipped)}{describe_first_skip(skipped)}"] if skipped else []
    for kind, count in notices.items():
        clips = "1 clip" if count == 1 else f"{count} clips"
        sentences.append(f"{name}: {kind} in {clips}: {ADVICE[kind]}")
    return sentences
