"""The challenge's scores by hand."""

import pytest
from rich.console import Console

from uniaudio.evaluate.metrics.challenge import (
    build_challenge_table,
    collect_challenge_scores,
    compute_challenge_score,
)


def test_accuracy_is_of_whole_strings():
    answers = ["Dog-bark!", "the  cat", "rain", "a rain"]
    scored = compute_challenge_score("accuracy", answers, ["dog bark", "The cat.", "Rain", "rain"])
    assert (scored["metric"], scored["score"]) == ("Accuracy", 0.75)
    assert scored["interval"][0] <= 0.75 <= scored["interval"][1]


@pytest.mark.parametrize("metric", ["uar", "macro_f1"])
def test_averages_over_classes_are_accuracy_in_the_suite(metric):
    scored = compute_challenge_score(metric, ["dog", "dog", "dog", "dog"], ["dog", "dog", "dog", "cat"])
    assert (scored["metric"], scored["score"]) == ("Accuracy", 0.75)


@pytest.mark.parametrize(
    ("metric", "answers", "truth", "name", "score"),
    [
        ("wer", ["the cat sat"], ["The cat, sat!"], "iWER", 1.0),
        ("wer", ["a b", "c"], ["a x", "c d"], "iWER", 0.5),
        ("wer", ["a b c d e"], ["x"], "iWER", 0.0),  # five errors for one word: not below 0
        ("cer", ["abcd"], ["abxd"], "iCER", 0.75),
    ],
)
def test_error_rates_are_turned_round(metric, answers, truth, name, score):
    scored = compute_challenge_score(metric, answers, truth)
    assert (scored["metric"], scored["score"]) == (name, pytest.approx(score))


def test_lists_of_tags_are_zeros_and_ones():
    # dog: named twice, once rightly, of 1 in 3: 1 * 1/2 + 0; rain: named once of twice: 1/2 * 1 + 1/2 * 2/3
    answers = ["Dog; rain", "dog", "wind"]
    scored = compute_challenge_score("map", answers, ["dog;RAIN", "rain", "wind"])
    assert scored["metric"] == "mAP"
    assert scored["score"] == pytest.approx((1 / 2 + (1 / 2 + 1 / 3) + 1) / 3)


def results(metric, *pairs):
    return {"metric": metric, "answers": [{"answer": a, "reference": r} for a, r in pairs]}


def test_overall_is_the_plain_mean_of_what_is_scored():
    result = collect_challenge_scores(
        {
            "esc50:sound": results("accuracy", ("dog", "Dog"), ("cat", "dog")),
            "libri:asr": results("wer", ("a b c d", "a b c x")),
            "clotho:captioning": results("meteor", ("a dog", "a dog barks")),
        }
    )
    assert result["overall"] == pytest.approx((0.5 + 0.75) / 2)
    assert result["protocol"] == "xares-llm"
    assert result["scores"]["libri:asr"]["metric"] == "iWER"
    assert result["not_scored"] == {
        "clotho:captioning": "meteor: FENSE and DATE need models from the network"
    }
    console = Console(width=160)
    with console.capture() as capture:
        console.print(build_challenge_table(result))
    assert "0.625" in capture.get()
    marks = collect_challenge_scores({"marks:wer": results("wer", ("", "!"), ("?", "?"))})
    assert marks["not_scored"] == {"marks:wer": "wer: all right answers are empty after normalizing"}
    assert marks["overall"] is None
    nothing = collect_challenge_scores({"clotho:captioning": results("meteor", ("a dog", "a dog barks"))})
    assert nothing["overall"] is None
