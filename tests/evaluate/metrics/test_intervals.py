"""Intervals against resampling in a plain loop, and against what theory says."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from uniaudio.evaluate.metrics import intervals
from uniaudio.evaluate.metrics.classification import (
    BINS,
    calibration_error,
    compute_reliability,
    resample_precision,
)
from uniaudio.evaluate.metrics.intervals import RESAMPLES, compute_interval, draw_resamples, make_mean
from uniaudio.evaluate.metrics.text_metrics import bleu, error_rate

ANSWERS = ["a b c", "a b", "x", "d e f g h", "a a a", "b c d e"]
TRUTH = ["a b d", "a b", "y z", "d e f h", "a a", "b c d e f"]


def resamples(clips):
    """Yield the clips of every resample as indices."""
    for counts in draw_resamples(clips):
        yield from (np.repeat(np.arange(clips), row.astype(int)) for row in counts)


def test_every_resample_draws_as_many_clips(monkeypatch):
    monkeypatch.setattr(intervals, "NUMBERS", 7 * 300)
    parts = list(draw_resamples(7))
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    counts = np.concatenate(parts)
    assert (counts.sum(1) == 7).all()
    assert len(counts) == RESAMPLES
    assert counts.mean() == 1
    np.testing.assert_array_equal(counts, np.concatenate(list(draw_resamples(7))))
    assert not np.array_equal(counts, np.concatenate(list(draw_resamples(7, seed=1))))


def test_interval_of_an_error_rate_is_that_of_a_loop():
    scores = [
        jiwer.wer([TRUTH[i] for i in chosen], [ANSWERS[i] for i in chosen])
        for chosen in resamples(len(TRUTH))
    ]
    measure = error_rate(ANSWERS, [[text] for text in TRUTH], "wer")
    assert compute_interval(measure.clips, measure.resample) == pytest.approx(
        np.percentile(scores, [2.5, 97.5])
    )


def test_interval_of_bleu_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    scores = [
        bleu([ANSWERS[i] for i in chosen], [[TRUTH[i]] for i in chosen]).score()
        for chosen in resamples(len(TRUTH))
    ]
    measure = bleu(ANSWERS, [[text] for text in TRUTH])
    assert compute_interval(measure.clips, measure.resample) == pytest.approx(
        np.percentile(scores, [2.5, 97.5])
    )


def test_interval_of_a_share_is_what_theory_says():
    right = np.zeros(1000)
    right[:300] = 1
    low, high = compute_interval(1000, make_mean(right).resample)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.004)
    assert high == pytest.approx(0.3 + half, abs=0.004)


def test_a_resample_without_a_score_is_left_out():
    # drawing the second twice leaves nothing to divide by
    measure = error_rate(["a", "b"], [["a"], [""]], "wer")
    low, high = compute_interval(measure.clips, measure.resample)
    assert low == 0
    assert high == 1


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=12).filter(
        lambda rows: any(truth and count for _, truth, count in rows)
    )
)
def test_average_precision_of_repeated_clips_is_scikit_learns(rows):
    scores, truth, counts = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(rows)), counts)
    expected = average_precision_score(truth[repeated], scores[repeated])
    precisions = resample_precision(scores[:, None].astype(float), truth[:, None], counts[None].astype(float))
    assert precisions[0] == pytest.approx(expected)


def test_the_mean_leaves_out_classes_that_do_not_occur():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    truth = np.array([[True, False, False], [False, True, False], [False, True, False]])
    # first class: ranked 1; second: 1 and 2; resampled without the first clip there is one class left
    once = np.ones((1, 3))
    assert resample_precision(scores, truth, once)[0] == 1
    counts = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    np.testing.assert_allclose(resample_precision(scores, truth, counts), [1, 1])
    assert np.isnan(resample_precision(scores, np.zeros_like(truth), once))[0]


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.96, 0.5, 0.52, 0.0, 1.0])
    right = np.array([True, False, True, True, False, True])
    # bins end at 1/15, 2/15, ...: {0.0}, {0.5, 0.52}, {0.95, 0.96, 1.0}
    expected = (1 * 0 + 2 * abs(1 - 0.51) + 3 * abs(2 / 3 - 0.97)) / 6
    measure = calibration_error(confidence, right)
    assert measure.score() == pytest.approx(expected)
    bins = compute_reliability(confidence, right)
    assert len(bins) == BINS
    assert [b["count"] for b in bins if b["count"]] == [1, 2, 3]
    full = next(b for b in bins if b["count"] == 2)
    assert (full["low"], full["high"]) == pytest.approx((7 / 15, 8 / 15))
    assert (full["confidence"], full["accuracy"]) == pytest.approx((0.51, 1))
    assert sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 6 == pytest.approx(expected)
    low, high = compute_interval(measure.clips, measure.resample)
    assert 0 <= low < expected < high <= 1


def test_a_model_that_is_as_sure_as_right_is_calibrated():
    random = np.random.default_rng(0)
    confidence = random.random(20_000)
    assert calibration_error(confidence, random.random(20_000) < confidence).score() < 0.02
    assert calibration_error(confidence, random.random(20_000) < confidence / 2).score() > 0.2
