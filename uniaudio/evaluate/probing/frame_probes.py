"""Probes of single frames: which sounds are active when, and how well guesses agree by segment or by onset.

Segment-based F1 and event-based F1 are those of Mesaros, Heittola and Virtanen (Metrics for Polyphonic Sound Event
Detection, 2016); the second with onsets alone, as in note transcription.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.task_answers import Event
from uniaudio.evaluate.probing.task_embeddings import Embedded, Protocol, store_frames
from uniaudio.evaluate.probing.task_rows import Indices, TaskRows
from uniaudio.evaluate.probing.whitened_embeddings import Whitening
from uniaudio.evaluate.probing.xares import build_linear_probe, score_over_seeds, train_sgd_probe
from uniaudio.ragged import Ragged

SLACK = 1e-9  # times that should be equal differ by rounding: 0.9 s are three segments of 0.3 s, not 2.9999

Active = NDArray[np.bool_]  # [A, K] frames or [G, K] segments by classes


def build_frame_targets(
    events: Sequence[Event], frames: int, rate: float, classes: Mapping[str, int], touched: bool
) -> Active:
    """Return which classes sound in which of ``frames`` frames, of which there are ``rate`` a second: ``[A, K]``.

    Args:
        touched: every frame that an event touches is active. Otherwise, as X-ARES counts, from the first frame that
            begins within the event up to the last that begins before its end.
    """
    active = np.zeros((frames, len(classes)), dtype=bool)
    for event in events:
        if touched:
            first, last = math.floor(event.onset * rate + SLACK), math.ceil(event.offset * rate - SLACK)
        else:
            first, last = (math.ceil(time / (1 / rate)) for time in (event.onset, event.offset))
        active[first:last, classes[event.label]] = True
    return active


def frames_to_segments(active: Active, rate: float, resolution: float) -> Active:
    """Return in which segments of ``resolution`` seconds a class is active in a frame; the last may be shorter."""
    # 50 frames of 20 ms are one second, not 1.0000001
    segments = math.ceil(len(active) / rate / resolution - 1e-9)
    segment_of = np.minimum((np.arange(len(active)) / rate / resolution + 1e-9).astype(int), segments - 1)
    present = np.zeros((segments, active.shape[1]), dtype=bool)
    np.logical_or.at(present, segment_of, active)
    return present


def events_to_segments(
    events: Sequence[Event], segments: int, resolution: float, classes: Mapping[str, int]
) -> Active:
    """Return which segments an event of a class overlaps: ``[G, K]``."""
    present = np.zeros((segments, len(classes)), dtype=bool)
    for event in events:
        first = math.floor(event.onset / resolution + SLACK)
        present[first : math.ceil(event.offset / resolution - SLACK), classes[event.label]] = True
    return present


def pool_whole_segments(active: Active, rate: float, resolution: float) -> Active:
    """Return windows of ``ceil(resolution * rate)`` frames with what is active in any; the rest falls away (X-ARES)."""
    size = math.ceil(resolution * rate)
    count, classes = len(active) // size, active.shape[1]  # a clip may be shorter than one window
    return np.asarray(active[: count * size].reshape(count, size, classes).any(axis=1), dtype=bool)


def compute_f1(truth: Active, guess: Active, average: str) -> float:
    """Return the F1 of ``[N, K]``: 2 TP / (2 TP + FP + FN), over all classes at once or the mean over classes.

    Args:
        average: "micro", or "macro": the mean over the classes that occur in the truth.
    """
    hits, guessed, there = (truth & guess).sum(0), guess.sum(0), truth.sum(0)
    if average == "micro":
        hits, guessed, there = (counts.sum(keepdims=True) for counts in (hits, guessed, there))
    occurring = there > 0
    if not occurring.any():
        return 0.0
    return float((2 * hits[occurring] / (guessed + there)[occurring]).mean())


def find_onsets(active: Active, rate: float) -> list[list[float]]:
    """Return for each class the times in seconds at which it begins to be active in ``[A, K]``, ascending."""
    before = np.vstack([np.zeros((1, active.shape[1]), dtype=bool), active[:-1]])
    return [(np.flatnonzero(column) / rate).tolist() for column in (active & ~before).T]


def match_onsets(truth: Sequence[float], guess: Sequence[float], collar: float) -> int:
    """Return how many pairs of onsets at most ``collar`` seconds apart can be formed, each onset in one pair.

    Both ascending. Pairing the earliest that fit is best: all collars are equally wide, so no pair given up for a later
    one can gain.
    """
    pairs = i = j = 0
    while i < len(truth) and j < len(guess):
        if abs(truth[i] - guess[j]) <= collar + SLACK:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif truth[i] < guess[j]:
            i += 1
        else:
            j += 1
    return pairs


def compute_onset_f1(
    truth: Sequence[Sequence[Event]],
    guess: Sequence[Sequence[Sequence[float]]],
    classes: Mapping[str, int],
    collar: float,
    average: str,
) -> float:
    """Return the F1 of guessed onsets: by clip and class, a list of times; "micro" or "macro" as in ``compute_f1``."""
    counts = np.zeros((3, len(classes)))  # pairs, onsets in truth, onsets guessed
    for events, onsets in zip(truth, guess, strict=True):
        for label, number in classes.items():
            true = sorted(event.onset for event in events if event.label == label)
            counts[:, number] += match_onsets(true, onsets[number], collar), len(true), len(onsets[number])
    if average == "micro":
        counts = counts.sum(1, keepdims=True)
    pairs, there, guessed = counts[:, counts[1] > 0]
    return float((2 * pairs / (there + guessed)).mean()) if len(there) else 0.0


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

    def whiten(self, whitening: Whitening) -> FrameTask:
        """Return the task with whitened frames."""
        whitened = copy(self)
        blocks = map(store_frames, whitening.apply_in_blocks(self.frames.values))
        whitened.frames = self.frames.with_values(torch.cat(list(blocks)))
        return whitened

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
    rows: TaskRows,
    embedded: Embedded,
    rate: float,
    protocol: Protocol,
    seeds: int,
    whitenings: Sequence[Whitening] | None = None,
) -> ProbeScores:
    """Train LayerNorm + Linear on single frames and return ``{"linear": {"mean", "std"}}``, the mean over folds.

    Clips are drawn in batches; the loss is the mean over their frames. ``std`` is over seeds.

    Args:
        whitenings: what is done to the frames of every trial; None: nothing.
    """
    data = FrameTask(rows, embedded, rate, protocol)

    def score_trial(number: int) -> dict[str, float]:
        # made anew for every seed: kept for all trials, the frames of a large set would not fit into memory
        return score_frame_trial(data if whitenings is None else data.whiten(whitenings[number]), number)

    return score_over_seeds(score_trial, len(rows.trials), seeds)


def score_frame_trial(data: FrameTask, number: int) -> dict[str, float]:
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
    return {task.score_metric: data.score(probe, trial.test)}
