"""Accuracy, UAR and macro-F1 of probes: against scikit-learn, under both protocols, and in the table of a suite."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score, f1_score

from uniaudio.evaluate.probing.class_scores import score_classes, score_knn
from uniaudio.evaluate.probing.clip_probes import Fold, ProbeSettings, predict_knn, probe_folds
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.suite_table import build_suite_tables
from uniaudio.evaluate.probing.xares import XaresFold, predict_xares_knn, score_xares_folds


def imbalanced(count, seed):
    """Embeddings of four classes, of which the first has most clips and the last none in a test set."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, count, p=[0.6, 0.3, 0.1, 0.0])
    truth[:8] = [0, 1, 2, 0, 0, 1, 2, 0]
    centres = np.random.default_rng(9).standard_normal((4, 16))
    x = centres[truth] + 1.5 * rng.standard_normal((count, 16))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(truth)


@pytest.fixture
def folds():
    made = [Fold(*imbalanced(count, count), *imbalanced(30, count + 1)) for count in (60, 64)]
    for fold in made:
        fold.train_y[-4:] = 3  # trained on, never tested
    return made


def test_guesses_of_every_seed_are_scored_as_scikit_learn_does(folds):
    truth = folds[0].test_y
    guesses = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (3, len(truth))))
    scores = score_classes(guesses, truth, 4)
    assert scores["accuracy"].tolist() == pytest.approx([np.mean((row == truth).numpy()) for row in guesses])
    assert scores["uar"].tolist() == pytest.approx([balanced_accuracy_score(truth, row) for row in guesses])
    expected = [f1_score(truth, row, labels=np.unique(truth), average="macro") for row in guesses]
    assert scores["macro_f1"].tolist() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("protocol", ["masked", "xares"])
def test_uar_of_knn_is_the_mean_over_folds(folds, protocol):
    guess = predict_knn if protocol == "masked" else predict_xares_knn
    expected = [
        balanced_accuracy_score(fold.test_y, guess(fold.train_x, fold.train_y, fold.test_x, 4))
        for fold in folds
    ]
    if protocol == "masked":
        scores = probe_folds(folds, 4, kinds=("knn",))["knn"]
    else:
        chosen = [XaresFold(fold, fold.test_x, fold.test_y) for fold in folds]
        scores = score_xares_folds(chosen, 4, 1, 1, 32, ("knn",))["knn"]
    assert scores["metrics"]["uar"]["mean"] == pytest.approx(np.mean(expected))
    assert scores["metrics"]["accuracy"] == {"mean": scores["mean"], "std": scores["std"]}
    assert scores["metrics"]["uar"]["mean"] != pytest.approx(scores["mean"])


def test_the_spread_of_knn_is_over_draws_of_the_test_clips():
    truth = torch.tensor([0] * 12 + [1] * 3)
    guess = torch.tensor([0] * 10 + [1] * 4 + [0])
    rng = np.random.default_rng(0)
    draws = []
    for chosen in rng.integers(0, 15, (200, 15)):
        recall_by_class = [(guess[chosen] == k)[truth[chosen] == k].double().mean().item() for k in (0, 1)]
        draws.append(np.nanmean(recall_by_class))
    scores = score_knn([guess], [truth], 2)
    assert scores["metrics"]["uar"]["std"] == pytest.approx(np.std(draws))


@pytest.mark.parametrize("protocol", ["masked", "xares"])
def test_the_metric_of_a_task_changes_what_is_reported_and_nothing_else(folds, protocol):
    def score(metric):
        if protocol == "masked":
            return probe_folds(folds, 4, 2, ProbeSettings(epochs=3), ("linear", "knn"), metric)
        chosen = [XaresFold(fold, fold.test_x, fold.test_y) for fold in folds]
        return score_xares_folds(chosen, 4, 2, 3, 16, ("linear", "knn"), metric)

    usual = score(None)
    for metric in ("accuracy", "uar", "macro_f1"):
        for kind, scores in score(metric).items():
            assert scores["metrics"] == usual[kind]["metrics"]
            assert {"mean": scores["mean"], "std": scores["std"]} == scores["metrics"][metric]


def test_a_task_names_the_metric_of_its_classes():
    task = {"dataset": "crema_d", "domain": "speech"}
    assert TaskFile.model_validate(task).score_metric == "accuracy"
    assert TaskFile.model_validate(task | {"metric": "uar"}).score_metric == "uar"
    with pytest.raises(ValidationError, match="metric: is for kind clip, and the kind is multilabel"):
        TaskFile.model_validate(task | {"metric": "uar", "kind": "multilabel"})
    with pytest.raises(ValidationError, match=r"frame\.metric sets its score"):
        TaskFile.model_validate(task | {"metric": "uar", "kind": "frame"})


def result_of(accuracy, uar, metric="accuracy"):
    """What a suite of one task writes of one model and one probe."""
    metrics = {
        name: {"mean": mean, "std": 0.01}
        for name, mean in {"accuracy": accuracy, "uar": uar, "macro_f1": 0.4}.items()
    }
    facts = {
        "kind": "clip",
        "domain": "speech",
        "metric": metric,
        "skipped": [],
        "notices": {},
        "placeholders": {},
    }
    return {
        "suite": "emotions",
        "protocol": "masked",
        "seeds": 3,
        "models": ["m"],
        "tasks": {"iemocap": facts},
        "scores": {"iemocap": {"m": {"linear": {**metrics[metric], "metrics": metrics}}}},
        "average": {},
    }


def rows_of(result):
    (table,) = build_suite_tables(result)
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_the_table_has_uar_below_accuracy_where_they_differ():
    assert rows_of(result_of(0.612, 0.587)) == [
        ("iemocap", "speech", "accuracy", "m", "0.612 ± 0.010", "", ""),
        ("", "", "uar", "m", "0.587 ± 0.010", "", ""),
    ]
    assert [row[2:5] for row in rows_of(result_of(0.612, 0.587, "uar"))] == [
        ("uar", "m", "0.587 ± 0.010"),
        ("accuracy", "m", "0.612 ± 0.010"),
    ]
    assert [row[2] for row in rows_of(result_of(0.612, 0.612))] == ["accuracy"]


def test_differences_of_uar_are_to_the_uar_of_the_other_model():
    result = result_of(0.612, 0.587)
    result["models"].append("n")
    other = result_of(0.7, 0.487)["scores"]["iemocap"]["m"]
    result["scores"]["iemocap"]["n"] = other
    assert [row[4] for row in rows_of(result)] == [
        "0.612 ± 0.010",
        "0.700 ± 0.010 (+0.088)",
        "0.587 ± 0.010",
        "0.487 ± 0.010 (-0.100)",
    ]
