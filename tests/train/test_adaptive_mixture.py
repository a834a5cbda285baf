"""The adaptive mixture: which way it moves, how far, and that it goes on where it stood."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uniaudio.config.stages import BalanceConfig
from uniaudio.train.adaptive_mixture import AdaptiveMixture, compute_shares, move_mixture_weights

SETTINGS = BalanceConfig(every=1, bound=4.0, rate=0.5)
TASKS = {"a": ["x"], "b": ["y"], "c": ["z"]}
LOSSES = st.floats(0, 50) | st.sampled_from([0.0, math.nan, math.inf])
ROUNDS = st.lists(st.dictionaries(st.sampled_from("xyz"), LOSSES), max_size=8)


def test_the_first_round_only_measures():
    balance = move_mixture_weights(AdaptiveMixture(), {"x": 3.0, "y": 1.0}, TASKS, SETTINGS)
    assert balance == AdaptiveMixture(1, {"a": 1.0, "b": 1.0, "c": 1.0}, {"x": 3.0, "y": 1.0})


def test_factors_equal_the_equation():
    """Falls of 50 %, 10 % and a rise, which counts as no fall."""
    before = AdaptiveMixture(3, {"a": 1.0, "b": 2.0, "c": 0.5}, {"x": 2.0, "y": 1.0, "z": 1.0})
    after = move_mixture_weights(before, {"x": 1.0, "y": 0.9, "z": 7.0}, TASKS, SETTINGS)
    g = [0.5, 0.1, 0.0]
    mean = 0.2
    widest = 0.3
    wanted = {
        name: old * math.exp(0.5 * (gain - mean) / widest)
        for name, old, gain in zip("abc", (1.0, 2.0, 0.5), g, strict=True)
    }
    assert after.factors == pytest.approx(wanted, rel=1e-12)
    assert after.factors["a"] == pytest.approx(math.exp(0.5))  # rate is the largest change of a logarithm
    assert (after.round, after.losses) == (4, {"x": 1.0, "y": 0.9, "z": 7.0})


def test_a_task_whose_loss_falls_more_gets_more_whatever_its_scale():
    before = AdaptiveMixture(1, {}, {"x": 1000.0, "y": 0.01})
    after = move_mixture_weights(before, {"x": 900.0, "y": 0.001}, {"a": ["x"], "b": ["y"]}, SETTINGS)
    assert after.factors["b"] > 1 > after.factors["a"]


def test_an_entry_of_several_tasks_counts_their_mean():
    tasks = {"both": ["x", "y", "unknown"], "a": ["x"], "b": ["y"]}
    after = move_mixture_weights(
        AdaptiveMixture(1, {}, {"x": 1.0, "y": 1.0}), {"x": 0.5, "y": 0.9}, tasks, SETTINGS
    )
    assert after.factors["both"] == pytest.approx(1.0)
    assert after.factors["a"] == pytest.approx(math.exp(0.5))
    assert after.factors["b"] == pytest.approx(math.exp(-0.5))


def test_an_entry_without_validation_loss_keeps_its_factor():
    before = AdaptiveMixture(1, {"c": 1.7}, {"x": 1.0, "y": 1.0})
    after = move_mixture_weights(before, {"x": 0.5, "y": 1.0}, TASKS, SETTINGS)
    assert after.factors["c"] == 1.7
    nothing = move_mixture_weights(before, {}, TASKS, SETTINGS)
    assert nothing.factors == {"a": 1.0, "b": 1.0, "c": 1.7}


def test_equal_progress_moves_nothing():
    after = move_mixture_weights(
        AdaptiveMixture(1, {"a": 3.0}, {"x": 2.0, "y": 4.0}), {"x": 1.0, "y": 2.0}, TASKS, SETTINGS
    )
    assert after.factors == pytest.approx({"a": 3.0, "b": 1.0, "c": 1.0})


def test_factors_stop_at_the_bound_and_come_back():
    balance = AdaptiveMixture(0, {}, {})
    loss = 1.0
    for _ in range(12):
        balance = move_mixture_weights(balance, {"x": loss, "y": 1.0}, TASKS, SETTINGS)
        loss /= 2
    assert (balance.factors["a"], balance.factors["b"]) == (4.0, 0.25)
    back = move_mixture_weights(balance, {"x": balance.losses["x"], "y": 0.5}, TASKS, SETTINGS)
    assert back.factors["a"] == pytest.approx(4 * math.exp(-0.5))
    assert back.factors["b"] == pytest.approx(0.25 * math.exp(0.5))


@given(
    ROUNDS,
    st.floats(1.01, 100),
    st.floats(1e-3, 1e3),
    st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
)
@example([{"x": 2.0, "y": 1.0}, {"x": 1.0, "y": 1.0}], 4.0, 1000.0, [1.0, 1.0, 1.0])
def test_factors_stay_within_the_bound_and_shares_are_shares(rounds, bound, rate, usual):
    settings = BalanceConfig(every=1, bound=bound, rate=rate)
    balance = AdaptiveMixture()
    for losses in rounds:
        balance = move_mixture_weights(balance, losses, TASKS, settings)
        assert set(balance.factors) == set(TASKS)
        assert all(1 / bound <= factor <= bound for factor in balance.factors.values())
    assert balance.round == len(rounds)
    given_shares = {name: share / sum(usual) for name, share in zip("abc", usual, strict=True)}
    shares = compute_shares(list(given_shares.items()), balance.factors)
    assert sum(shares) == pytest.approx(1)
    result = dict(zip("abc", shares, strict=True))
    for name, share in result.items():  # the bound holds for the ratio of any two
        ratio = share / result["a"] / (given_shares[name] / given_shares["a"])
        assert bound**-2 * (1 - 1e-9) <= ratio <= bound**2 * (1 + 1e-9)


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), st.floats(0, 50)), min_size=1, max_size=6))
def test_it_goes_on_from_json_as_if_never_stopped(rounds):
    whole = broken = AdaptiveMixture()
    for losses in rounds:
        whole = move_mixture_weights(whole, losses, TASKS, SETTINGS)
        again = AdaptiveMixture.from_json(json.loads(json.dumps(broken.to_json())))
        broken = move_mixture_weights(again, losses, TASKS, SETTINGS)
    assert whole == broken
    assert AdaptiveMixture.from_json(None) == AdaptiveMixture()


def test_shares_are_usual_ones_times_factors():
    assert compute_shares([("a", 0.25), ("b", 0.75)], {"a": 3.0}) == pytest.approx([0.5, 0.5])


def test_entries_of_one_name_keep_different_shares():
    """As a set that is trained on with an augmentation and replayed without it."""
    usual = [("a", 0.6), ("a", 0.2), ("b", 0.2)]
    assert compute_shares(usual, {"a": 0.5}) == pytest.approx([0.5, 0.5 / 3, 1 / 3])
