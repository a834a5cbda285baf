"""Probes of tasks whose clips are held in memory: of the guard of a run, the forgetting matrix and soups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.clip_probes import KINDS, ProbeKind
from uniaudio.evaluate.probing.finite_embeddings import find_broken_clips
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError, describe_lost_classes
from uniaudio.evaluate.probing.skipped_row_notes import describe_rows
from uniaudio.evaluate.probing.task_embeddings import drop_rows, encode_task
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.evaluate.probing.task_scores import score_task
from uniaudio.model.encoders.base import AudioEncoder


@dataclass(frozen=True)
class HeldScores:
    """What an encoder got on tasks.

    Args:
        scores: by the name of the task, of those with scores. unscored: why the others have none.
        notes: sentences about clips that were left out.
    """

    scores: dict[str, ProbeScores]
    unscored: dict[str, str]
    notes: list[str]


def probe_held(
    encoder: AudioEncoder, tasks: Sequence[TaskRows], seeds: int, kinds: Sequence[ProbeKind] = KINDS
) -> HeldScores:
    """Probe an encoder on tasks whose clips are held in memory, by these kinds of probes; nothing is kept on disk.

    Clips whose embeddings are not finite are left out; where they are too many, the task has no scores.
    """
    result = HeldScores({}, {}, [])
    for rows in tasks:
        (embedded,), _ = encode_task(encoder, rows, "masked")
        try:
            usable, (embedded,) = drop_rows(rows, [embedded], find_broken_clips(rows, [embedded]))
        except UnmeasurableTaskError as problem:
            result.unscored[rows.name] = problem.reason
            continue
        result.notes.extend(
            (
                *describe_rows(rows.name, usable.skipped[len(rows.skipped) :], {}),
                *describe_lost_classes(
                    rows.name, usable.lost[len(rows.lost) :], rows.task.folds is not None, rows.task.kind
                ),
            )
        )
        task = rows.task.model_copy(update={"probes": tuple(kinds)})
        result.scores[rows.name] = score_task(
            replace(usable, task=task), embedded, encoder.frame_rate, "masked", seeds
        )
    return result
