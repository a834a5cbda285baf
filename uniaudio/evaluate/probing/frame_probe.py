"""Probes of single frames: which sounds are active when."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.evaluate.probing.sound_events import (
    Active,
    build_frame_targets,
    compute_f1,
    compute_onset_f1,
    events_to_segments,
    find_onsets,
    frames_to_segments,
    pool_whole_segments,
)
from uniaudio.evaluate.probing.task_embeddings import Embedded, Protocol
from uniaudio.evaluate.probing.task_rows import Indices, TaskRows
from uniaudio.evaluate.probing.xares_training import build_linear_probe, score_over_seeds, train_sgd_probe
from uniaudio.ragged import Ragged


class FrameTask:
    """The frames of one task with their targets.

    Args:
        rate: frames per second. protocol: under "xares" the frames are those of padded batches, targets and segments
            are counted as X-ARES does, and the best epoch is chosen; see ``events``.
    """

    def __init__(self, rows: TaskRows, embedded: Embedded, rate: float, protocol: Protocol) -> None:
        self.rows, self.rate, self.protocol = rows, rate, protocol
        self.frames = Ragged(embedded.values, embedded.lengths)
        self.classes = rows.class_index()
        touched = protocol == "masked"
        self.active = [
            build_frame_targets(events, count, rate, self.classes, touched)
            for events, count in zip(rows.answers, embedded.lengths.tolist(), strict=True)
        ]
        self.targets = torch.from_numpy(np.concatenate(self.active))

    def loss(self, probe: nn.Module, clips: Tensor) -> Tensor:
        """Return the binary cross-entropy over frames and classes of some clips: scalar."""
        weight = torch.tensor(self.rows.task.frame.positive_weight)
        logits = probe(self.frames.select(clips).values.float())
        targets = self.frames.with_values(self.targets).select(clips).values.float()
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)

    @torch.no_grad()
    def score(self, probe: nn.Module, clips: Indices) -> float:
        """Return the task's F1 over some clips; a class is guessed where its probability is over a half."""
        settings = self.rows.task.frame
        chosen = self.frames.select(torch.from_numpy(clips))
        guesses: list[Active] = [(probe(frames.float()) > 0).numpy() for frames in chosen.rows()]
        events = [self.rows.answers[clip] for clip in clips]
        if settings.metric == "onset_f1":
            onsets = [find_onsets(guess, self.rate) for guess in guesses]
            return compute_onset_f1(events, onsets, self.classes, settings.collar, settings.average)
        if self.protocol == "xares":
            pooled = [pool_whole_segments(guess, self.rate, settings.resolution) for guess in guesses]
            truth = [pool_whole_segments(self.active[c], self.rate, settings.resolution) for c in clips]
        else:
            pooled = [frames_to_segments(guess, self.rate, settings.resolution) for guess in guesses]
            truth = [
                events_to_segments(labels, len(guess), settings.resolution, self.classes)
                for labels, guess in zip(events, pooled, strict=True)
            ]
        return compute_f1(np.concatenate(truth), np.concatenate(pooled), settings.average)


def score_frames(
    rows: TaskRows, embedded: Embedded, rate: float, protocol: Protocol, seeds: int
) -> dict[str, dict[str, float]]:
    """Train LayerNorm + Linear on single frames and return ``{"linear": {"mean", "std"}}``, the mean over folds.

    Clips are drawn in batches; the loss is the mean over their frames. ``std`` is over seeds.
    """
    data = FrameTask(rows, embedded, rate, protocol)
    return score_over_seeds(lambda number: score_frame_trial(data, number), len(rows.trials), seeds)


def score_frame_trial(data: FrameTask, number: int) -> float:
    """Train and test the probe of one trial; random numbers come from torch's own generator."""
    trial, task = data.rows.trials[number], data.rows.task
    probe = build_linear_probe(data.frames.values.shape[1], len(data.classes))
    train = torch.from_numpy(trial.train)
    chooses = trial.test if trial.valid is None else trial.valid
    train_sgd_probe(
        probe,
        len(train),
        task.epochs,
        task.batch,
        lambda clips: data.loss(probe, train[clips]),
        (lambda: data.score(probe, chooses)) if data.protocol == "xares" else None,
    )
    return data.score(probe, trial.test)
