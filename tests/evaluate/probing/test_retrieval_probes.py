"""Retrieval on made-up embeddings, and recall against sorting by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from uniaudio.data.card import DatasetCard
from uniaudio.data.card_file import Load
from uniaudio.evaluate.probing.retrieval_probes import (
    LinearPairing,
    RetrievalTask,
    XaresPairing,
    compute_pair_loss,
    score_ranking,
    score_retrieval,
)
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.task_embeddings import Embedded
from uniaudio.evaluate.probing.task_rows import TaskRows, Trial
from uniaudio.evaluate.probing.task_scores import score_task
from uniaudio.evaluate.probing.whitened_embeddings import fit_whitening
from uniaudio.ragged import Ragged


class Reader:
    """Texts are numbers; both as tokens and as vectors they say which clip they belong to."""

    def __init__(self, size: int) -> None:
        self.tokenizer = [None] * size
        self.table = torch.from_numpy(np.random.default_rng(3).standard_normal((size, 6)).astype("f4"))

    def ids(self, texts):
        return Ragged.from_rows([torch.tensor([int(text)] * (1 + int(text) % 3)) for text in texts])

    def vectors(self, texts):
        return torch.stack([self.table[int(text)] for text in texts])


def task(count: int = 24, **settings) -> tuple[TaskRows, Embedded, Reader]:
    """Clips of one of six sounds, each with one or two texts that name it; test clips are six different ones."""
    kinds = [number % 6 for number in range(count)] + list(range(6))
    answers = tuple((str(kind), str(kind))[: 1 + number % 2] for number, kind in enumerate(kinds))
    sounds = np.random.default_rng(0).standard_normal((6, 10))
    noise = 0.1 * np.random.default_rng(1).standard_normal((len(kinds), 10))
    values = torch.from_numpy((sounds[kinds] + noise).astype("f4"))
    parts = {"train": np.arange(count), "test": np.arange(count, count + 6)}
    card = DatasetCard("d", Load(jsonl="d"), "CC0", None, ("audio",), {}, {}, Path("d.yaml"))
    task = TaskFile(dataset="d", kind="retrieval", domain="sound", **{"epochs": 20, "batch": 6, **settings})
    trials = (Trial(parts["train"], None, parts["test"]),)
    keys = tuple(map(str, range(len(answers))))
    rows = TaskRows(
        "d", task, card, ("train", "test"), np.arange(len(answers)), keys, answers, parts, trials, ()
    )
    ones = torch.ones(len(kinds), dtype=torch.int64)
    return rows, Embedded(values, ones, torch.arange(len(kinds))), Reader(6)


@pytest.mark.parametrize(("protocol", "epochs"), [("masked", 40), ("xares", 5)])
def test_texts_find_their_clips(protocol, epochs):
    rows, embedded, reader = task(epochs=epochs)
    scores = score_retrieval(rows, embedded, reader, protocol, 1)["linear"]
    assert scores["mean"] > 0.9
    mixed = Embedded(embedded.values[torch.randperm(30, generator=torch.Generator().manual_seed(0))],
                     embedded.lengths, embedded.owner)  # fmt: skip
    assert score_retrieval(rows, mixed, reader, protocol, 1)["linear"]["mean"] < 0.7


@pytest.mark.parametrize("k", [1, 3])
def test_ranking_score_equals_sorting(k):
    rng = np.random.default_rng(0)
    audio, owner = rng.standard_normal((7, 5)), np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 6])
    text = audio[owner] + 1.2 * rng.standard_normal((len(owner), 5))

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    clips = []
    for clip in range(7):
        ranked = sorted(range(len(owner)), key=lambda t: -cosine(audio[clip], text[t]))
        clips.append(any(owner[t] == clip for t in ranked[:k]))
    texts = []
    for number in range(len(owner)):
        ranked = sorted(range(7), key=lambda c: -cosine(audio[c], text[number]))
        texts.append(owner[number] in ranked[:k])
    score = score_ranking(*(torch.from_numpy(x) for x in (audio, text, owner)), k)
    assert score == pytest.approx((np.mean(clips) + np.mean(texts)) / 2)
    assert 0 < score < 1


def test_an_encoder_that_tells_no_clips_apart_scores_by_chance():
    audio, owner = torch.ones(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 2, 3])
    text = torch.tensor([[4, 1], [5, 5], [5, 6], [1, 4], [1, -4]], dtype=torch.float64)
    # the first two texts of every clip are those of clip 1, and each text finds its clip among k of 4
    assert score_ranking(audio, text, owner, 1) == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert score_ranking(audio, text, owner, 2) == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_the_contrastive_loss_equals_a_loop():
    rng = np.random.default_rng(0)
    audio, text = rng.standard_normal((2, 4, 5))
    similarity = math.exp(0.3) * audio @ text.T
    total = 0.0
    for matrix in (similarity, similarity.T):
        for row in range(4):
            total -= matrix[row, row] - math.log(sum(math.exp(value) for value in matrix[row]))
    loss = compute_pair_loss(
        torch.from_numpy(audio), torch.from_numpy(text), torch.tensor(0.3, dtype=torch.float64)
    )
    assert loss.item() == pytest.approx(total / 8)


def test_texts_of_xares_are_means_of_tokens_that_went_through_the_mlp():
    _, _, reader = task()
    torch.manual_seed(0)
    probe = XaresPairing(10, reader.ids(["0", "1", "2", "5"]), 6)
    embedded_texts = probe.text(torch.tensor([3, 1]))
    for row, token, count in zip(embedded_texts, (5, 1), (3, 2), strict=True):
        tokens = probe.table(torch.tensor([token] * count))
        expected = sum(probe.text_side(vector) for vector in tokens) / count
        torch.testing.assert_close(row, expected)
    audio, text = probe.audio(torch.ones(2, 10)), embedded_texts
    small = sum(z.abs().mean() / z.pow(2).sum().sqrt() for z in (audio, text))
    expected = compute_pair_loss(audio, text, probe.scale) + small
    torch.testing.assert_close(probe.loss(torch.ones(2, 10), torch.tensor([3, 1])), expected)


def test_every_text_is_paired_with_every_piece_of_its_clip():
    rows, embedded, reader = task()
    owner = torch.arange(30).repeat_interleave(torch.tensor([1 + n % 3 for n in range(30)]))
    cut = Embedded(embedded.values[owner], torch.ones(len(owner), dtype=torch.int64), owner)
    data = RetrievalTask(rows, cut, reader, "masked")
    pieces, texts = data.pairs(np.array([1, 4, 5]))
    listed = sorted(zip(pieces.tolist(), texts.tolist(), strict=True))
    expected = []
    for row in (1, 4, 5):
        numbers = [t for t, clip in enumerate(data.clip_of.tolist()) if clip == row]
        expected += [(p, t) for p in (owner == row).nonzero()[:, 0].tolist() for t in numbers]
    assert listed == sorted(expected)


def test_ours_compares_vectors_of_unit_length():
    _, embedded, reader = task()
    probe = LinearPairing(10, reader.vectors(["0", "3"]))
    assert isinstance(probe.audio_side[0], nn.LayerNorm)
    for side in (probe.audio(embedded.values), probe.text(torch.tensor([0, 1]))):
        torch.testing.assert_close(side.norm(dim=1), torch.ones(len(side)))


def test_clips_are_whitened_for_retrieval_and_texts_are_not():
    rows, embedded, reader = task(epochs=3)
    white = fit_whitening(embedded.values[:24]).apply(embedded.values)
    whitened = Embedded(white, embedded.lengths, embedded.owner)
    expected = score_retrieval(rows, whitened, reader, "masked", 1)
    assert score_task(rows, embedded, 50, "masked", 1, reader, whiten=True) == expected
    assert expected != score_retrieval(rows, embedded, reader, "masked", 1)
