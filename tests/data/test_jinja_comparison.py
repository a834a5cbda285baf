"""Conditions over tables of text: a fold that is left out stays out, whatever type a file gives it."""

import pytest

from uniaudio.data.field_values import ClassIndex
from uniaudio.data.jinja import Text
from uniaudio.data.keep_conditions import Condition
from uniaudio.errors import UserError

DOG = ClassIndex(2, "dog")


@pytest.mark.parametrize(
    ("source", "value", "holds"),
    [
        ("a != 5", "5", False),
        ("a != 5", "5.0", False),
        ("a != 5", "4", True),
        ("a == 5", " 5", True),
        ("5 != a", "5", False),
        ("a in [4, 5]", "5", True),
        ("a not in (4, 5)", "5", False),
        ("a < 5", "10", False),
        ("5 < a", "10", True),
        ("1 < a <= 3", "3", True),
        ("a is eq 5", "5", True),
        ("a.b == 1", {"b": "1"}, True),
        ("a != '5'", 5, False),
        ("a != 5 and a != 4", "4", False),
        ("not a == 5", "5", False),
        ("a == -1", "-1", True),
        ("a | int != 5", "5", False),
        ("a", "False", False),
        ("not a", "false", True),
        ("a", "0", False),
        ("a", "", False),
        ("a", "yes", True),
        ("a == true", "True", True),
        ("a != 5", "", True),
        ("a < 5", "", False),
        ("a < 5", None, False),
        ("a != 5", None, True),
        ("a == none", None, True),
        ("a is none", None, True),
        ("a != 2", DOG, False),
        ("a == 'dog'", DOG, True),
        ("a in ['cat', 'dog']", DOG, True),
        ("a == '05'", "5", False),  # text beside text stays text
        ("a in '012'", "1", True),
        ("a == 1 or a == 'x'", "1", True),
    ],
)
def test_text_and_numbers_are_compared_by_meaning(source, value, holds):
    assert Condition(source, "here").is_true({"a": value}) is holds


@pytest.mark.parametrize("source", ["a != 5", "a < 5", "a in [4, 5]", "a == true", "a is eq 5"])
def test_text_that_is_no_number_is_not_compared_with_one(source):
    with pytest.raises(UserError, match=r"the text 'five' is compared with .*\(in a row with a='five'\)"):
        Condition(source, "here").is_true({"a": "five"})


@pytest.mark.parametrize("source", ["a", "not a", "a and true", "true and not a"])
def test_text_that_says_no_is_no_condition_by_itself(source):
    with pytest.raises(UserError, match=r"the text 'No' counts as true, .* COLUMN == 'yes'.*a='No'"):
        Condition(source, "here").is_true({"a": "No"})
    assert Condition("a == 'yes'", "here").is_true({"a": "no"}) is False
    assert Text("{% if a %}{{ a }}{% else %}nothing{% endif %}", "here").render({"a": "No"}) == "No"


def test_a_list_of_numbers_and_texts_takes_either():
    either = Condition("a in (1, '1', 'same')", "here")
    assert [either.is_true({"a": value}) for value in (1, "1", "same", "other", 2)] == [
        True,
        True,
        True,
        False,
        False,
    ]
