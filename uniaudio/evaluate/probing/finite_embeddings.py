"""Clips whose embeddings are not finite are left out of a task; a model with many of them has no scores of it.

With NaN or infinite values among the vectors, a probe names one class for all clips, and in retrieval all pairs match.
"""

from __future__ import annotations

from collections.abc import Sequence

from uniaudio.data.skipped_rows import Skip
from uniaudio.errors import RowError, escape_text
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.task_embeddings import Embedded
from uniaudio.evaluate.probing.task_rows import TaskRows

REASON = "non-finite embedding"  # of a skipped row
MOST_BROKEN = 0.1  # share of the clips of a task; a single clip is always left out


def find_broken_clips(rows: TaskRows, states: Sequence[Embedded], model: str = "") -> dict[int, Skip]:
    """Return why clips are left out whose embeddings are not finite in any hidden state, by their row.

    Args:
        model: named in the reasons, where there are several.

    Raises:
        UnmeasurableTaskError: when they are more than a tenth of the clips, and more than one: the scores of the others
            would say little of the model.
    """
    broken = sorted({row for state in states for row in state.list_broken_rows()})
    if len(broken) > max(1, MOST_BROKEN * len(rows.answers)):
        reason = (
            f"embeddings of {len(broken):,} of {len(rows.answers):,} clips are not finite (NaN or infinite), such as "
            f"those of {escape_text(rows.keys[broken[0]])}; check the weights of the model, and these clips"
        )
        raise UnmeasurableTaskError(f"task {rows.name}: {reason}", reason, rows.skipped)
    problem = RowError(REASON, f"NaN or infinite values by {model}" if model else "NaN or infinite values")
    return {row: Skip.of(rows.card.name, rows.keys[row], problem) for row in broken}
