import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.evaluate.metrics.classification import mean_average_precision


def average_precision(scores, truth):
    """By the definition: precision at every threshold, weighted by the gain in recall there."""
    total, hit_share = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        total += (sum(taken) / sum(truth) - hit_share) * sum(taken) / len(taken)
        hit_share = sum(taken) / sum(truth)
    return total


@given(st.integers(0, 2**32 - 1))
def test_it_equals_the_definition_over_classes_with_positives(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 6, (15, 4)) / 5.0, (rng.random((15, 4)) < 0.2).astype(float)
    each = [average_precision(scores[:, k], truth[:, k]) for k in range(4) if truth[:, k].any()]
    assert mean_average_precision(scores, truth) == pytest.approx(sum(each) / len(each) if each else 0.0)
    assert mean_average_precision(scores, truth, absent=True) == pytest.approx(sum(each) / 4)


def test_it_needs_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    truth = np.array([[True], [False], [True]])
    assert mean_average_precision(np.array([[3.0], [2.0], [1.0]]), truth) == pytest.approx((1 + 2 / 3) / 2)
