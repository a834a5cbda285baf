"""X-ARES's probes against its published description, written down again with plain torch."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from uniaudio.evaluate.probing.clip_probes import Fold
from uniaudio.evaluate.probing.xares import (
    XaresFold,
    predict_xares_knn,
    score_xares_folds,
)


def data(count, classes=4, width=12, seed=0, spread=0.4):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((classes, width))
    labels = np.arange(count) % classes
    points = centres[labels] + spread * rng.standard_normal((count, width))
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def fold(several=False, seed=0):
    train, valid, test = (data(n, seed=s + 10 * seed) for n, s in ((70, 0), (31, 1), (41, 2)))
    if several:  # the next class is there too
        train, valid, test = (
            (x, nn.functional.one_hot(y, 4).float() + nn.functional.one_hot((y + 1) % 4, 4).float())
            for x, y in (train, valid, test)
        )
    return XaresFold(Fold(*train, *test), *valid)


def reference(folds, seed, epochs, batch, several=False):
    """LayerNorm + Linear, Adam, a rate for each epoch, the best epoch on the validation clips."""
    torch.manual_seed(seed)
    scores = []
    for chosen in folds:
        model = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 4))
        criterion = nn.BCEWithLogitsLoss() if several else nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def measure(net, x, y):
            with torch.no_grad():
                logits = net(x)
            if several:
                return average_precision_score(y.numpy(), logits.numpy())
            return sum(int(row.argmax() == label) for row, label in zip(logits, y, strict=True)) / len(y)

        best, kept = -1.0, None
        for epoch in range(epochs):
            rate = 1e-3 + (1e-4 - 1e-3) / 2 * (1 - math.cos(math.pi * epoch / epochs))
            for group in optimizer.param_groups:
                group["lr"] = rate
            order = torch.randperm(len(chosen.fold.train_x))
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                loss = criterion(model(chosen.fold.train_x[rows]), chosen.fold.train_y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            score = measure(model, chosen.valid_x, chosen.valid_y)
            if score > best:
                best, kept = score, copy.deepcopy(model)
        scores.append(measure(kept, chosen.fold.test_x, chosen.fold.test_y))
    return float(np.mean(scores))


@pytest.mark.parametrize("several", [False, True])
def test_the_linear_probe_equals_plain_torch(several):
    folds = [fold(several), fold(several, seed=1)]
    expected = [reference(folds, seed, 20, 8, several) for seed in (42, 43)]
    first = score_xares_folds(folds, 4, 1, 20, 8, ("linear",))["linear"]
    assert first["mean"] == pytest.approx(expected[0], abs=1e-6)
    scores = score_xares_folds(folds, 4, 2, 20, 8, ("linear",))
    assert scores["linear"]["mean"] == pytest.approx(np.mean(expected))
    assert scores["linear"]["std"] == pytest.approx(np.std(expected))
    assert 0.5 < scores["linear"]["mean"] < 1.0


def test_knn_divides_training_features_and_test_vectors():
    (x, y), (test, truth) = data(60), data(25, seed=3)
    train = x.numpy().astype(np.float64)
    for column in range(train.shape[1]):  # each feature by its norm over the training set
        train[:, column] /= math.sqrt(sum(value**2 for value in train[:, column]))
    guesses = []
    for vector in test.numpy().astype(np.float64):
        similarity = train @ (vector / np.linalg.norm(vector))
        nearest = np.argsort(-similarity)[:10]
        weights = np.exp(similarity[nearest] / 0.07)
        votes = [sum(w for w, i in zip(weights, nearest, strict=True) if y[i] == label) for label in range(4)]
        guesses.append(int(np.argmax(votes)))
    assert predict_xares_knn(x, y, test, 4).tolist() == guesses
    chosen = XaresFold(Fold(x, y, test, truth), test, truth)
    right = np.mean([guess == label for guess, label in zip(guesses, truth.tolist(), strict=True)])
    assert score_xares_folds([chosen], 4, 1, 1, 32, ("knn",))["knn"]["mean"] == pytest.approx(right)
