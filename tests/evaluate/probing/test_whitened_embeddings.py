"""Whitened embeddings: the map against loops, what it is fitted to, and the command from clips to scores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from uniaudio.build.encoders import load_encoder
from uniaudio.cli import app
from uniaudio.commands.probe import run_probe
from uniaudio.errors import UserError
from uniaudio.evaluate.probing import suite_run, whitened_embeddings
from uniaudio.evaluate.probing.clip_probes import predict_knn
from uniaudio.evaluate.probing.labelled_folder import build_folder_suite
from uniaudio.evaluate.probing.suite_run import read_tasks
from uniaudio.evaluate.probing.suite_table import build_suite_tables
from uniaudio.evaluate.probing.task_embeddings import Embedded, encode_task
from uniaudio.evaluate.probing.task_rows import Trial
from uniaudio.evaluate.probing.whitened_embeddings import fit_trial_whitenings, fit_whitening


def whiten_in_loops(train: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return other vectors as they are whitened by training vectors; without labels, feature by feature."""
    count, width = train.shape
    means = [sum(float(row[e]) for row in train) / count for e in range(width)]
    spreads = [math.sqrt(sum((float(row[e]) - means[e]) ** 2 for row in train) / count) for e in range(width)]
    varying = [e for e in range(width) if spreads[e] > 1e-6 * abs(means[e])]
    usual = sorted(spreads[e] for e in varying)[(len(varying) - 1) // 2]

    def scale(row):
        return [
            (float(row[e]) - means[e]) / max(spreads[e], 0.05 * usual) if e in varying else 0.0
            for e in range(width)
        ]

    scaled = [scale(row) for row in train]
    covariance = np.array(
        [[sum(row[a] * row[b] for row in scaled) / count for b in range(width)] for a in range(width)]
    )
    variances, components = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0)
    weights = [(v + 0.1 * sum(variances) / width) ** -0.25 for v in variances]
    size = math.sqrt(sum(v * w * w for v, w in zip(variances, weights, strict=True)) / width)
    white = []
    for row in others:
        parts = [float(np.dot(scale(row), components[:, k])) * weights[k] / size for k in range(width)]
        white.append(sum(part * components[:, k] for k, part in enumerate(parts)))
    return np.array(white)


def draw(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors with features of all sizes, one that never varies and one that hardly does."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, width)) @ rng.standard_normal((width, width))
    vectors = 3 + vectors * 10.0 ** rng.uniform(-2, 2, width)
    vectors[:, 0], vectors[:, 1] = 0.1, 7 + 1e-4 * vectors[:, 2]
    return vectors.astype(np.float32)


@pytest.mark.parametrize("count", [2, 5, 60])
def test_whitening_equals_loops_for_few_clips_and_for_many(count):
    train, others = draw(count, 12), draw(9, 12, seed=1)
    white = fit_whitening(torch.from_numpy(train)).apply(torch.from_numpy(others))
    np.testing.assert_allclose(white, whiten_in_loops(train, others), rtol=1e-4, atol=1e-4)
    trained = fit_whitening(torch.from_numpy(train)).apply(torch.from_numpy(train)).double()
    assert trained.mean(0).abs().max() < 1e-5
    if count > 12:
        assert trained.square().mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("vectors", [torch.randn(1, 4), torch.full((9, 4), 0.1), torch.zeros(3, 4)])
def test_clips_that_do_not_differ_give_no_features(vectors):
    white = fit_whitening(vectors).apply(torch.randn(5, 4))
    torch.testing.assert_close(white, torch.zeros(5, 4), atol=0, rtol=0)


def test_the_size_of_features_plays_no_part():
    train, size = torch.from_numpy(draw(40, 6)[:, 2:]), torch.tensor([1.0, 1.5, 2.0, 0.75])
    torch.testing.assert_close(
        fit_whitening(train).apply(train),
        fit_whitening(train * size).apply(train * size),
        rtol=1e-4,
        atol=1e-4,
    )


def test_only_the_clips_that_train_are_fitted_to(monkeypatch):
    """Clips of several frames; with folds every trial has its own."""
    monkeypatch.setattr(whitened_embeddings, "BLOCK", 4)
    lengths = torch.tensor([3, 1, 4, 2, 5])
    frames = torch.from_numpy(draw(15, 4))
    trials = [
        Trial(np.array([0, 2]), None, np.array([1, 3, 4])),
        Trial(np.array([1, 3, 4]), None, np.array([0, 2])),
    ]
    rows = {0: [0, 1, 2, 4, 5, 6, 7], 1: [3, *range(8, 15)]}
    fitted = fit_trial_whitenings(Embedded(frames, lengths, torch.arange(5)), trials)
    for number, whitening in enumerate(fitted):
        expected = whiten_in_loops(frames[rows[number]].numpy(), frames.numpy())
        np.testing.assert_allclose(whitening.apply(frames), expected, rtol=1e-4, atol=1e-4)
    other = frames.clone()
    other[rows[1]] = 1e6
    again, _ = fit_trial_whitenings(Embedded(other, lengths, torch.arange(5)), trials)
    torch.testing.assert_close(again.apply(frames), fitted[0].apply(frames), atol=0, rtol=0)


def test_of_many_vectors_some_are_fitted_to_evenly(monkeypatch):
    monkeypatch.setattr(whitened_embeddings, "MOST_FITTED", 4)
    frames = torch.from_numpy(draw(10, 3))
    trial = Trial(np.array([1]), None, np.array([0]))
    (fitted,) = fit_trial_whitenings(Embedded(frames, torch.tensor([3, 7]), torch.arange(2)), [trial])
    expected = fit_whitening(frames[[3, 5, 7, 9]])
    torch.testing.assert_close(fitted.apply(frames), expected.apply(frames), atol=0, rtol=0)


@pytest.fixture
def tones(tone_run: Path, monkeypatch) -> Path:
    """The folder of ``tone_run``, with a cache of its own."""
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tone_run.parent / "cache"))
    monkeypatch.chdir(tone_run.parent)
    return tone_run.parent


def test_the_command_whitens_every_model_by_its_embeddings_of_the_training_clips(tones, monkeypatch):
    models = ["whisper", "random:whisper"]
    plain = run_probe(models, ["tones=tones"], seeds=1)
    assert plain["whitened"] is False

    def encode(*arguments):
        raise AssertionError("the embeddings are those of the cache")

    with monkeypatch.context() as context:
        context.setattr("uniaudio.evaluate.probing.task_embeddings.encode_task", encode)
        arguments = [
            "probe",
            *models,
            "--data",
            "tones=tones",
            "--whiten",
            "--seeds",
            "1",
            "-o",
            "white.json",
        ]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "labelled folders, protocol masked, 1 seed, whitened embeddings" in result.output
    stored = json.loads((tones / "white.json").read_text())
    assert (stored["whitened"], stored["protocol"], stored["models"]) == (True, "masked", models)
    (rows,) = read_tasks(build_folder_suite({"tones": Path("tones")}))
    (trial,) = rows.trials
    labels = torch.tensor([rows.classes.index(label) for label in rows.answers])
    for model in models:
        (embedded,), _ = encode_task(load_encoder(model), rows, "masked")
        x = embedded.values.numpy()
        white = torch.from_numpy(whiten_in_loops(x[trial.train], x).astype(np.float32))
        guesses = predict_knn(white[trial.train], labels[trial.train], white[trial.test], 2)
        right = (guesses == labels[trial.test]).double().mean().item()
        scores = {
            name: given["scores"]["tones"][model] for name, given in (("plain", plain), ("white", stored))
        }
        assert scores["white"]["knn"]["mean"] == pytest.approx(right)
        assert scores["white"] != scores["plain"]
    assert run_probe(models, ["tones=tones"], seeds=1) == plain


def test_layers_are_whitened_one_by_one(tones):
    layers = run_probe(["whisper"], ["tones=tones"], seeds=1, layers=True, whiten=True)
    alone = run_probe(["whisper"], ["tones=tones"], seeds=1, whiten=True)
    assert layers["scores"] == alone["scores"]
    assert [table.title for table in build_suite_tables(layers)] == [
        "labelled folders, protocol masked, 1 seed, whitened embeddings",
        "tones by layer, whitened embeddings",
    ]


def test_the_protocol_of_published_scores_whitens_nothing(monkeypatch):
    monkeypatch.setattr(suite_run, "read_task", None)  # nothing is read before
    message = r"^--whiten: the protocol xares reproduces published scores, .*; use --protocol masked$"
    with pytest.raises(UserError, match=message):
        run_probe(["whisper"], ["tones=tones"], protocol="xares", whiten=True)
