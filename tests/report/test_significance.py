"""The rules against enumeration and loops."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.report.significance import (
    compare_answers,
    compare_intervals,
    compare_pairs,
    compare_spreads,
    get_score_interval,
)


@given(*[st.floats(0, 1)] * 4)
def test_the_spread_rule(m1, s1, m2, s2):
    comparison = compare_spreads((m1, s1), (m2, s2))
    if s1 == 0 and s2 == 0:
        assert comparison.verdict == "unclear"
    elif abs(m2 - m1) > 2 * math.sqrt(s1 * s1 + s2 * s2) + 1e-9:
        assert comparison.verdict == ("better" if m2 > m1 else "worse")
    elif abs(m2 - m1) < 2 * math.sqrt(s1 * s1 + s2 * s2) - 1e-9:
        assert comparison.verdict == "unclear"


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))
def test_mcnemar_equals_the_enumeration_of_all_coin_throws(won, lost, same):
    first = [False] * won + [True] * lost + [True] * same
    second = [True] * won + [False] * lost + [True] * same
    n = won + lost
    # all 2^n ways in which the discordant questions could have gone, at least as uneven as this one
    ways = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(won - lost))
    p = ways / 2**n
    expected = "unclear" if p >= 0.05 or won == lost else "better" if won > lost else "worse"
    comparison = compare_pairs(first, second)
    assert comparison.verdict == expected
    assert f"{won} won, {lost} lost of {len(first)}, p = {p:.2g}" == comparison.why


def entry(metric, answers, **more):
    items = [{"id": str(i), "reference": r, "answer": a, "right": a == r} for i, (r, a) in enumerate(answers)]
    right = sum(item["right"] for item in items) / len(items)
    return {
        "metric": metric,
        "score": right,
        "right": right,
        "examples": len(items),
        "answers": items,
        **more,
    }


def test_the_same_questions_are_compared_in_pairs():
    first = entry("accuracy", [("a", "b")] * 12 + [("a", "a")] * 8)
    second = entry("accuracy", [("a", "a")] * 20)
    comparison = compare_answers(first, second)
    assert (comparison.rule, comparison.verdict) == ("pairs", "better")
    backwards = compare_answers(second, {**first, "answers": first["answers"][::-1]})
    assert (backwards.rule, backwards.verdict) == ("pairs", "worse")


def test_other_questions_are_compared_by_intervals():
    first = entry("accuracy", [("a", "b")] * 30 + [("a", "a")] * 10)
    second = entry("accuracy", [("b", "b")] * 40)
    assert compare_answers(first, second).rule == "intervals"
    assert compare_answers(first, second).verdict == "better"
    few = {**second, "answers": second["answers"][:3]}
    assert compare_answers(first, few).rule == "intervals"


def test_error_rates_fall_when_they_get_better():
    truth = [f"one two three {i}" for i in range(30)]
    bad, good = ([(t, t.replace("two", "x")) for t in truth], [(t, t) for t in truth])
    comparison = compare_answers(entry("wer", bad, score=0.25), entry("wer", good, score=0.0))
    assert (comparison.rule, comparison.verdict, comparison.why) == (
        "bootstrap",
        "better",
        "95 %: -0.250 to -0.250",
    )
    assert compare_answers(entry("wer", good, score=0.0), entry("wer", bad, score=0.25)).verdict == "worse"


@pytest.mark.parametrize("metric", ["uar", "macro_f1"])
def test_averages_over_classes_rise_when_they_get_better(metric):
    """The rare class, 6 clips of 60, is missed by one model; the other misses as many of the frequent one."""
    truth = ["neutral"] * 54 + ["angry"] * 6
    rare_missed = [(t, "neutral") for t in truth]
    few_missed = [(t, "angry" if i < 6 else t) for i, t in enumerate(truth)]
    scores = {"uar": (1 / 2, (48 / 54 + 1) / 2), "macro_f1": (108 / 114 / 2, (96 / 102 + 12 / 18) / 2)}
    first, second = (
        entry(metric, answers, score=score)
        for answers, score in zip((rare_missed, few_missed), scores[metric], strict=True)
    )
    comparison = compare_answers(first, second)
    assert (comparison.rule, comparison.verdict) == ("bootstrap", "better")
    assert compare_answers(second, first).verdict == "worse"
    as_accuracy = [{**one, "metric": "accuracy", "score": 0.9} for one in (first, second)]
    assert compare_answers(*as_accuracy).verdict == "unclear"  # as many are right


def test_one_question_of_many_decides_nothing():
    truth = [f"one two three {i}" for i in range(30)]
    same = [(t, t) for t in truth]
    other = [*same[:-1], (truth[-1], "one two three")]
    comparison = compare_answers(entry("wer", same, score=0.0), entry("wer", other, score=1 / 120))
    assert comparison.verdict == "unclear"  # in more than one of forty resamples that question does not occur


def test_intervals_need_a_gap():
    assert compare_intervals(0.1, (0.4, 0.5), (0.5, 0.6)).verdict == "better"  # 0.1 > sqrt(.05^2 + .05^2)
    assert compare_intervals(0.06, (0.4, 0.5), (0.46, 0.56)).verdict == "unclear"
    assert compare_intervals(-0.1, (0.4, 0.5), (0.3, 0.4)).verdict == "worse"


def test_without_any_interval_nothing_is_claimed():
    first, second = ({"metric": "bleu", "score": s} for s in (0.1, 0.9))
    assert compare_answers(first, second).verdict == "unclear"


def test_stored_intervals_come_first_and_a_share_has_wilsons():
    assert get_score_interval({"metric": "wer", "score": 0.3, "interval": [0.2, 0.4]}) == (0.2, 0.4)
    assert get_score_interval({"metric": "wer", "score": 0.3, "examples": 10}) is None
    low, high = get_score_interval({"metric": "accuracy", "score": 0.0, "examples": 16})
    # Wilson 1927 by hand: no right answer of 16, z = 1.95996: upper end z^2 / (n + z^2)
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (16 + 1.959964**2), abs=1e-6)


def test_bootstrap_equals_a_loop_over_the_same_draws():
    from uniaudio.evaluate.metrics.intervals import draw_resamples

    truth = [f"one two three four {i}" for i in range(12)]
    first = [(t, t.replace("two", "x") if i % 3 else t) for i, t in enumerate(truth)]
    second = [(t, t.replace("one", "y") if i % 4 == 0 else t) for i, t in enumerate(truth)]
    deltas = []
    for row in itertools.chain.from_iterable(draw_resamples(12)):
        errors = [sum(n * (a != r) for n, (r, a) in zip(row, side, strict=True)) for side in (first, second)]
        deltas.append((errors[1] - errors[0]) / (5 * sum(row)))
    deltas.sort()
    low, high = (
        deltas[24] + 0.975 * (deltas[25] - deltas[24]),
        deltas[974] + 0.025 * (deltas[975] - deltas[974]),
    )
    comparison = compare_answers(entry("wer", first), entry("wer", second))
    assert comparison.why == f"95 %: {low:+.3f} to {high:+.3f}"
