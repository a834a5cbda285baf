"""Streams of different rates at one rate: against sums over time written as loops."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniaudio.model.fusion.align import align, count_frames_at
from uniaudio.ragged import Ragged

RATES = [3.2, 10.0, 12.5, 13.0, 16.0, 25.0, 40.0, 50.0, 75.0]


def area(frame_list, rate, to_rate, length):
    """Mean of a step function over each new frame's time, by exact fractions."""
    rate, to_rate = Fraction(rate).limit_denominator(1000), Fraction(to_rate).limit_denominator(1000)
    result = []
    for k in range(length):
        begin, end = k / to_rate, (k + 1) / to_rate
        total = 0
        first, last = math.floor(begin * rate), math.ceil(end * rate) - 1
        for j in range(first, last + 1):
            shared = min(end, (j + 1) / rate) - max(begin, j / rate)
            total = total + float(shared * to_rate) * frame_list[min(j, len(frame_list) - 1)]
        result.append(total)
    return torch.stack(result)


def interpolated(frame_list, rate, to_rate, length):
    result = []
    for k in range(length):
        place = min(max((k + 0.5) * rate / to_rate - 0.5, 0), len(frame_list) - 1)
        low = int(place)
        high = min(low + 1, len(frame_list) - 1)
        result.append(frame_list[low] + (frame_list[high] - frame_list[low]) * (place - low))
    return torch.stack(result)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    rate=st.sampled_from(RATES),
    to_rate=st.sampled_from(RATES),
    method=st.sampled_from(["area", "linear"]),
)
def test_equals_the_loop_over_time(lengths, rate, to_rate, method):
    torch.manual_seed(0)
    single, wanted = (torch.tensor(column) for column in zip(*lengths, strict=True))
    frames = Ragged(torch.randn(int(single.sum()), 3, dtype=torch.float64), single)
    got = align(frames, rate, to_rate, wanted, method)
    reference = area if method == "area" else interpolated
    for row, made, length in zip(frames.rows(), got.rows(), wanted.tolist(), strict=True):
        torch.testing.assert_close(made, reference(list(row), rate, to_rate, length), atol=1e-9, rtol=0)


def test_pairs_are_averaged_and_an_odd_last_frame_stays_alone():
    frames = Ragged(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([3]))
    assert align(frames, 50, 25, torch.tensor([2])).values.flatten().tolist() == [2.0, 7.0]


def test_slower_frames_are_repeated_and_missing_ones_held():
    frames = Ragged(torch.tensor([[1.0], [3.0]]), torch.tensor([2]))
    assert align(frames, 12.5, 25, torch.tensor([5])).values.flatten().tolist() == [1, 1, 3, 3, 3]


def test_nothing_is_copied_when_nothing_is_to_be_done():
    frames = Ragged(torch.randn(4, 2), torch.tensor([1, 3]))
    assert align(frames, 25, 25, torch.tensor([1, 3])) is frames


def test_no_clip_reaches_into_another():
    frames = Ragged(torch.tensor([[0.0], [0.0], [100.0], [100.0]]), torch.tensor([2, 2]))
    for method in ("area", "linear"):
        first, second = align(frames, 50, 25, torch.tensor([3, 3]), method).rows()
        assert first.abs().max() == 0
        assert second.min() == 100


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 1), (1, 1), (640, 1), (641, 2), (16000, 25), (480_000, 750)]
)
def test_frames_cover_every_sample(samples, frames):
    assert count_frames_at(25.0, samples) == frames


def test_rates_that_are_no_whole_numbers_are_exact():
    assert count_frames_at(3.2, 5000) == 1
    assert count_frames_at(3.2, 5001) == 2
    assert count_frames_at(3.2, 160_000) == 32
