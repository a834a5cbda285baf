"""Rows without a label in probes: null and empty ones are skipped, a spelled `n/a` is a class that is named."""

import pytest

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.card import load_card
from uniaudio.errors import RowError
from uniaudio.evaluate.probing.placeholder_classes import (
    count_placeholders,
    describe_placeholder_classes,
)
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.task_answers import Event, parse_answer
from uniaudio.evaluate.probing.task_rows import read_task


@pytest.fixture
def emotions(tmp_path):
    """Write a manifest in CSV, or in JSON lines, whose rows have these labels; return its rows as a task."""

    def read(labels, **task):
        lines = ["audio,label,split"]
        for side in ("train", "test"):
            lines += [f"{side}{n}.wav,{label},{side}" for n, label in enumerate(labels)]
        (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
        card = {"dataset": "emotions", "load": {"csv": "manifest.csv"}, "license": "CC0-1.0"}
        card["splits"] = {side: {"keep": f"split == '{side}'"} for side in ("train", "test")}
        (tmp_path / "emotions.yaml").write_text(dump_yaml(card))
        file = TaskFile.model_validate({"dataset": "emotions", "domain": "speech", **task})
        return read_task("emotions", file, load_card(str(tmp_path / "emotions.yaml")))

    return read


def test_empty_cells_are_skipped_by_reason_and_what_is_spelled_is_a_class(emotions):
    rows = emotions(["happy", "", "sad", "nan", "  ", "n/a", "n/a", "NA"])
    assert rows.classes == ("NA", "happy", "n/a", "sad")
    skipped = [(skip.row, skip.reason) for skip in rows.skipped if skip.row.startswith("train")]
    assert skipped == [
        ("train1.wav", "missing column"),
        ("train3.wav", "missing column"),
        ("train4.wav", "empty answer"),
    ]
    assert count_placeholders(rows) == {"NA": 2, "n/a": 4}
    first, second = describe_placeholder_classes("emotions", count_placeholders(rows), is_folder=False)
    assert first.startswith(
        "emotions: 'NA' is the class of 2 clips, probed like any other; if these have no label"
    )
    assert second.endswith("leave them out: write `keep` under each split of the card")
    (of_folder,) = describe_placeholder_classes("emotions", {"?": 1}, is_folder=True)
    assert "'?' is the class of 1 clip, " in of_folder
    assert of_folder.endswith("leave them out: take them out of the manifest")


def test_placeholders_among_several_labels_are_found(emotions):
    rows = emotions(["happy;loud", "n/a", "sad;?"], kind="multilabel", column="label")
    assert count_placeholders(rows) == {"?": 2, "n/a": 2}


def test_an_ordinary_set_has_none(emotions):
    rows = emotions(["happy", "sad", "unknown"])
    assert count_placeholders(rows) == {}
    assert rows.skipped == ()


def test_blanks_and_ways_to_write_an_accent_make_no_classes(emotions):
    rows = emotions(["happy", " happy ", "ge\u0302ne\u0301", "g\u00ean\u00e9"])
    assert rows.classes == ("g\u00ean\u00e9", "happy")
    several = TaskFile.model_validate({"dataset": "d", "domain": None, "kind": "multilabel"})
    assert parse_answer(several, "e\u0301; a") == ("\u00e9", "a")
    events = TaskFile.model_validate({"dataset": "d", "domain": None, "kind": "frame"})
    labels = [{"onset": 0.0, "offset": 1.0, "label": label} for label in ("dog ", 60, 60.0)]
    assert [event.label for event in parse_answer(events, labels)] == ["dog", "60", "60"]


def test_a_fold_without_a_name_is_none(emotions):
    rows = emotions(["a", "b", "  ", "a", "b"], folds="label", column="split")
    assert sorted(rows.parts) == ["a", "b"]
    assert {skip.reason for skip in rows.skipped} == {"missing column"}


@pytest.mark.parametrize("label", ["", "  ", "\t"])
def test_an_empty_text_is_no_class(label):
    task = TaskFile.model_validate({"dataset": "d", "domain": None})
    with pytest.raises(RowError, match="'label' contains no text") as raised:
        parse_answer(task, label)
    assert raised.value.reason == "empty answer"


@pytest.mark.parametrize("label", [None, "", float("nan")])
def test_an_event_without_a_class_is_no_class_called_none(label):
    task = TaskFile.model_validate({"dataset": "d", "domain": None, "kind": "frame"})
    event = {"onset": 0.5, "offset": 1.0, "label": label}
    with pytest.raises(RowError, match=r"an event at 0\.5 s has no 'label'"):
        parse_answer(task, [event])
    assert parse_answer(task, [{**event, "label": 60}]) == (Event(0.5, 1.0, "60"),)
