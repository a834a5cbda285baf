"""Probes of frames on made-up embeddings that say which sound is active."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from uniaudio.data.card import DatasetCard
from uniaudio.data.card_file import Load
from uniaudio.evaluate.probing.frame_probes import FrameTask, score_frames
from uniaudio.evaluate.probing.suite import FrameFile, TaskFile
from uniaudio.evaluate.probing.task_answers import Event
from uniaudio.evaluate.probing.task_embeddings import Embedded
from uniaudio.evaluate.probing.task_rows import TaskRows, Trial
from uniaudio.evaluate.probing.task_scores import score_task
from uniaudio.evaluate.probing.whitened_embeddings import fit_whitening

RATE = 10.0  # frames a second


def task(count: int = 60, noise: float = 0.1, **frame) -> tuple[TaskRows, Embedded]:
    """Clips of 1 to 3 s with a dog, a cat or both; frames hold a vector of each that sounds."""
    rng = np.random.default_rng(0)
    voices = {"cat": rng.standard_normal(64), "dog": rng.standard_normal(64)}
    silence = rng.standard_normal(64)
    answers, frames = [], []
    for number in range(count):
        length = 10 + 2 * (number % 11)
        events = []
        for label in voices:
            if rng.random() < 0.7:
                start = int(rng.integers(0, length - 4))
                events.append(Event(start / RATE, (start + int(rng.integers(2, 5))) / RATE, label))
        values = silence + noise * rng.standard_normal((length, 64))
        for event in events:
            values[round(event.onset * RATE) : round(event.offset * RATE)] += voices[event.label]
        answers.append(tuple(events))
        frames.append(torch.from_numpy(values.astype(np.float16)))
    half = np.arange(count // 2), np.arange(count // 2, count)
    settings = TaskFile(
        dataset="d", kind="frame", domain="sound", frame=FrameFile(**frame), epochs=40, batch=2
    )
    card = DatasetCard("d", Load(jsonl="d"), "CC0", None, ("audio",), {}, {}, Path("d.yaml"))
    parts = {"train": half[0], "test": half[1]}
    trials = (Trial(half[0], None, half[1]),)
    rows = TaskRows(
        "d",
        settings,
        card,
        ("train", "test"),
        np.arange(len(answers)),
        tuple(map(str, range(len(answers)))),
        tuple(answers),
        parts,
        trials,
        ("cat", "dog"),
    )
    lengths = torch.tensor([len(clip_frames) for clip_frames in frames])
    return rows, Embedded(torch.cat(frames), lengths, torch.arange(count))


@pytest.mark.parametrize("protocol", ["masked", "xares"])
@pytest.mark.parametrize("metric", ["segment_f1", "onset_f1"])
def test_frame_probe_learns_sounds_that_the_frames_hold(protocol, metric):
    rows, embedded = task(metric=metric, resolution=0.2, collar=0.1)
    scores = score_frames(rows, embedded, RATE, protocol, 2)["linear"]
    assert scores["mean"] > 0.85
    loud, embedded = task(noise=20.0, metric=metric, resolution=0.2, collar=0.1)
    assert score_frames(loud, embedded, RATE, protocol, 1)["linear"]["mean"] < 0.75


class Knowing(nn.Module):
    """Answers with the given logits, whatever it is asked."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        super().__init__()
        self.logits = iter(logits)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return next(self.logits)


def test_segment_f1_equals_a_loop_over_clips_segments_and_classes():
    rows, embedded = task(resolution=0.3)
    data = FrameTask(rows, embedded, RATE, "masked")
    rng = np.random.default_rng(1)
    clips = rows.trials[0].test
    logits = [
        torch.from_numpy(rng.standard_normal((int(embedded.lengths[c]), 2)).astype("f4")) for c in clips
    ]
    hit = guessed = there = 0
    for clip, clip_logits in zip(clips, logits, strict=True):
        length = len(clip_logits) / RATE
        for number in range(int(np.ceil(length / 0.3 - 1e-9))):
            start, end = 0.3 * number, 0.3 * (number + 1)
            for index, label in enumerate(rows.classes):
                inside = [i for i in range(len(clip_logits)) if start - 1e-6 <= i / RATE < end - 1e-6]
                guess = any(clip_logits[i, index] > 0 for i in inside)
                true = any(
                    e.label == label and e.onset < end - 1e-9 and e.offset > start + 1e-9
                    for e in rows.answers[clip]
                )
                hit, guessed, there = hit + (guess and true), guessed + guess, there + true
    assert data.score(Knowing(logits), clips) == pytest.approx(2 * hit / (guessed + there))


def test_the_loss_is_the_mean_over_frames_and_weighs_active_ones():
    rows, embedded = task(positive_weight=3.0)
    data = FrameTask(rows, embedded, RATE, "masked")
    probe = nn.Linear(64, 2)
    total, count = 0.0, 0
    starts = [0, *embedded.lengths.cumsum(0).tolist()]
    for clip in (2, 5):
        for frame in range(int(embedded.lengths[clip])):
            logits = probe(embedded.values[starts[clip] + frame].float())
            for index, label in enumerate(rows.classes):
                time = frame / RATE
                active = any(
                    e.label == label and e.onset - 1e-6 <= time < e.offset - 1e-6 for e in rows.answers[clip]
                )
                share = torch.sigmoid(logits[index]).item()
                total += -3.0 * np.log(share) if active else -np.log(1 - share)
                count += 1
    assert data.loss(probe, torch.tensor([2, 5])).item() == pytest.approx(total / count, rel=1e-4)


def test_frames_of_events_are_whitened():
    rows, embedded = task(16, noise=4.0, resolution=0.2)
    train = frames_of(embedded, rows.trials[0].train)
    white = fit_whitening(train).apply(embedded.values).half()
    expected = score_frames(rows, Embedded(white, embedded.lengths, embedded.owner), RATE, "masked", 1)
    assert score_task(rows, embedded, RATE, "masked", 1, whiten=True) == expected
    assert expected != score_frames(rows, embedded, RATE, "masked", 1)


def frames_of(embedded: Embedded, clips) -> torch.Tensor:
    frames = embedded.values.split(embedded.lengths.tolist())
    return torch.cat([frames[clip] for clip in clips])
