"""UAR and macro-F1 against scikit-learn, as scores and in every resample."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from uniaudio.data.template_file import Scoring
from uniaudio.evaluate.metrics import intervals
from uniaudio.evaluate.metrics.class_averages import NO_CLASS, measure_class_averages
from uniaudio.evaluate.metrics.classification import choose_label_metric, compute_label_metrics
from uniaudio.evaluate.metrics.intervals import compute_interval, draw_resamples
from uniaudio.evaluate.metrics.text_metrics import (
    list_class_companions,
    measure_metric,
    measure_with_companions,
)


def by_sklearn(truth, guess):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # guesses of classes that the truth lacks
        return {
            "accuracy": np.mean(np.asarray(truth) == np.asarray(guess)),
            "uar": balanced_accuracy_score(truth, guess),
            "macro_f1": f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0),
        }


def draw(seed, clips=30, classes=5):
    """Return the classes of clips, of which the last never occurs, and guesses, some of which are no class."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes - 1, clips, p=[0.7, 0.2, 0.06, 0.04])
    guess = np.where(rng.random(clips) < 0.6, truth, rng.integers(NO_CLASS, classes, clips))
    return truth, guess


@given(st.integers(0, 2**32 - 1))
def test_they_equal_scikit_learn_over_the_classes_that_occur(seed):
    truth, guess = draw(seed)
    measured = measure_class_averages(truth, guess, 5)
    assert {name: measure.score() for name, measure in measured.items()} == pytest.approx(
        by_sklearn(truth, guess)
    )


def test_an_imbalanced_set_by_hand():
    """Nine clips of a, of which one is missed, and one of b, which is missed: recalls 8/9 and 0."""
    truth, guess = np.array([0] * 9 + [1]), np.array([0] * 8 + [1, 0])
    measured = measure_class_averages(truth, guess, 3)
    assert measured["accuracy"].score() == pytest.approx(0.8)
    assert measured["uar"].score() == pytest.approx((8 / 9 + 0) / 2)
    assert measured["macro_f1"].score() == pytest.approx((2 * 8 / (9 + 9) + 0) / 2)


def test_intervals_are_those_of_resampling_in_a_loop(monkeypatch):
    """In a resample without a class, the others alone are averaged, as scikit-learn does."""
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    truth, guess = draw(3, clips=12)
    scores = [
        by_sklearn(np.repeat(truth, times), np.repeat(guess, times))
        for counts in draw_resamples(12)
        for times in counts.astype(int)
    ]
    for name, measure in measure_class_averages(truth, guess, 5).items():
        expected = np.percentile([score[name] for score in scores], [2.5, 97.5])
        assert compute_interval(measure.clips, measure.resample) == pytest.approx(expected)


def test_answers_are_compared_as_accuracy_compares_them():
    answers = ["Happy", "sad", "sad ", "joyful", "angry"]
    references = [["happy"], ["sad"], ["angry"], ["happy", "Joyful"], ["angry"]]
    measured, _ = measure_with_companions(answers, references, Scoring(metric="uar"))
    assert list(measured) == ["uar", "macro_f1", "accuracy"]
    # the second right answer of a clip counts as its class; recalls: happy 2/2, sad 1/1, angry 1/2
    assert measured["uar"].score() == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert measured["macro_f1"].score() == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert measured["accuracy"].score() == pytest.approx(4 / 5)


def test_another_text_for_a_class_is_wrong_and_no_class():
    answers, references = ["happy", "delighted", "glad"], [["happy"], ["happy"], ["sad"]]
    for metric, expected in (("uar", 1 / 4), ("macro_f1", 1 / 3)):
        scoring = Scoring(metric=metric)
        assert measure_metric(answers, references, scoring, metric).score() == pytest.approx(expected)


def test_many_different_answers_take_no_more_than_a_row_each():
    """5,000 classes of one clip: as a table, the counts would be 600 MB."""
    names = [f"name {i}" for i in range(5000)]
    measure = measure_metric([*names[:-1], "?"], [[name] for name in names], Scoring(metric="uar"), "uar")
    assert measure.score() == pytest.approx(4999 / 5000)
    assert measure.rows.nnz == 4999 + 5000 + 4999


def test_accuracy_has_companions_where_answers_are_a_closed_set():
    scoring = Scoring()
    assert list(measure_with_companions(["a"], [["a"]], scoring)[0]) == ["accuracy"]
    closed, _ = measure_with_companions(["a", "a"], [["a"], ["b"]], scoring, is_closed=True)
    assert list(closed) == ["accuracy", "uar", "macro_f1"]
    metrics = {name: measure.score() for name, measure in closed.items()}
    companions = list_class_companions({"metric": "accuracy", "metrics": metrics})
    assert companions == {"uar": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert list_class_companions({"metric": "wer", "metrics": {"wer": 0.1, "cer": 0.1}}) == {}
    assert list_class_companions({"metric": "accuracy"}) == {}  # a file of an earlier version


def test_labels_by_likelihood_have_them_where_each_clip_has_one_label():
    truth, guess = draw(1, clips=40)
    guess = np.maximum(guess, 0)
    chances = np.full((40, 5), 0.1)
    chances[np.arange(40), guess] = 0.6
    names = [f"label {k}" for k in range(5)]
    labels = compute_label_metrics(names, chances, np.eye(5, dtype=bool)[truth])
    expected = by_sklearn(truth, guess)
    assert {name: labels[name] for name in expected} == pytest.approx(expected)
    assert labels["intervals"]["uar"][0] < labels["uar"] < labels["intervals"]["uar"][1]
    assert [choose_label_metric(metric, labels) for metric in ("uar", "map", "wer")] == [
        "uar",
        "map",
        "accuracy",
    ]
    several = np.eye(5, dtype=bool)[truth] | np.eye(5, dtype=bool)[0]
    assert "uar" not in compute_label_metrics(names, chances, several)
