"""The scores of one model on one task, by the kind of the task and the protocol."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.clip_probes import Fold, probe_folds
from uniaudio.evaluate.probing.frame_probes import score_frames
from uniaudio.evaluate.probing.retrieval_probes import TextModel, score_retrieval
from uniaudio.evaluate.probing.task_embeddings import Embedded, Protocol
from uniaudio.evaluate.probing.task_rows import Indices, TaskRows
from uniaudio.evaluate.probing.whitened_embeddings import fit_trial_whitenings
from uniaudio.evaluate.probing.xares import XaresFold, score_xares_folds


def score_task(
    rows: TaskRows,
    embedded: Embedded,
    rate: float,
    protocol: Protocol,
    seeds: int,
    reader: TextModel | None = None,
    whiten: bool = False,
) -> ProbeScores:
    """Probe one layer of one model on one task: ``{probe: {"mean", "std"}}``, all scores in [0, 1]; for classes of
    clips also ``metrics``, see ``probe_folds``.

    Args:
        rate: frames per second of the encoder, for events. reader: for retrieval. whiten: the embeddings (or, for
            events, the frames) of every trial are whitened by those of its training clips first; the protocol "xares"
            does not.
    """
    assert not whiten or protocol == "masked", "X-ARES whitens nothing"
    whitenings = fit_trial_whitenings(embedded, rows.trials) if whiten else None
    if rows.task.kind == "frame":
        return score_frames(rows, embedded, rate, protocol, seeds, whitenings)
    if rows.task.kind == "retrieval":
        assert reader is not None, "a suite with retrieval tasks names a text model"
        return score_retrieval(rows, embedded, reader, protocol, seeds, whitenings)
    targets = build_class_targets(rows)
    if protocol == "masked":
        states = [embedded] * len(rows.trials)
        if whitenings is not None:
            states = [replace(embedded, values=whitening.apply(embedded.values)) for whitening in whitenings]
        folds = [
            build_fold(state, targets, trial.train, trial.test)
            for state, trial in zip(states, rows.trials, strict=True)
        ]
        return probe_folds(
            folds, len(rows.classes), seeds, kinds=rows.task.kinds, metric=rows.task.score_metric
        )
    chosen = []
    for trial in rows.trials:
        fold = build_fold(embedded, targets, trial.train, trial.test)
        valid = embedded.pieces_of(trial.test if trial.valid is None else trial.valid)
        chosen.append(XaresFold(fold, embedded.values[valid], targets[embedded.owner[valid]]))
    return score_xares_folds(
        chosen,
        len(rows.classes),
        seeds,
        rows.task.epochs,
        rows.task.batch,
        rows.task.kinds,
        rows.task.score_metric,
    )


def build_class_targets(rows: TaskRows) -> Tensor:
    """Return the class index of every row ``[N]`` int64, or its classes ``[N, K]`` float32 of 0 and 1."""
    index = rows.class_index()
    if rows.task.kind == "clip":
        return torch.tensor([index[label] for label in rows.answers])
    targets = torch.zeros(len(rows.answers), len(index))
    for row, labels in enumerate(rows.answers):
        targets[row, [index[label] for label in labels]] = 1.0
    return targets


def build_fold(embedded: Embedded, targets: Tensor, train: Indices, test: Indices) -> Fold:
    """Return the pieces of the rows that train and test, each with the target of its row."""
    parts = [embedded.pieces_of(rows) for rows in (train, test)]
    (train_x, train_y), (test_x, test_y) = (
        (embedded.values[pieces], targets[embedded.owner[pieces]]) for pieces in parts
    )
    return Fold(train_x, train_y, test_x, test_y)
