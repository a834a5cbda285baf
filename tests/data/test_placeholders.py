"""Labels such as `n/a` are named, and the `keep` that leaves them out is one that works."""

import re

import pytest

from uniaudio.data.keep_conditions import Condition
from uniaudio.data.placeholders import describe_placeholders, is_placeholder


@pytest.mark.parametrize(
    "label", ["n/a", "N/A", " NA ", "null", "None", "NaN", "?", "-", "xxx", "Not available"]
)
def test_texts_that_stand_for_no_label(label):
    assert is_placeholder(label)


@pytest.mark.parametrize("label", ["neutral", "unknown", "other", "no", "nana", "x", "silence", ""])
def test_texts_that_are_labels(label):
    assert not is_placeholder(label)


@pytest.mark.parametrize("values", [("n/a",), ("n/a", "?")])
def test_the_condition_that_is_named_leaves_the_rows_out(values):
    (sentence,) = describe_placeholders({("emotion", value): 3 for value in values})
    source = re.search(r'write `keep: "(.*)"` under each split of the card', sentence)[1]
    keep = Condition(source, "splits.train.keep")
    kept = [value for value in ("happy", *values, "sad", None) if keep.is_true({"emotion": value})]
    assert kept == ["happy", "sad", None]  # rows without a value are skipped, and counted, when they are read


def test_every_column_has_a_sentence():
    counts = {("emotion", "n/a"): 1200, ("emotion", "?"): 1, ("", "none"): 2, ("my label", "-"): 1}
    of_emotion, computed, odd = describe_placeholders(counts)
    assert of_emotion.startswith(
        "`emotion` is 'n/a' in 1,200 rows, '?' in 1 row, learned and scored as an answer like any other; if these rows "
    )
    assert computed.startswith("the answer is 'none' in 2 rows, ")
    assert computed.endswith("leave them out: write `keep` under each split of the card")
    assert odd.startswith("`my label` is '-' in 1 row")
    assert odd.endswith("leave them out: write `keep` under each split of the card")
