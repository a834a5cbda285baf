import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from uniaudio.evaluate.probing.frame_probes import (
    build_frame_targets,
    compute_f1,
    compute_onset_f1,
    events_to_segments,
    find_onsets,
    frames_to_segments,
    match_onsets,
    pool_whole_segments,
)
from uniaudio.evaluate.probing.task_answers import Event

CLASSES = {"dog": 0, "cat": 1}


def test_frames_of_events():
    events = [Event(0.05, 0.11, "dog"), Event(0.0, 0.02, "cat")]
    touched = build_frame_targets(events, 8, 50.0, CLASSES, touched=True)  # frames of 20 ms
    assert touched[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert touched[:, 1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    theirs = build_frame_targets(events, 8, 50.0, CLASSES, touched=False)
    assert theirs[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]  # ceil(2.5) up to ceil(5.5)


def test_segments_equal_a_loop():
    rng = np.random.default_rng(0)
    for rate, resolution, count in itertools.product(
        (50.0, 25.0, 33.3), (1.0, 0.1, 0.25), (1, 49, 50, 51, 137)
    ):
        active = rng.random((count, 2)) < 0.1
        segments = frames_to_segments(active, rate, resolution)
        expected = np.zeros_like(segments)
        for frame in range(count):
            for number in range(len(expected)):
                start, end = number * resolution - 1e-6, (number + 1) * resolution - 1e-6
                if start <= frame / rate < end:
                    expected[number] |= active[frame]
        assert (segments == expected).all()
        assert len(segments) == pytest.approx(count / rate / resolution, abs=1)
    segments = events_to_segments([Event(0.9, 2.1, "cat")], 4, 1.0, CLASSES)
    assert segments[:, 1].tolist() == [1, 1, 1, 0]
    assert not segments[:, 0].any()


def test_whole_segments_drop_what_is_left_over():
    active = np.zeros((7, 1), dtype=bool)
    active[[2, 6]] = True
    assert pool_whole_segments(active, 3.0, 1.0)[:, 0].tolist() == [True, False]
    assert pool_whole_segments(active[:2], 3.0, 1.0).shape == (0, 1)  # shorter than a segment


@given(st.integers(0, 2**32 - 1), st.sampled_from(["micro", "macro"]))
def test_f1_equals_sklearn_over_the_classes_that_occur(seed, average):
    rng = np.random.default_rng(seed)
    truth, guess = rng.random((2, 12, 3)) < 0.3
    occurring = np.flatnonzero(truth.any(0))
    if not len(occurring):
        assert compute_f1(truth, guess, average) == 0.0
        return
    labels = occurring if average == "macro" else [0, 1, 2]
    expected = f1_score(truth, guess, average=average, labels=labels, zero_division=0)
    assert compute_f1(truth, guess, average) == pytest.approx(expected)


def test_onsets_begin_where_a_class_begins():
    active = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
    assert find_onsets(active, 2.0) == [[0.0, 1.5], [1.0]]


@given(
    st.lists(st.integers(0, 30), max_size=5).map(sorted),
    st.lists(st.integers(0, 30), max_size=5).map(sorted),
    st.integers(0, 6),
)
def test_matching_is_the_largest_there_is(truth, guess, collar):
    """Against every way to pair."""
    best = 0
    short, long = sorted((truth, guess), key=len)
    for chosen in itertools.permutations(range(len(long)), len(short)):
        best = max(best, sum(abs(a - long[i]) <= collar for a, i in zip(short, chosen, strict=True)))
    assert match_onsets(truth, guess, collar) == best


def test_onset_f1_with_a_collar():
    truth = [[Event(0.10, 1, "dog"), Event(0.50, 1, "dog")], [Event(0.0, 1, "cat")]]
    guess = [[[0.14, 0.80], []], [[], [0.30]]]
    assert compute_onset_f1(truth, guess, CLASSES, 0.05, "micro") == pytest.approx(2 * 1 / (3 + 3))
    assert compute_onset_f1(truth, guess, CLASSES, 0.05, "macro") == pytest.approx((2 * 1 / 4 + 0) / 2)
    assert compute_onset_f1(truth, guess, CLASSES, 0.30, "micro") == pytest.approx(1.0)
