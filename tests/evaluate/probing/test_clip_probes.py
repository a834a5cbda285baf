import math

import numpy as np
import pytest
import torch
from torch import nn

from uniaudio.evaluate.probing.clip_probes import (
    Fold,
    ProbeSettings,
    SeedwiseLinear,
    predict_knn,
    probe_folds,
    train_probe,
)
from uniaudio.evaluate.probing.suite_table import shorten_paths


def clusters(count, spread, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((4, 16))
    labels = np.arange(count) % 4
    points = centres[labels] + spread * rng.standard_normal((count, 16))
    return points.astype(np.float32), labels.astype(np.int64)


def test_knn_equals_a_loop():
    x, y = clusters(60, 2.0)
    test, _ = clusters(20, 2.0, seed=1)
    ours = predict_knn(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test), 4, block=7).tolist()
    for vector, prediction in zip(test, ours, strict=True):
        similarity = [float(vector @ row / np.linalg.norm(vector) / np.linalg.norm(row)) for row in x]
        nearest = sorted(range(60), key=lambda i: -similarity[i])[:10]
        total = sum(math.exp(similarity[i] / 0.07) for i in nearest)
        votes = [sum(math.exp(similarity[i] / 0.07) / total for i in nearest if y[i] == c) for c in range(4)]
        assert prediction == votes.index(max(votes))


def test_probes_trained_together_equal_one_trained_alone():
    """Seed 0 of a batched probe against plain torch layers with the same start and the same order."""
    x, y = (torch.from_numpy(a) for a in clusters(48, 2.0))
    settings = ProbeSettings(epochs=3, batch=16)
    together = train_probe("linear", x, y, 4, seeds=3, settings=settings)
    alone = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = SeedwiseLinear(3, 16, 4)
        with torch.no_grad():
            alone[1].weight.copy_(start.weight[0].T)
            alone[1].bias.copy_(start.bias[0, 0])
        optimizer = torch.optim.Adam(alone.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
        for _ in range(3):
            order = torch.stack([torch.randperm(48) for _ in range(3)])[0]
            for rows in order.split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(alone(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        torch.testing.assert_close(together(x.expand(3, -1, -1))[0], alone(x), atol=1e-4, rtol=1e-4)


def probe_split(*parts):
    return probe_folds([Fold(*map(torch.from_numpy, parts))], 4, 3)


def test_easy_sets_are_solved_and_noise_is_not():
    train, test = clusters(200, 0.3), clusters(80, 0.3, seed=1)
    easy = probe_split(*train, *test)
    assert min(easy[kind]["mean"] for kind in easy) > 0.97
    noise = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    blind = probe_split(noise, train[1], noise[:80][::-1].copy(), test[1])
    assert max(blind[kind]["mean"] for kind in blind) < 0.5
    assert blind["knn"]["std"] == pytest.approx(
        math.sqrt(blind["knn"]["mean"] * (1 - blind["knn"]["mean"]) / 80), rel=0.3
    )


def test_models_are_named_by_as_much_of_their_path_as_tells_them_apart():
    names = ["/a/b/whisper", "random:/a/b/whisper", "runs/one", "/x/runs/one"]
    assert shorten_paths(names[:3]) == dict(zip(names, ["whisper", "random:whisper", "one"], strict=False))
    assert shorten_paths([]) == {}
    assert shorten_paths(names[2:]) == {"runs/one": "runs/one", "/x/runs/one": "x/runs/one"}


def test_folds_trained_together_equal_a_fold_alone_in_what_they_learn():
    """The first fold has the weights and orders of a probe trained without the second."""
    (x, y), (other_x, other_y) = (
        tuple(torch.from_numpy(array) for array in clusters(48, 2.0, seed=seed)) for seed in (0, 5)
    )
    settings = ProbeSettings(epochs=3, batch=16)
    both = train_probe("linear", torch.stack([x, other_x]), torch.stack([y, other_y]), 4, 1, settings)
    together = both(torch.stack([x, other_x]))
    swapped = train_probe("linear", torch.stack([x, x]), torch.stack([y, y]), 4, 1, settings)
    torch.testing.assert_close(together[0], swapped(torch.stack([x, x]))[0])
    assert not torch.allclose(together[1], swapped(torch.stack([x, other_x]))[1])


def test_scores_of_folds_are_means_over_them():
    """Folds of unequal size, against the folds one at a time."""
    folds = [
        Fold(*(torch.from_numpy(a) for a in (*clusters(count, 1.5, seed=count), *clusters(20, 1.5, seed=1))))
        for count in (40, 44)
    ]
    settings = ProbeSettings(epochs=5, batch=16)
    scores = probe_folds(folds, 4, 2, settings)
    alone = [probe_folds([fold], 4, 2, settings) for fold in folds]
    for kind in ("linear", "mlp", "knn"):
        assert scores[kind]["mean"] == pytest.approx(np.mean([scored[kind]["mean"] for scored in alone]))


def test_several_classes_in_a_clip_are_learned():
    x, y = (torch.from_numpy(array) for array in clusters(200, 0.4))
    several = nn.functional.one_hot(y, 4).float() + nn.functional.one_hot((y + 1) % 4, 4).float()
    fold = Fold(x[:150], several[:150], x[150:], several[150:])
    scores = probe_folds([fold], 4, 2, kinds=("linear", "mlp"))
    assert scores["linear"]["mean"] > 0.97
    assert scores["mlp"]["mean"] > 0.97
    shuffled = Fold(x[:150], several[torch.randperm(150)], x[150:], several[150:])
    assert probe_folds([shuffled], 4, 2, kinds=("linear",))["linear"]["mean"] < 0.8


def test_large_sets_take_fewer_epochs_and_then_larger_batches():
    settings = ProbeSettings()
    assert settings.plan(320) == (60, 32)
    assert settings.plan(400) == (60, 32)
    epochs, batch = settings.plan(2000)
    assert (batch, epochs * math.ceil(2000 / batch) <= settings.steps) == (32, True)
    for count in (5_000, 50_000):
        epochs, batch = settings.plan(count)
        assert epochs == 10
        assert epochs * math.ceil(count / batch) <= settings.steps
