import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.config.strict_yaml import dump_yaml, load_yaml, parse, parse_override_value
from uniaudio.errors import UserError


def read(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return load_yaml(path)


def test_words_stay_words_and_numbers_are_numbers(tmp_path):
    data = read(
        tmp_path, "labels: [yes, no, on, off]\nlr: 1e-4\ntime: 12:30:00\nflag: true\nnone: null\nn: -3\n"
    )
    assert data == {
        "labels": ["yes", "no", "on", "off"],
        "lr": 1e-4,
        "time": "12:30:00",
        "flag": True,
        "none": None,
        "n": -3,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: 'a' is written twice"),
        ("target: {{ word }}\n", "line 1: a key must be text; quote a value that begins with '{{'"),
        ("a: [1, 2\n", "line"),
        ("- 1\n", "must be one mapping"),
        ("", "is empty; it must be one mapping"),
        ("# to be written\n", "is empty; it must be one mapping"),
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', "line 3: 'c' is written twice"),  # JSON is YAML
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: 'c' is written twice"),
        ("a: !python/object:os.system x\n", "line 1: quote a value that begins with '!'"),
        ("a: @x\n", "quote a value that begins with"),
        ("a: &x [*x]\n", "occurs inside its own anchor"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("? [a]\n: 1\n", "a key must be text"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError) as mistake:
        read(tmp_path, text)
    assert "file.yaml" in str(mistake.value)
    assert message in str(mistake.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read"):
        load_yaml(tmp_path / "nothing.yaml")


def test_what_is_written_is_read_back(tmp_path):
    data = {
        "a": "yes",
        "b": "true",
        "c": "1e-4",
        "d": 1e-4,
        "e": ["null", None, "12:30", ""],
        "f": "{{ x }}",
        "g": 5.0,
    }
    assert read(tmp_path, dump_yaml(data)) == data


def test_override_values():
    assert parse_override_value("1e-4") == 1e-4
    assert parse_override_value("[a, 2]") == ["a", 2]
    assert parse_override_value("no") == "no"


SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(), SCALARS | st.lists(SCALARS, max_size=4), max_size=5))
def test_any_plain_values_survive_writing_and_reading(data):
    assert parse(dump_yaml(data), "text") == data


@pytest.mark.parametrize(
    "text", ["yes", "08:15", "1_000", "1e", "0x", "+", ".", "=", "NO", "on", "nan", "2024-01-01"]
)
def test_other_notations_of_old_yaml_are_text(text):
    assert parse_override_value(text) == text
