import random

import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.template import load_template
from uniaudio.errors import RowError, UserError

GOOD = {
    "task": "word",
    "domain": "speech",
    "inputs": ["word"],
    "labels": ["yes", "no"],
    "prompts": ["<audio>Which word?", "Out of {{ labels | join(', ') }}:<audio>"],
    "target": "{{ word }}",
}


def write(tmp_path, **changes):
    path = tmp_path / "word.yaml"
    path.write_text(dump_yaml({key: value for key, value in {**GOOD, **changes}.items() if value is not None}))
    return load_template(str(path))


def test_renders_prompt_pieces_and_answer(tmp_path):
    template = write(tmp_path)
    first = template.render({"word": "yes"}, None)
    assert (first.prompt, first.answer, first.references) == (("", "Which word?"), "yes", ("yes",))
    prompts = {template.render({"word": "no"}, random.Random(i)).prompt for i in range(20)}
    assert prompts == {("", "Which word?"), ("Out of yes, no:", "")}


def test_one_of_several_answers(tmp_path):
    template = write(tmp_path, target=None, target_one_of="word", labels=None, prompts=["<audio>Describe."])
    fields = {"word": ["a dog", "barking"]}
    assert template.render(fields, None).references == ("a dog", "barking")
    assert {template.render(fields, random.Random(i)).answer for i in range(20)} == {"a dog", "barking"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promts": ["x"]}, "promts: unknown key (did you mean 'prompts'?)"),
        ({"prompts": ["no mark"]}, "prompts[0]: must contain <audio> 1 time(s), found 0"),
        ({"prompts": ["<audio>", "<audio><audio>"]}, "prompts[1]: must contain <audio> 1 time(s), found 2"),
        ({"target": "{{ wrod }}"}, "target: uses 'wrod', but inputs are ['word'] (did you mean 'word'?)"),
        ({"inputs": ["word", "more"]}, "'more' is used by no prompt"),
        ({"target": "{{ word "}, "target: unexpected end of template"),
        ({"labels": ["yes", "yes"]}, "yes is written twice"),
        ({"task": "other"}, "task is 'other', but the file is named word.yaml"),
        ({"scoring": {"metric": "belu"}}, "scoring.metric"),
        ({"domain": "noise"}, "domain"),
        ({"target": "{{ word | random }}"}, "No filter named 'random'"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, changes, message):
    with pytest.raises(UserError) as mistake:
        write(tmp_path, **changes)
    assert message in str(mistake.value)
    assert "word.yaml" in str(mistake.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing column"),
        ({"word": None}, "missing column"),
        ({"word": "maybe"}, "unknown label"),
        ({"word": "\ue000"}, "template error"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, fields, reason):
    with pytest.raises(RowError) as problem:
        write(tmp_path).render(fields, None)
    assert problem.value.reason == reason


def test_an_empty_answer_is_refused(tmp_path):
    with pytest.raises(RowError, match="empty answer"):
        write(tmp_path, labels=None, prompts=["<audio>?"]).render({"word": "  "}, None)


def test_data_never_become_an_audio_mark(tmp_path):
    template = write(tmp_path, labels=None, prompts=["<audio>Is it {{ word }}?"])
    assert template.render({"word": "<audio>"}, None).prompt == ("", "Is it <audio>?")


def test_templates_cannot_reach_python(tmp_path):
    template = write(tmp_path, labels=None, prompts=["<audio>?"], target="{{ word.__class__.__mro__ }}")
    with pytest.raises(RowError, match="template error"):
        template.render({"word": "x"}, None)
