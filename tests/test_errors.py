import pytest

from uniaudio import errors
from uniaudio.errors import (
    RowError,
    UserError,
    convert_to_row_error,
    convert_to_user_error,
    hide_value,
    mask_values,
)


def test_what_a_library_raises_becomes_one_sentence():
    with (
        pytest.raises(UserError) as caught,
        convert_to_user_error("decoder.path: x cannot be loaded", "give a folder"),
    ):
        raise KeyError("a\nb")
    assert str(caught.value) == "decoder.path: x cannot be loaded ('a\\nb'); give a folder"
    with (
        pytest.raises(UserError, match=r"^x cannot be read \(first\)$"),
        convert_to_user_error("x cannot be read"),
    ):
        raise OSError("first\nsecond")


def test_an_exception_without_words_is_named():
    with pytest.raises(RowError) as caught, convert_to_row_error("broken audio", "row 3"):
        raise RecursionError
    assert (caught.value.reason, caught.value.detail) == ("broken audio", "row 3 (RecursionError)")


@pytest.mark.parametrize("error", [UserError("mine"), RowError("empty audio", "a.wav"), KeyboardInterrupt()])
def test_our_errors_and_signals_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, convert_to_user_error("x"), convert_to_row_error("y", "z"):
        raise error
    assert caught.value is error


def test_names_and_reasons_can_be_written_anywhere_and_are_of_bounded_length():
    problem = RowError("missing file", "a\udc80b " + "x" * 100_000)
    assert problem.detail.startswith("a\\udc80b xxx")
    assert problem.detail.endswith("(100,004 characters)")
    assert len(problem.detail.encode()) < 600
    assert RowError("missing file", "a\x1b[31m\nb\u2028c\u200dü").detail == "a\\x1b[31m\\nb\\u2028c\u200dü"
    assert str(UserError("a\udc80b")) == "a\\udc80b"


def test_a_value_is_masked_whole_though_another_one_is_its_beginning(monkeypatch):
    monkeypatch.setattr(errors, "HIDDEN", {})
    hide_value("https://host/data", "${env:PLACE}")
    hide_value("https://host/data?token=secret", "${env:SIGNED}")
    assert mask_values("at https://host/data?token=secret") == "at ${env:SIGNED}"
    assert mask_values("at https://host/data?token=other") == "at ${env:PLACE}?token=***"


def test_errors_of_rows_bear_the_key_of_the_row():
    for error in (ValueError("odd"), RowError("empty audio")):
        with (
            pytest.raises(RowError) as caught,
            convert_to_row_error("unreadable row", "outer", "no. 2"),
            convert_to_row_error("unreadable row", "inner", "no. 1"),
        ):
            raise error
        assert caught.value.key == "no. 1"
