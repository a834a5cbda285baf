import pickle
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
    path.write_text(
        dump_yaml({key: value for key, value in {**GOOD, **changes}.items() if value is not None})
    )
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
        ({"inputs": ["word", "more"]}, "'more' is used neither by a prompt"),
        ({"target": "{{ word "}, "target: unexpected end of template"),
        ({"labels": ["yes", "yes"]}, "yes is written twice"),
        ({"task": "other"}, "task is 'other', but the file is word.yaml"),
        (
            {"scoring": {"metric": "were"}},
            "scoring.metric: 'were' is not one of accuracy, uar, macro_f1, wer, cer, bleu, meteor, cider, map "
            "(did you mean 'wer'?)",
        ),
        ({"scoring": {"metrik": "wer"}}, "scoring.metrik: unknown key (did you mean 'metric'?)"),
        ({"domain": "noise"}, "domain: 'noise' is not one of speech, sound, music"),
        ({"labels": ["yes", True]}, "labels: a label is True, which is not text; put it in quotes"),
        ({"labels": ["yes", float("nan")]}, "labels: a label is nan, which is not text; put it in quotes"),
        ({"labels": [1, 1.0]}, "labels: 1 is written twice"),
        ({"labels": "yes"}, "labels: input should be a list, got 'yes'"),
        ({"labels": []}, "labels: is empty"),
        ({"labels": None, "labels_from": "none.txt"}, "labels_from: there is no file"),
        ({"labels_from": "none.txt"}, "give `labels` or `labels_from`, not both"),
        ({"target_one_of": "word"}, "give exactly one of `target` and `target_one_of`"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["<audio>{{ nothing }}"]}, "prompts[0]: uses 'nothing'"),
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


def test_labels_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("yes\n\n no \n")
    assert write(tmp_path, labels=None, labels_from="words.txt").labels == ("yes", "no")


def test_numbers_may_be_labels(tmp_path):
    template = write(tmp_path, labels=[1, 2.5, "3", 4.0])
    assert template.labels == ("1", "2.5", "3", "4")
    assert template.render({"word": 1}, None).answer == "1"
    assert template.render({"word": 4.0}, None).answer == "4"


@pytest.mark.parametrize("bpm", [119.6, "119.6", 120])
def test_tempo_takes_numbers_and_the_text_that_tables_hold(bpm):
    assert load_template("tempo").render({"bpm": bpm}, None).answer == "120"


def test_one_caption_is_a_list_of_one(tmp_path):
    template = write(tmp_path, target=None, target_one_of="word", labels=None, prompts=["<audio>Describe."])
    assert template.render({"word": "a dog"}, None).references == ("a dog",)
    for wrong in ([], 3):
        with pytest.raises(RowError, match="must be a list"):
            template.render({"word": wrong}, None)


def test_two_clips_and_marks_that_depend_on_the_row(tmp_path):
    template = write(tmp_path, prompts=["A: <audio> B: <audio>", "<audio>and<audio>"])
    assert template.num_clips == 2
    assert template.render({"word": "yes"}, None).prompt == ("A: ", " B: ", "")
    template = write(tmp_path, prompts=["{% if word == 'yes' %}<audio>{% endif %}?"])
    assert template.render({"word": "yes"}, None).prompt == ("", "?")
    with pytest.raises(RowError, match="a rendered prompt has 0 <audio> marks instead of 1"):
        template.render({"word": "no"}, None)


def test_every_unknown_label_among_the_answers_counts(tmp_path):
    template = write(tmp_path, target=None, target_one_of="word", prompts=["<audio>{{ labels | length }}"])
    with pytest.raises(RowError, match="unknown label"):
        template.render({"word": ["yes", "maybe"]}, None)


def test_evaluation_takes_the_first_wording_and_training_draws_by_the_generator(tmp_path):
    template = write(tmp_path)
    assert {template.render({"word": "no"}, None).prompt for _ in range(5)} == {("", "Which word?")}
    first = [template.render({"word": "no"}, random.Random(7)) for _ in range(3)]
    assert first[0] == first[1] == first[2]


def test_task_tokens_of_a_wording_are_known_and_data_cannot_add_any(tmp_path):
    prompts = ["<|en|><audio><|transcribe|>Say {{ word }}:<|{{ word }}|>"]
    template = write(tmp_path, prompts=prompts, labels=None)
    pieces = template.render({"word": "<|no|>"}, None).prompt
    assert pieces == ("<|en|>", "<|transcribe|>Say <|no|>:<|<|no|>|>")
    assert [piece.tokens for piece in pieces] == [("<|en|>",), ("<|transcribe|>",)]
    copies = pickle.loads(pickle.dumps(pieces))
    assert (copies, [piece.tokens for piece in copies]) == (pieces, [piece.tokens for piece in pieces])
    for character in "\ue003\ue004":
        with pytest.raises(RowError, match="column 'word' holds a reserved character"):
            template.render({"word": f"a{character}b"}, None)
