"""What values of columns become in texts: names, numbers and joined lists, never the writing of a null or a list."""

import pickle

import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.data.field_values import ClassIndex, parse_list
from uniaudio.data.jinja import Text
from uniaudio.data.template import load_template
from uniaudio.errors import RowError

DOG = ClassIndex(2, "dog")


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("{{ a | default('z') }}", None, "z"),
        ("{{ a or 'z' }}", None, "z"),
        ("{{ 'n' if a is none else a }}", None, "n"),
        ("{{ 'n' if a == none else a }}", None, "n"),
        ("{{ a | join(', ') }}", ["x", "y"], "x, y"),
        ("{{ a | join(', ') }}", "['x', \"it's\"]", "x, it's"),
        ("{{ a | join('; ') }}", "['x y' 'z'\n 'w']", "x y; z; w"),
        ("{{ a | join('; ') }}", '["x", "y"]', "x; y"),
        ("{{ a[0] }}", " ['x', 'y'] ", "x"),
        ("{{ a | tojson }}", ["x", "y"], '["x", "y"]'),
        ("{{ a.b }}", "{'b': 'c'}", "c"),
        ("{{ a }}", '{"b": "c"}', '{"b": "c"}'),  # an answer may be JSON
        ("{{ a }}", "[noise] hello [noise]", "[noise] hello [noise]"),
        ("{{ a }}", "[laughter]", "[laughter]"),
        ("{{ a }}", 5.0, "5"),
        ("{{ a }}", 5.25, "5.25"),
        ("{{ a }}", 7, "7"),
        ("{{ a }}", "5.0", "5.0"),
        ("{{ a }}", DOG, "dog"),
        ("{{ a | replace('o', 'u') }}", DOG, "dug"),
        ("{{ ['x', 'y', 'z'][a] }}", DOG, "z"),
        ("{{ a | int }}", DOG, "2"),
        ("{{ a + 1 }}", DOG, "3"),
        ("{{ 'yes' if a == 1 else 'no' }}", "1", "yes"),
        ("{{ 'yes' if a else 'no' }}", "False", "no"),
        ("{{ 'yes' if a else 'no' }}", "0", "no"),
        ("{{ 'yes' if a else 'no' }}", True, "yes"),
        ("{{ 'yes' if a in (1, '1', true, 'same') else 'no' }}", "other", "no"),
        ("{{ a | int(3) }}", "many", "3"),
        ("{{ a | int }}", "12", "12"),
    ],
)
def test_what_is_written(text, value, written):
    assert Text(text, "here").render({"a": value}) == written


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("{{ a }}", None, "missing column: here: 'a' has no value"),
        ("{{ a | replace('_', ' ') }}", None, "missing column: here: 'a' has no value"),
        ("a {{ a }}", float("nan"), "missing column: here: 'a' has no value"),
        ("{{ a | int }}", None, "missing column"),
        ("{{ a.b }}", {"b": None}, "missing column: here: 'a.b' has no value"),
        ("{{ a.b | upper }}", {"b": None}, "missing column: here: 'a.b' has no value"),
        ("{{ a | join(', ') }}", ["x", None], r"missing column: here: 'a\[1\]' has no value"),
        ("{{ a }}", ["x"], "template error: here: a list is not text"),
        ("{{ a | lower }}", ["x"], "template error: here: a list is not text"),
        ("{{ a }}", "['x', 'y']", "template error: here: a list is not text"),
        ("{{ a }}", "['x' 'y']", "template error: here: a list is not text"),
        ("{{ a }}", {"b": 1}, "template error: here: a mapping is not text: name one of its keys, b"),
        ("{{ a }}", "{'b': 1}", "template error: here: a mapping is not text"),
        ("{{ a }}", True, "template error: here: true is not text"),
        ("{{ a }}", b"x", "template error: here: bytes are not text"),
        ("{{ a | int }}", "many", "template error: here.*'many' is not a number"),
    ],
)
def test_what_is_never_written(text, value, reason):
    with pytest.raises(RowError, match=reason):
        Text(text, "here").render({"a": value})


def test_texts_that_are_lists():
    assert parse_list("['a', 'b']") == ["a", "b"]
    assert parse_list("['a' 'b']") == ["a", "b"]
    assert parse_list("[]") == []
    assert parse_list("('a', \"b's\")") == ["a", "b's"]
    assert parse_list("('a',)") == ["a"]
    assert parse_list("{'b', 'a'}") == ["b", "a"]
    assert parse_list("array(['a', 'b'], dtype=object)") == ["a", "b"]
    assert parse_list("array(['a' 'b'])") == ["a", "b"]
    assert parse_list("{'a': 1}") == {"a": 1}
    for text in (
        "(laughs)",
        "(1, 2)",
        "('a')",
        "('a', 1)",
        "{1, 2}",
        "f('a', 'b')",
        "array",
        "('a', 'b') ok",
    ):
        assert parse_list(text) is None
    assert parse_list("['a'] and ['b']") is None
    assert parse_list("[" * 50_000 + "]") is None
    assert parse_list("__import__('os')") is None


def test_class_numbers_survive_the_way_between_processes():
    again = pickle.loads(pickle.dumps(DOG))
    assert (again, str(again)) == (2, "dog")


def template(folder, **changes):
    keys = {"task": "t", "domain": "sound", "inputs": ["label"], "prompts": ["<audio>?"], **changes}
    (folder / "t.yaml").write_text(dump_yaml(keys))
    return load_template(str(folder / "t.yaml"))


def test_all_right_answers_may_be_a_list_written_as_text(tmp_path):
    several = template(tmp_path, target_one_of="label")
    for listed in (["a b", "c"], "['a b', 'c']", "['a b' 'c']", '["a b", "c"]', ["a b", None, "c"]):
        assert several.render({"label": listed}, None).references == ("a b", "c")
    assert several.render({"label": DOG}, None).references == ("dog",)
    assert several.render({"label": "[noise]"}, None).references == ("[noise]",)
    for empty in ([None], [float("nan")]):
        with pytest.raises(RowError, match="empty answer"):
            several.render({"label": empty}, None)


def test_a_column_of_a_card_without_value_skips_those_who_use_it_alone(tmp_path):
    content = {"dataset": "d", "load": {"jsonl": "x"}, "license": "CC0-1.0", "splits": {"train": {}}}
    content["columns"] = {"label": "{{ category | replace('_', ' ') }}", "other": "{{ nothing }}"}
    (tmp_path / "d.yaml").write_text(dump_yaml(content))
    card, plain = load_card(str(tmp_path / "d.yaml")), template(tmp_path, target="{{ label }}")
    assert plain.render(card.fields({"category": "a_b"}), None).answer == "a b"
    with pytest.raises(RowError, match=r"missing column: .*columns\.label: 'category' has no value"):
        plain.render(card.fields({"category": None}), None)
    with pytest.raises(RowError, match=r"missing column: .*columns\.label needs 'category'; columns: x"):
        plain.render(card.fields({"x": 1}), None)
