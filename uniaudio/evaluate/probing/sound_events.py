"""Sounds in time: targets and guesses by frame, and how well they agree by segment or by onset.

Segment-based F1 and event-based F1 are those of Mesaros, Heittola and Virtanen (Metrics for Polyphonic Sound Event
Detection, 2016); the second with onsets alone, as in note transcription.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from uniaudio.evaluate.probing.task_answers import Event

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
    segments = math.ceil(
        len(active) / rate / resolution - 1e-9
    )  # 50 frames of 20 ms are one second, not 1.0000001
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
    count = len(active) // size
    return np.asarray(active[: count * size].reshape(count, size, -1).any(axis=1), dtype=bool)


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
