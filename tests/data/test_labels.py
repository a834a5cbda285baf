"""Closed sets of answers: what states them, which of several holds, and what is wrong with some."""

import json

import datasets
import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.files import clip_bytes, write_parquet
from rich.console import Console

from uniaudio.checks.first_rows import check_entry
from uniaudio.commands.data_pack import pack_recipe
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.data.recipe_entries import open_entry
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError

CARD = {"dataset": "clips", "license": "CC0-1.0", "splits": {"train": {}}}
TEMPLATE = {
    "task": "kind",
    "domain": "sound",
    "inputs": ["label"],
    "prompts": ["<audio>What is it?"],
    "target": "{{ label }}",
}
LINE = {"dataset": "clips", "template": "kind"}
NAMES = ["dog_bark", "rain", "car_horn"]
KIND = {"inputs": ["kind"], "target": "{{ kind }}"}


def write_entry(folder, card=None, template=None, line=None, data="clips"):
    """Write a card, a template and a recipe of one line; return the entry that is read from them."""
    files = {
        "clips": {**CARD, "load": {"jsonl": data}, **(card or {})},
        "kind": {**TEMPLATE, **(template or {})},
        "mine": {"recipe": "mine", "train": [{**LINE, **(line or {})}]},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(
            dump_yaml({key: value for key, value in content.items() if value is not None})
        )
    return load_recipe(str(folder / "mine.yaml")).train[0]


def write_rows(folder, rows):
    (folder / "clips").mkdir()
    for number, _ in enumerate(rows):
        (folder / "clips" / f"{number}.wav").write_bytes(clip_bytes(number))
    lines = [json.dumps({"audio": f"{number}.wav", **row}) + "\n" for number, row in enumerate(rows)]
    (folder / "clips" / "manifest.jsonl").write_text("".join(lines))


def write_classes(folder, metadata=True, name="train.parquet", lists=False):
    """Write three clips whose label is a number with a name; return the folder."""
    label = datasets.ClassLabel(names=NAMES)
    feature = datasets.Sequence(label) if lists else label
    features = datasets.Features(
        {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": feature}
    )
    audio = [{"bytes": clip_bytes(number), "path": f"{number}.wav"} for number in range(3)]
    labels = [[0, 1], [1], [2]] if lists else [0, 1, 2]
    table = pyarrow.table({"audio": audio, "label": labels}).cast(features.arrow_schema)
    place = folder / "data" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if metadata else table.replace_schema_metadata(None), place)
    return folder / "data"


def render_answers(entry):
    entry, source = open_entry(entry)
    return [entry.render_question(row, entry.templates[0]).answer for row in source.rows()]


def test_each_statement_holds_before_those_behind_it(tmp_path):
    of_template = {"labels": ["a", "b"]}
    stated = {"labels": {"label": ["b", "c"]}}
    given = {"labels": ["c", "d"]}
    sets = [
        write_entry(tmp_path, *parts).templates[0]
        for parts in (
            ({}, {}),
            ({}, of_template),
            (stated, of_template),
            (stated, of_template, given),
            (stated, of_template, {"labels": "none"}),
        )
    ]
    assert [template.labels for template in sets] == [None, ("a", "b"), ("b", "c"), ("c", "d"), None]
    assert [template.label_origin for template in sets] == ["none", "template", "card", "recipe", "recipe"]


def test_names_of_classes_hold_before_those_of_the_template(tmp_path):
    write_classes(tmp_path)
    for kind in ("parquet", "hub"):
        entry = write_entry(tmp_path, {"load": {kind: str(tmp_path / "data")}}, {"labels": ["a", "b"]})
        assert entry.templates[0].labels == ("a", "b")
        opened, source = open_entry(entry)
        assert opened.templates[0].labels == tuple(NAMES)
        assert opened.templates[0].label_origin == "classes"
        assert render_answers(entry) == NAMES
        trained, _ = load_recipe(str(tmp_path / "mine.yaml")).open_training_entries()
        assert trained.train[0].templates[0].labels == tuple(NAMES)
        stated = write_entry(
            tmp_path, {"load": {kind: str(tmp_path / "data")}, "labels": {"label": ["rain", "snow"]}}
        )
        assert open_entry(stated)[0].templates[0].labels == ("rain", "snow")
        assert [str(row.columns["label"]) for row in source.rows()] == NAMES


def test_a_column_of_a_card_has_what_it_makes_of_the_classes(tmp_path):
    place = str(write_classes(tmp_path))
    spoken = {"load": {"parquet": place}, "columns": {"label": "{{ label | replace('_', ' ') }}"}}
    entry = write_entry(tmp_path, spoken)
    assert open_entry(entry)[0].templates[0].labels == ("dog bark", "rain", "car horn")
    assert render_answers(entry) == ["dog bark", "rain", "car horn"]
    fewer = {"load": {"parquet": place}, "columns": {"label": "{{ 'rain' if label == 'rain' else 'other' }}"}}
    assert open_entry(write_entry(tmp_path, fewer))[0].templates[0].labels == ("other", "rain")
    assert (
        open_entry(write_entry(tmp_path, fewer, line={"constants": {"label": "x"}}))[0].templates[0].labels
        is None
    )


def test_lists_of_classes_in_a_sentence_are_no_closed_set(tmp_path):
    place = str(write_classes(tmp_path, lists=True))
    whole = ["dog_bark and rain", "rain", "car_horn"]
    for stated, template, answers, labels in (
        ({}, {"target": "{{ label | join(' and ') }}"}, whole, None),
        ({}, {"target": None, "target_one_of": "label"}, ["dog_bark", "rain", "car_horn"], tuple(NAMES)),
        ({"columns": {"kind": "{{ label | join(' and ') }}"}}, KIND, whole, None),
        ({"columns": {"kind": "{{ label[0] }}"}}, KIND, ["dog_bark", "rain", "car_horn"], tuple(NAMES)),
    ):
        entry = write_entry(tmp_path, {"load": {"parquet": place}, **stated}, template)
        assert open_entry(entry)[0].templates[0].labels == labels
        assert render_answers(entry) == answers


def test_characters_that_cannot_be_seen_are_written_out(tmp_path):
    write_rows(tmp_path, [{"label": "high\u200b"}, {"label": "car\u00a0horn"}, {"label": "car  horn"}])
    entry = write_entry(tmp_path, template={"labels": ["high", "car horn"]})
    first, second, third = (refuse(entry, row) for row in open_source(entry.dataset, "train").rows())
    assert (
        first
        == r"'high\u200b' (with characters that are not visible) is not one of the labels of kind: high, car horn"
    )
    assert second.startswith(r"'car\u00a0horn' (with")
    assert third == "'car  horn' is not one of the labels of kind: high, car horn"


def refuse(entry, row):
    """The detail of why a row cannot be used."""
    with pytest.raises(RowError) as problem:
        entry.render_question(row, entry.templates[0])
    return problem.value.detail


def test_a_list_of_classes_makes_lists_of_labels(tmp_path):
    place = str(write_classes(tmp_path, lists=True))
    for target in ("{{ label | sort | join('; ') }}", "{{ label | join(';') }}"):
        entry = write_entry(
            tmp_path, {"load": {"parquet": place}}, {"target": target, "scoring": {"metric": "map"}}
        )
        template = open_entry(entry)[0].templates[0]
        assert template.labels == tuple(NAMES)
        assert [template.split_labels(answer) for answer in render_answers(entry)] == [
            ("dog_bark", "rain"),
            ("rain",),
            ("car_horn",),
        ]
    joined = {"load": {"parquet": place}, "columns": {"label": "{{ label | sort | join('; ') }}"}}
    entry = write_entry(tmp_path, joined, {"scoring": {"metric": "map"}})
    assert open_entry(entry)[0].templates[0].labels == tuple(NAMES)
    assert render_answers(entry)[0] == "dog_bark; rain"


README = """---
dataset_info:
{configs}
---
# A set
"""
ONE = """  features:
  - name: audio
    dtype: audio
  - name: label
    dtype:
      class_label:
        names:
          '0': dog_bark
          '1': rain
          '2': car_horn
  splits:
  - name: train
"""
TWO = """- config_name: few
  features:
  - {name: label, dtype: {class_label: {names: {'0': x, '1': y, '2': z}}}}
- config_name: data
  features:
  - {name: label, dtype: {class_label: {names: [dog_bark, rain, car_horn]}}}
"""


@pytest.mark.parametrize("configs", [ONE, TWO])
def test_files_beside_tables_name_their_classes(tmp_path, configs):
    """Tables that other programs wrote have no features inside."""
    place = write_classes(tmp_path, metadata=False)
    entry = write_entry(tmp_path, {"load": {"parquet": str(place)}})
    (tmp_path / "README.md").write_text(README.format(configs=configs.rstrip("\n")))
    assert open_entry(entry)[0].templates[0].labels == tuple(NAMES)
    assert render_answers(entry) == NAMES


def test_dataset_infos_name_classes_and_broken_files_name_none(tmp_path):
    place = write_classes(tmp_path / "old", metadata=False)
    infos = {"default": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    (tmp_path / "old" / "dataset_infos.json").write_text(json.dumps(infos))
    entry = write_entry(tmp_path, {"load": {"parquet": str(place)}})
    assert render_answers(entry) == NAMES
    place = write_classes(tmp_path / "broken", metadata=False)
    (tmp_path / "broken" / "README.md").write_text("---\ndataset_info: [\n---\n")
    (tmp_path / "broken" / "dataset_infos.json").write_text("{")
    entry = write_entry(tmp_path, {"load": {"parquet": str(place)}})
    assert render_answers(entry) == ["0", "1", "2"]


def test_very_many_classes_are_no_closed_set(tmp_path):
    label = datasets.ClassLabel(names=[f"speaker {i}" for i in range(1001)])
    table = pyarrow.table({"audio": ["a.wav"], "label": [1000]})
    features = datasets.Features({"audio": datasets.Value("string"), "label": label})
    (tmp_path / "data").mkdir()
    pq.write_table(table.cast(features.arrow_schema), tmp_path / "data" / "train.parquet")
    entry = write_entry(tmp_path, {"load": {"parquet": str(tmp_path / "data")}})
    assert open_entry(entry)[0].templates[0].labels is None
    assert render_answers(entry) == ["speaker 1000"]


def test_a_wording_lists_the_set_of_each_data_set(tmp_path):
    write_rows(tmp_path, [{"label": "rain"}])
    listing = {"prompts": ["<audio>Which of {{ labels | join(', ') }}?"]}
    entry = write_entry(tmp_path, {"labels": {"label": ["rain", "wind"]}}, listing)
    row = next(open_source(entry.dataset, "train").rows())
    assert entry.render_question(row, entry.templates[0]).prompt == ("", "Which of rain, wind?")
    with pytest.raises(
        UserError, match=r"uses `labels` in a prompt, but they are not defined for dataset clips"
    ):
        write_entry(tmp_path, {}, listing)
    place = str(write_classes(tmp_path))
    recipe_entry = write_entry(tmp_path, {"load": {"hub": place}}, listing)
    recipe, _ = load_recipe(str(tmp_path / "mine.yaml")).open_training_entries()
    assert recipe_entry.templates[0].labels is None
    assert recipe.train[0].templates[0].labels == tuple(NAMES)
    write_parquet(tmp_path / "plain")
    write_entry(tmp_path, {"load": {"hub": str(tmp_path / "plain")}}, listing)
    with pytest.raises(UserError, match="they are not defined"):
        load_recipe(str(tmp_path / "mine.yaml")).open_training_entries()


def test_an_input_may_be_called_labels(tmp_path):
    """A column of that name is a column, whatever set holds."""
    template = {"inputs": ["labels"], "target": "{{ labels | join(';') }}", "scoring": {"metric": "map"}}
    entry = write_entry(tmp_path, {"labels": {"labels": ["a", "b"]}}, template)
    assert entry.templates[0].labels == ("a", "b")
    row = Row("0", {"labels": ["b", "a"]}, (None,))
    assert entry.render_question(row, entry.templates[0]).answer == "b;a"


def test_values_become_answers_as_those_of_rows_do(tmp_path):
    note = {"inputs": ["midi"], "target": "{{ ['C', 'C#', 'D'][midi % 12] }}{{ midi // 12 - 1 }}"}
    entry = write_entry(tmp_path, {"labels": {"midi": [60, 61, 62]}}, note)
    assert entry.templates[0].labels == ("C4", "C#4", "D4")
    (tmp_path / "words.txt").write_text("\ufeffrain\n\n dog bark \r\n", encoding="utf-8")
    entry = write_entry(tmp_path, {"labels": {"label": "words.txt"}})
    assert entry.templates[0].labels == ("rain", "dog bark")
    entry = write_entry(tmp_path, line={"labels": "words.txt"})
    assert entry.templates[0].labels == ("rain", "dog bark")


def test_a_row_outside_its_set_is_skipped_with_the_reason(tmp_path):
    lists = {"target": "{{ label | join('; ') }}", "scoring": {"metric": "map"}}
    for template, value in (({}, "snow"), (lists, ["rain", "snow"])):
        entry = write_entry(tmp_path, {"labels": {"label": ["rain", "wind"]}}, template)
        with pytest.raises(RowError) as problem:
            entry.render_question(Row("0", {"label": value}, (None,)), entry.templates[0])
        assert (problem.value.reason, "'snow' is not one of" in problem.value.detail) == (
            "unknown label",
            True,
        )


MAP = {"target": "{{ label | join('; ') }}", "scoring": {"metric": "map"}}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (({"labels": {"label": []}},), "clips.yaml: labels.label: is empty; name at least one label"),
        (({"labels": {"label": ["a", "a"]}},), "labels.label: a is written twice; keep one of them"),
        (
            ({"labels": {"label": ["a", True]}},),
            "labels.label: a label is True, which is not text; put it in quotes",
        ),
        (({"labels": {"label": ["a", " "]}},), "labels.label: a label is empty"),
        (({"labels": {"label": "no.txt"}},), "no.txt; write a list, or a text file with one label per line"),
        (({"labels": {"label": "empty.txt"}},), "empty.txt: is empty; name at least one label"),
        (({"labels": ["a"]},), "clips.yaml: labels: "),
        (
            ({"labels": {"label": ["a; b", "c"]}}, MAP),
            "'a; b' holds ';', which separates the labels of an answer",
        ),
        (({}, {}, {"labels": {"lable": ["a"]}}), "answers with column 'lable' (did you mean 'label'?)"),
        (({}, {}, {"labels": []}), "train[0]: labels: is empty"),
        (
            ({}, {"inputs": ["label", "n"], "target": "{{ label }} {{ n }}"}, {"labels": ["a"]}),
            "the answers of template kind use label, n, but a closed set needs exactly one column",
        ),
        (
            ({"labels": {"label": ["a", "b"]}}, {"target": "{{ label | int }}"}),
            "labels.label: template kind cannot make an answer from 'a'",
        ),
    ],
)
def test_mistakes_are_found_before_any_data(tmp_path, parts, message):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError) as mistake:
        write_entry(tmp_path, *parts)
    assert message in str(mistake.value)


def test_labels_of_a_column_that_no_row_has_are_a_mistake(tmp_path):
    write_rows(tmp_path, [{"label": "rain"}])
    entry = write_entry(tmp_path, {"labels": {"lable": ["rain"]}})
    with pytest.raises(
        UserError, match=r"labels\.lable: the rows have no such column \(did you mean 'label'\?\)"
    ):
        check_entry(entry)
    place = str(write_classes(tmp_path))
    entry = write_entry(tmp_path, {"load": {"parquet": place}, "labels": {"lable": ["rain"]}})
    with pytest.raises(UserError, match=r"labels\.lable: the rows have no such column"):
        check_entry(entry)


def test_several_templates_take_sets_by_column(tmp_path):
    (tmp_path / "note.yaml").write_text(
        dump_yaml({**TEMPLATE, "task": "note", "inputs": ["note"], "target": "{{ note }}"})
    )
    line = {"template": ["kind", "note"], "labels": {"note": ["C", "D"]}}
    entry = write_entry(tmp_path, {"labels": {"label": ["a"], "note": ["E"]}}, line=line)
    assert entry.label_sets == (("a",), ("C", "D"))
    with pytest.raises(UserError, match="the entry has several templates; give the labels by column"):
        write_entry(tmp_path, line={"template": ["kind", "note"], "labels": ["C", "D"]})


def test_scoring_of_a_line_replaces_single_settings(tmp_path):
    write_entry(tmp_path, {}, {"scoring": {"normalize": "words"}})
    evaluate = {**LINE, "split": "train", "scoring": {"metric": "map"}}
    recipe = {"recipe": "mine", "train": [LINE], "evaluate": [evaluate]}
    (tmp_path / "mine.yaml").write_text(dump_yaml(recipe))
    template = load_recipe(str(tmp_path / "mine.yaml")).evaluate[0].template
    assert (template.scoring.metric, template.scoring.normalize, template.multilabel) == (
        "map",
        "words",
        False,
    )


def test_entries_with_other_sets_are_not_joined_by_replay(tmp_path):
    entry = write_entry(tmp_path, line={"labels": ["a", "b"]})
    (tmp_path / "both.yaml").write_text(
        dump_yaml({"recipe": "both", "train": [LINE], "replay": [{"recipe": "mine", "share": 0.5}]})
    )
    shares = [(e.label_sets, e.share) for e in load_recipe(str(tmp_path / "both.yaml")).train]
    assert shares == [((None,), 0.5), (entry.label_sets, 0.5)]


def test_a_packed_recipe_keeps_its_closed_sets(tmp_path):
    """Manifests have no classes, so the card of the packed set states them."""
    place = str(write_classes(tmp_path))
    note = {**TEMPLATE, "task": "note", "inputs": ["midi"], "target": "{{ ['C', 'D'][midi] }}"}
    (tmp_path / "note.yaml").write_text(dump_yaml(note))
    columns = {"spoken": "{{ label | replace('_', ' ') }}", "midi": "{{ 0 }}"}
    write_entry(tmp_path, {"load": {"parquet": place}, "columns": columns})
    lines = [LINE, {"dataset": "clips", "template": ["note", "kind"], "labels": {"midi": [0, 1]}}]
    evaluate = [{**LINE, "split": "train", "labels": "none", "scoring": {"metric": "map"}}]
    (tmp_path / "mine.yaml").write_text(dump_yaml({"recipe": "mine", "train": lines, "evaluate": evaluate}))
    before = load_recipe(str(tmp_path / "mine.yaml"))
    pack_recipe(str(tmp_path / "mine.yaml"), tmp_path / "packed", 1, Console(quiet=True))
    packed = load_recipe(str(tmp_path / "packed" / "mine.yaml"))
    for old, new in zip([*before.train, *before.evaluate], [*packed.train, *packed.evaluate], strict=True):
        assert open_entry(old)[0].label_sets == open_entry(new)[0].label_sets
    assert packed.train[1].label_sets == (("C", "D"), tuple(NAMES))
    assert packed.evaluate[0].template.scoring.metric == "map"
    assert packed.train[0].dataset.labels["spoken"] == ("dog bark", "rain", "car horn")
