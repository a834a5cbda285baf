"""What `check` says of the first clips of a source, beside what cannot be used."""

import json

import numpy as np
import pytest
import soundfile
import yaml

from uniaudio.checks.first_rows import check_entry
from uniaudio.data.card import load_card
from uniaudio.data.recipe_entries import Entry, EvalEntry
from uniaudio.data.template import load_template
from uniaudio.errors import UserError

TONE = 0.3 * np.sin(np.arange(8000) / 10)


def notes(folder, columns, wave, **settings):
    return look_at_first_rows(folder, columns, wave, settings, {}).notes


def look_at_first_rows(folder, columns, wave, card_keys, template_keys):
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", wave, 16000)
    rows = [{"audio": f"{number}.wav", "label": "a", **columns} for number in range(6)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "dataset": "d",
        "load": {"jsonl": "m.jsonl"},
        "license": "CC0",
        "splits": {"train": {}},
        **card_keys,
    }
    (folder / "d.yaml").write_text(yaml.safe_dump(card))
    template = {
        "task": "t",
        "domain": "sound",
        "inputs": ["label"],
        "prompts": ["<audio>?"],
        "target": "{{ label }}",
        "scoring": {"metric": "accuracy"},
        **template_keys,
    }
    (folder / "t.yaml").write_text(yaml.safe_dump(template))
    entry = EvalEntry(
        dataset=load_card(str(folder / "d.yaml")),
        templates=(load_template(str(folder / "t.yaml")),),
        split="train",
        constants={},
        max_examples=None,
    )
    return check_entry(entry)


def test_clips_whose_channels_cancel_are_noted(tmp_path):
    (note,) = notes(tmp_path, {}, np.stack([TONE, -TONE], 1))
    assert note.startswith("anti-phase channels in 6 of the first 6 rows: their mean is silent")
    assert notes(tmp_path, {}, TONE) == ()


@pytest.mark.parametrize("samples", [0, 100])
def test_clips_without_sound_to_speak_of_are_a_mistake(tmp_path, samples):
    with pytest.raises(
        UserError, match=r"none of the first 6 rows can be used \(0\.wav: empty audio: .*less than 0\.01 s"
    ):
        notes(tmp_path, {}, TONE[:samples])


def test_a_wording_that_no_row_can_fill_in_is_a_mistake_where_it_would_be_drawn(tmp_path):
    notes(tmp_path, {}, TONE)
    template = yaml.safe_load((tmp_path / "t.yaml").read_text())
    template["prompts"] += ["<audio>Is it {{ label }}?", "<audio>Is it {{ label.name }}?"]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(template))
    parts = {
        "dataset": load_card(str(tmp_path / "d.yaml")),
        "templates": (load_template(str(tmp_path / "t.yaml")),),
        "split": "train",
        "constants": {},
    }
    with pytest.raises(UserError, match=r"fits none of the first 6 rows .*t\.yaml: prompts\[2\]"):
        check_entry(Entry(**parts, share=1.0))
    assert check_entry(EvalEntry(**parts, max_examples=None)).notes == ()


def test_columns_with_times_that_nothing_uses_are_noted(tmp_path):
    (note,) = notes(tmp_path, {"begin": 0.1, "stop": 0.2}, TONE)
    assert note.startswith(
        "clips are used whole although there are columns begin, stop; name the columns of the segment times"
    )
    assert notes(tmp_path, {"begin": 0.1, "stop": 0.2}, TONE, segment="none") == ()
    assert notes(tmp_path, {"begin": 0.1, "stop": 0.2}, TONE, segment={"start": "begin", "end": "stop"}) == ()
    assert notes(tmp_path, {"start": 0.1, "end": 0.2}, TONE) == ()  # taken as times without a word
    assert notes(tmp_path, {"offset": 0.1, "duration": 0.2}, TONE) == ()


def test_labels_that_scoring_makes_the_same_are_noted(tmp_path):
    def look(labels, how):
        template = {"labels": labels, "scoring": {"metric": "accuracy", "normalize": how}}
        return look_at_first_rows(tmp_path, {}, TONE, {}, template).notes

    keys = ["a", "C", "C#", "D", "d"]
    assert look(keys, "words") == (
        "scoring.normalize: words of template t makes labels the same: C, C#, so an answer with one of them counts as "
        "the other; set it to lowercase or none",
    )
    (note,) = look([*keys, "+", "-", "?"], "whisper")
    assert "makes labels the same: C, C# (and 1 more), so" in note
    assert look(keys, "lowercase") == ()  # case alone is reported with all rows


def test_characters_are_words_in_scripts_without_blanks(tmp_path):
    for label, words in (("two words", 2), ("今天天气好", 5)):
        seen = look_at_first_rows(tmp_path, {"label": label}, TONE, {}, {})
        assert seen.answer_words == words
