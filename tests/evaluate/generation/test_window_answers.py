"""One answer of a row from the answers to the windows of its clip."""

import json

import numpy as np
import pytest

from uniaudio.commands.evaluate import write_answer_files
from uniaudio.data.template_file import Scoring
from uniaudio.evaluate.generation.entry_metrics import describe_answer
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


def test_all_right_answers_of_a_row_are_written_for_scorers_elsewhere(tmp_path):
    scoring = Scoring(metric="meteor")
    records = [
        describe_answer(Prediction(0, "d/test/a", ("ein Hund", "a dog"), "a döner"), scoring),
        describe_answer(Prediction(1, "d/test/b", ("one",), "two"), scoring),
    ]
    assert [record.get("references") for record in records] == [["ein Hund", "a dog"], None]
    write_answer_files(tmp_path, {"d:captions:test@noise_5db": {"answers": records}})
    lines = (tmp_path / "d_captions_test_noise_5db.jsonl").read_text("utf-8").splitlines()
    assert lines[0] == ('{"id": "d/test/a", "prediction": "a döner", "references": ["ein Hund", "a dog"]}')
    assert json.loads(lines[1])["references"] == ["one"]
