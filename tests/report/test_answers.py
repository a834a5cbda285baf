"""The sentences about answers: scores, and what is no better than chance."""

import pytest
from helpers.runs import answers_of

from uniaudio.errors import UserError
from uniaudio.report.answers import (
    check_answers,
    compute_chance,
    describe_answers,
    find_low_scores,
    has_answers,
)


def entry(score, metric="accuracy", **others):
    return {"metric": metric, "score": score, **others}


def test_sets_whose_metric_is_undefined_are_left_out_with_a_note():
    undefined = entry(None, "cider", undefined={"cider": "too few"})
    notes = []
    assert check_answers({"a": entry(0.5), "b": undefined}, "answers.json", notes) == {"a": entry(0.5)}
    assert notes == ["answers.json: b: cider is undefined: too few"]
    assert has_answers({"b": undefined})
    with pytest.raises(UserError, match="'b' holds no metric and score"):
        check_answers({"b": {"metric": "cider"}}, "answers.json")


def test_few_sets_are_named_and_of_many_the_range():
    few = {"a": entry(0.5), "b": entry(0.25), "c": entry(0.1, "wer")}
    assert describe_answers("run", few) == "Answers of run: accuracy 0.500 on a, 0.250 on b; wer 0.100 on c."
    many = {f"s{i}": entry(i / 10) for i in range(5)}
    assert (
        describe_answers("run", many) == "Answers of run: accuracy from 0.000 (s0) to 0.400 (s4) on 5 sets."
    )
    assert describe_answers("run", {}) == ""


def test_chance_is_the_share_of_the_most_frequent_right_answer():
    references = [{"reference": name} for name in ("a", "a", "a", "b")]
    labels = {"names": ["a", "b", "c"]}
    assert compute_chance(entry(0.5, labels=labels, answers=references)) == 0.75
    assert compute_chance(entry(0.5, labels=labels, answers=[{"reference": "a, b"}])) is None
    assert compute_chance(entry(0.5, answers=references)) is None


def test_chance_of_an_average_over_classes_is_that_of_the_same_constant_answer():
    """Three of four clips are a: it has recall 1 and F1 6/7, b has neither, and c does not occur."""
    references = [{"reference": name} for name in ("a", "a", "a", "b")]
    one = entry(0.5, "uar", labels={"names": ["a", "b", "c"]}, answers=references)
    assert compute_chance(one, "uar") == 1 / 2
    assert compute_chance(one, "macro_f1") == pytest.approx(6 / 7 / 2)
    low = {"set": {**one, "interval": [0.45, 0.55]}}
    assert find_low_scores("run", low) == [
        "Answers of run are no better than chance on set (0.500; chance 0.500)."
    ]
    assert find_low_scores("run", {"set": {**one, "score": 0.6, "interval": [0.55, 0.65]}}) == []


def test_answers_and_labels_at_or_below_chance_are_said():
    names = ["a", "b", "c", "d"]
    good = answers_of({"good": names}, right=0.9)["good"]
    bad = answers_of({"bad": names}, right=0.0)["bad"]
    bad["labels"]["interval"] = [0.0, 0.05]
    assert find_low_scores("run", {"good": good}) == []
    answers, labels = find_low_scores("run", {"good": good, "bad": bad})
    assert answers == "Answers of run are no better than chance on bad (0.000; chance 0.250, below it)."
    assert labels.startswith(
        "The likeliest labels of run are no better than chance on bad (0.000; chance 0.250"
    )


def test_open_answers_of_which_none_is_right_and_error_rates_of_one_are_said():
    none, errors = find_low_scores(
        "run", {"open": entry(0.0), "asr": entry(1.25, "wer"), "fine": entry(0.2, "wer")}
    )
    assert "open (0.000, no answer is right)" in none
    assert errors.endswith("on asr (wer 1.250).")
