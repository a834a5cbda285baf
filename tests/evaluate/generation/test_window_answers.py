"""One answer of a row from the answers to the windows of its clip."""

import numpy as np
import pytest

from uniaudio.data.template import Scoring
from uniaudio.evaluate.generation.predictions import Prediction
from uniaudio.evaluate.generation.window_answers import join_windows
from uniaudio.evaluate.metrics.classification import compute_probabilities


def make_windows(*texts, scores=None):
    return [
        Prediction(
            3,
            f"d/test/a#t=b.wav#t={4 * i},{4 * i + 4}",
            ("x",),
            text,
            scores[i] if scores else None,
            is_cut=text == "cut",
            window=(4.0 * i, 4.0 * i + 4),
        )
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("metric", "texts", "joined"),
    [
        ("wer", ["one two", " ", "three "], "one two three"),
        ("cider", ["a dog", "a cat"], "a dog a cat"),
        ("accuracy", ["Rock", "jazz", "rock"], "Rock"),
        ("accuracy", ["jazz", "rock"], "jazz"),
        ("map", ["dog; bark", "Bark;cat", "dog"], "dog;bark;cat"),
    ],
)
def test_texts_are_joined_by_what_they_are_compared_with(metric, texts, joined):
    alone = Prediction(1, "d/test/short", ("y",), "as it is")
    first, whole = join_windows([alone, *make_windows(*texts)], Scoring(metric=metric), [])
    assert first is alone
    assert (whole.place, whole.id, whole.references) == (3, "d/test/a#t=b.wav", ("x",))
    assert whole.answer == joined
    assert [(part.window[0], part.answer) for part in whole.windows] == [
        (4.0 * i, t) for i, t in enumerate(texts)
    ]


def test_an_answer_is_cut_where_one_of_its_parts_is():
    assert join_windows(make_windows("a", "cut"), Scoring(), [])[0].is_cut
    assert not join_windows(make_windows("a", "b"), Scoring(), [])[0].is_cut


@pytest.mark.parametrize("likelihood", ["sum", "mean"])
def test_the_probabilities_of_labels_are_averaged(likelihood):
    scores, tokens, scoring = (
        [(-1.0, -5.0, -2.0), (-4.0, -2.0, -9.0)],
        [1, 2, 4],
        Scoring(likelihood=likelihood),
    )
    (whole,) = join_windows(make_windows("a", "b", scores=scores), scoring, tokens)
    parts = compute_probabilities(np.array(scores), tokens, likelihood)
    mean = compute_probabilities(np.array([whole.log_likelihoods]), tokens, likelihood)
    np.testing.assert_allclose(mean[0], parts.mean(0), rtol=1e-12)
