"""`uniaudio new`: what it makes of data in every layout passes `check_entry`, and says what it chose."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.bird_folder import make_bird_folder
from helpers.files import clip_bytes, write_parquet, write_tar
from helpers.runs import write_run, write_weights
from local_hub.clients import connect_clients
from rich.console import Console

from uniaudio.api.runs import Run
from uniaudio.build.run_config import open_run
from uniaudio.commands.check import check_run
from uniaudio.commands.new import NewTask, create_task
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.data.recipe_entries import open_entry
from uniaudio.data.scaffold.answer_column import Answer
from uniaudio.data.scaffold.layouts import Layout
from uniaudio.data.scaffold.task_files import TaskDescription, make_line
from uniaudio.data.scaffold.train_test_split import Division
from uniaudio.data.sources.base import Row
from uniaudio.errors import UserError
from uniaudio.estimate import starting_config
from uniaudio.estimate.starting_config import HostMachine
from uniaudio.tiny.checkpoints import save_miniature_whisper

SMALL = HostMachine(cores=2, memory_gib=16.0, gpus=0, gpu_gib=0.0)


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "my recordings"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    monkeypatch.setattr(starting_config.HostMachine, "measure", classmethod(lambda cls: SMALL))


def write_clip(path, value=1, count=1600):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip_bytes(value, count=count))


def write_classes(folder, classes, clips):
    for number, name in enumerate(classes):
        for clip in range(clips):
            write_clip(folder / name / f"{name}{clip}.wav", number)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(folder, rows, name="manifest.jsonl"):
    """Write rows and a clip for each."""
    for number, row in enumerate(rows):
        row.setdefault("audio", f"clips/{number}.wav")
        write_clip(folder / row["audio"], number)
    (write_table if name.endswith(".csv") else write_jsonl)(folder / name, rows)


def new(tmp_path, data, **options):
    """Return (what is printed, recipe, folder of the project) of a task called ``birds``."""
    screen = io.StringIO()
    out = tmp_path / "project"
    config = create_task(NewTask("birds", str(data), out=out, **options), Console(file=screen, width=1000))
    assert load_run(str(config)).encoders
    return screen.getvalue(), load_recipe(str(out / "data_recipes" / "birds.yaml")), out


def read_rows(entry):
    entry, source = open_entry(entry)
    rows = [row for row in source.rows() if isinstance(row, Row)]
    return {row.key: entry.render_question(row, entry.templates[0]) for row in rows}


def read_sides(recipe):
    """Return the rendered rows of train and test."""
    return read_rows(recipe.train[0]), read_rows(recipe.evaluate[0])


def test_a_folder_of_class_folders(tmp_path, place):
    write_classes(place, ["rook", "wren", "tree frog"], 20)
    text, recipe, out = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("rook", "tree frog", "wren")
    train, test = read_sides(recipe)
    assert len(train) + len(test) == 60
    assert not train.keys() & test.keys()
    assert 6 <= len(test) <= 18  # about a fifth of few rows
    for side in (train, test):
        assert {question.answer for question in side.values()} == {"rook", "wren", "tree frog"}
    assert "`label` (by its name): a label with 3 values" in text
    assert "by a hash of the name of the clip" in text
    assert "data: a folder of clips, clips of 0.1 s\n" in text
    assert f"next: uniaudio train {out}/configs/birds.yaml" in text
    for file in ("templates/birds", "data_recipes/datasets/birds", "data_recipes/birds", "configs/birds"):
        content = (out / f"{file}.yaml").read_text()
        assert content.startswith("# "), file
        assert max(map(len, content.splitlines())) <= 130, file


def test_paths_are_written_without_steps_up(tmp_path, place):
    write_classes(place, ["rook", "wren"], 10)
    (tmp_path / "project").mkdir()
    save_miniature_whisper(tmp_path / "encoder")
    above = tmp_path / "project" / ".."
    out = new(tmp_path, above / place.name, encoder=str(above / "encoder"))[2]
    assert load_yaml(out / "data_recipes" / "datasets" / "birds.yaml")["load"] == {"audiofolder": str(place)}
    (encoder,) = load_yaml(out / "configs" / "birds.yaml")["encoders"].values()
    assert encoder["path"] == str(tmp_path / "encoder")


def test_the_same_rows_are_tested_whenever_it_is_made(tmp_path, place):
    write_classes(place, ["rook", "wren"], 20)
    first = read_sides(new(tmp_path, place)[1])
    again = read_sides(new(tmp_path, place, force=True)[1])
    assert [side.keys() for side in first] == [side.keys() for side in again]
    write_clip(place / "rook" / "more.wav")  # and no row changes sides when others come
    later = read_sides(new(tmp_path, place, force=True)[1])
    assert first[1].keys() <= later[1].keys()


def test_folders_of_splits_are_kept(tmp_path, place):
    for split, clips in (("train", 4), ("test", 2), ("dev", 2)):
        write_classes(place / split, ["rook", "wren"], clips)
    text, recipe, _ = new(tmp_path, place)
    train, test = read_sides(recipe)
    assert (len(train), len(test)) == (8, 4)
    assert set(recipe.train[0].dataset.splits) == {"train", "dev", "test"}
    assert "the splits of the data" in text
    assert "also trained on" not in text  # train/rook/rook0.wav and test/rook/rook0.wav are two files


def test_manifests_of_splits_under_the_other_suffix_of_json_lines(tmp_path, place):
    rows = [{"audio": f"clips/{n}.wav", "label": "ab"[n % 2]} for n in range(8)]
    write_manifest(place, rows[:5], "train.ndjson")
    write_manifest(place, rows[5:], "test.ndjson")
    train, test = read_sides(new(tmp_path, place)[1])
    assert (len(train), len(test)) == (5, 3)


def test_numbers_that_json_does_not_have_cost_no_row(tmp_path, place):
    """Python and pandas write NaN for a missing number, here in every row."""
    rows = [{"label": "ab"[n % 2], "pitch": float("nan")} for n in range(10)]
    write_manifest(place, rows)
    train, test = read_sides(new(tmp_path, place, label="label")[1])
    assert len(train) + len(test) == 10


def test_clips_on_both_sides_of_the_splits_of_the_data_are_noted(tmp_path, place):
    rows = [{"audio": f"clips/{n}.wav", "label": "ab"[n % 2]} for n in range(8)]
    write_manifest(place, rows[:6], "train.jsonl")
    write_manifest(place, rows[5:], "test.jsonl")
    note = "1 of 3 values of `audio` in the test split are also trained on (clips/5.wav)"
    assert note in new(tmp_path, place)[0]
    (place / "test.jsonl").unlink()
    split = [{**row, "split": split} for split in ("train", "test") for row in rows[3:7]]
    write_manifest(place, split, "train.jsonl")
    assert "4 of 4 values of `audio` in the test split" in new(tmp_path, place, force=True)[0]


def test_a_class_called_train_is_no_split(tmp_path, place):
    write_classes(place, ["car", "train", "bus"], 10)
    labels = new(tmp_path, place)[1].train[0].templates[0].labels
    assert labels == ("bus", "car", "train")


def test_metadata_files_beside_clips(tmp_path, place):
    rows = [{"file_name": f"clips/{n}.wav", "transcription": f"text number {n}"} for n in range(30)]
    for n, row in enumerate(rows):
        write_clip(place / row["file_name"], n)
    write_table(place / "metadata.csv", rows)
    text, recipe, out = new(tmp_path, place)
    template = recipe.train[0].templates[0]
    assert template.labels is None
    assert template.scoring.metric == "wer"
    assert "Transcribe the speech" in (out / "templates/birds.yaml").read_text()
    train, test = read_sides(recipe)
    assert len(train) + len(test) == 30
    assert test
    assert "`transcription` (by its name): a transcript (text number 0 ...)" in text


def test_speakers_are_on_one_side_alone(tmp_path, place):
    rows = [{"text": f"sentence {n}", "speaker": f"s{n % 10}"} for n in range(50)]
    write_manifest(place, rows)
    text, recipe, _ = new(tmp_path, place)
    keys = [{row["speaker"] for row in rows if row["audio"] in side} for side in map(set, read_sides(recipe))]
    assert keys[1]
    assert not keys[0] & keys[1]
    assert "`speaker`, each of 10 on one side only" in text


def test_speakers_that_are_labels_do_not_divide(tmp_path, place):
    """A label that one speaker alone has would be on one side only."""
    rows = [{"label": f"word {n % 4}", "speaker": f"s{n % 4}"} for n in range(60)]
    write_manifest(place, rows)
    text, recipe, _ = new(tmp_path, place)
    for side in read_sides(recipe):
        assert len({question.answer for question in side.values()}) == 4
    assert "not divided by `speaker`" in text


@pytest.mark.parametrize("name", ["manifest.jsonl", "meta.csv"])
def test_a_split_column_is_kept(tmp_path, place, name):
    rows = [{"label": "ab"[n % 2], "split": "train" if n % 3 else "valid"} for n in range(12)]
    write_manifest(place, rows, name)
    text, recipe, _ = new(tmp_path, place)
    assert len(read_rows(recipe.train[0])) == 8
    assert recipe.evaluate[0].split == "validation"
    assert "the column `split`" in text


def test_a_column_of_folds(tmp_path, place):
    write_manifest(place, [{"category": "ab"[n % 2], "fold": 1 + n // 2 % 5} for n in range(20)], "esc.csv")
    train, test = read_sides(new(tmp_path, place)[1])
    assert (len(train), len(test)) == (16, 4)


def test_a_table_in_a_folder_beside_that_of_the_clips(tmp_path, place):
    rows = [{"filename": f"{n}.wav", "category": "ab"[n % 2]} for n in range(10)]
    (place / "meta").mkdir()
    for n, row in enumerate(rows):
        write_clip(place / "audio" / row["filename"], n)
    write_table(place / "meta" / "set.csv", rows)
    recipe = new(tmp_path, place)[1]
    assert len(read_rows(recipe.train[0])) + len(read_rows(recipe.evaluate[0])) == 10


def test_ids_in_place_of_paths(tmp_path, place):
    rows = [{"id": f"LJ{n}", "text": f"sentence {n}"} for n in range(10)]
    for n, row in enumerate(rows):
        write_clip(place / "wavs" / f"{row['id']}.wav", n)
    write_table(place / "list.csv", rows)
    recipe = new(tmp_path, place)[1]
    assert recipe.train[0].dataset.audio_texts["audio"].source == "wavs/{{ id }}.wav"
    assert len(read_rows(recipe.train[0])) + len(read_rows(recipe.evaluate[0])) == 10


def test_several_labels(tmp_path, place):
    tags = ["dog", "rain;dog", "car;rain", "rain"]
    write_manifest(place, [{"tags": tags[n % 4]} for n in range(40)])
    text, recipe, _ = new(tmp_path, place)
    template = recipe.train[0].templates[0]
    assert template.multilabel
    assert template.labels == ("car", "dog", "rain")
    assert len(read_rows(recipe.train[0])) + len(read_rows(recipe.evaluate[0])) == 40
    assert "several of 3 labels (rain 30, dog 20, car 10)" in text


def test_lists_of_labels(tmp_path, place):
    tags = [["dog"], ["rain", "dog"], ["car, old", "rain"]]
    write_manifest(place, [{"labels": tags[n % 3]} for n in range(12)])
    template = new(tmp_path, place)[1].train[0].templates[0]
    assert template.multilabel
    assert template.labels == ("car, old", "dog", "rain")


def test_numbers_of_a_scale(tmp_path, place):
    write_manifest(place, [{"bpm": 60 + n / 3} for n in range(90)])
    text, recipe, out = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels is None
    assert {q.answer for q in read_rows(recipe.train[0]).values()} >= {"60", "60.33"}
    assert "a number with 90 values, learned as text" in text
    assert "Classes are easier to learn" in (out / "templates/birds.yaml").read_text().replace("\n# ", " ")


@pytest.mark.parametrize("kind", [int, float])  # a gap in a table makes 3.0 of 3
def test_whole_numbers_that_are_classes(tmp_path, place, kind):
    write_manifest(place, [{"label": kind(n % 11)} for n in range(44)])
    template = new(tmp_path, place)[1].train[0].templates[0]
    assert template.labels == tuple(map(str, range(11)))


def test_a_few_texts_among_numbers(tmp_path, place):
    """One in a hundred, as `unknown` among ages: labels behind the numbers, and no column of folds."""
    rows = [{"age": f"{9 + n % 3}", "fold": str(1 + n % 5)} for n in range(100)]
    rows[7] |= {"age": "unknown", "fold": "none"}
    write_manifest(place, rows)
    text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("9", "10", "11", "unknown")
    assert "by a hash of" in text


def test_several_languages_and_scripts(tmp_path, place):
    texts = [
        ("de", "grüß dich"),
        ("ja", "こんにちは"),
        ("ar", "مرحبا"),
        ("ja", "さようなら"),
        ("ja", "ありがとう"),
    ]
    write_manifest(place, [{"sentence": f"{t}{n}", "locale": code} for n, (code, t) in enumerate(texts * 4)])
    text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].scoring.metric == "cer"
    assert "`sentence` (by its name): a transcript" in text
    assert "other columns: `locale`" in text


def test_names_in_any_script_and_with_blanks(tmp_path, place):
    write_manifest(place, [{"метка звука": ["грач", "крапивник"][n % 2]} for n in range(12)])
    text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("грач", "крапивник")
    assert {q.answer for q in read_rows(recipe.train[0]).values()} == {"грач", "крапивник"}
    assert "`метка звука` (the only possible answer)" in text


def test_questions_of_the_rows(tmp_path, place):
    write_manifest(place, [{"question": f"what {n}?", "answer": f"that {n}"} for n in range(10)])
    questions = read_rows(new(tmp_path, place)[1].train[0])
    assert all(re.fullmatch(r"that \d", q.answer) for q in questions.values())
    assert str(next(iter(questions.values())).prompt[1]).startswith("what ")


def test_a_question_of_the_user(tmp_path, place):
    write_manifest(place, [{"label": "ab"[n % 2], "place": f"p{n}"} for n in range(10)])
    recipe = new(tmp_path, place, question='Which "bird" of {{ place }}?')[1]
    assert re.match(r'Which "bird" of p\d\?', str(next(iter(read_rows(recipe.train[0]).values())).prompt[1]))
    with pytest.raises(UserError, match="--ask: uses 'plaice', but the columns are"):
        new(tmp_path, place, question="Which of {{ plaice }}?", force=True)


def test_parquet_files_with_classes(tmp_path, place):
    write_parquet(place, rows=20, group=7)
    text, recipe, _ = new(tmp_path, place)
    train, test = read_sides(recipe)
    assert len(train) + len(test) == 40
    assert not train.keys() & test.keys()
    assert test
    assert recipe.train[0].templates[0].labels == ("even", "odd")
    assert "by a hash of the key of the row" in text


def test_a_folder_of_save_to_disk(tmp_path, place):
    rows = {"audio": [{"bytes": clip_bytes(n), "path": f"{n}.wav"} for n in range(8)], "label": [0, 1] * 4}
    stored = datasets.Features(
        audio={"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        label=datasets.ClassLabel(names=["rook", "sea_wren"]),
    )
    both = datasets.Dataset.from_dict(rows, stored).cast_column("audio", datasets.Audio())
    datasets.DatasetDict(train=both, test=both.select(range(4))).save_to_disk(place / "saved")
    _text, recipe, _ = new(tmp_path, place / "saved")
    assert recipe.train[0].templates[0].labels == ("rook", "sea wren")
    train, test = read_sides(recipe)
    assert (len(train), len(test)) == (8, 4)
    assert Counter(q.answer for q in train.values()) == {"rook": 4, "sea wren": 4}


def test_tars_with_texts(tmp_path, place):
    write_tar(place / "a.tar", range(1, 41, 2))
    text, recipe, _ = new(tmp_path, place, text="text")
    train, test = read_sides(recipe)
    assert len(train) + len(test) == 20
    assert test
    assert "1 WebDataset tar(s)" in text


def test_a_dataset_of_the_hub(tmp_path, place, hub, monkeypatch):
    connect_clients(monkeypatch, hub, tmp_path / "hf")
    folder = tmp_path / "hub" / "datasets" / "me" / "birds"
    for split, count in (("train", 8), ("test", 4)):
        table = {
            "audio": [{"bytes": clip_bytes(n), "path": f"{n}.wav"} for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pyarrow.table(table), folder / "data" / f"{split}-00000-of-00001.parquet")
    features = "{name: label, dtype: {class_label: {names: {'0': wren, '1': rook}}}}"
    (folder / "README.md").write_text(
        f"---\ndataset_info:\n  features:\n  - {{name: audio, dtype: audio}}\n  - {features}\n---\n"
    )
    _text, recipe, out = new(tmp_path, "me/birds")
    card = load_yaml(out / "data_recipes/datasets/birds.yaml")
    assert card["load"]["hub"] == "me/birds"
    assert len(card["load"]["revision"]) == 40
    assert recipe.train[0].templates[0].labels == ("wren", "rook")
    train, test = read_sides(recipe)
    assert (len(train), len(test)) == (8, 4)


def test_tars_and_clips_of_the_hub(tmp_path, hub, monkeypatch):
    """Only the library knows the splits and columns of these."""
    connect_clients(monkeypatch, hub, tmp_path / "hf")
    sets = tmp_path / "hub" / "datasets" / "me"
    write_tar(sets / "tars" / "data" / "train-0.tar", range(1, 41, 2))
    assert sum(map(len, read_sides(new(tmp_path, "me/tars", text="text")[1]))) == 20
    (sets / "clips").mkdir()
    for number in range(12):
        (sets / "clips" / f"{number}.wav").write_bytes(clip_bytes(number))
    write_table(
        sets / "clips" / "metadata.csv", [{"file_name": f"{n}.wav", "text": f"t {n}"} for n in range(12)]
    )
    assert sum(map(len, read_sides(new(tmp_path, "me/clips", force=True)[1]))) == 12


def test_several_configurations_of_the_hub_and_none(tmp_path, hub, monkeypatch):
    connect_clients(monkeypatch, hub, tmp_path / "hf")
    sets = tmp_path / "hub" / "datasets" / "me"
    for name in ("en", "de"):
        write_parquet(sets / "set" / name, files=1, rows=20)
    configs = "".join(f"- {{config_name: {name}, data_files: {name}/*}}\n" for name in ("en", "de"))
    (sets / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(UserError, match="me/set has several configurations; set `config` to one of en, de"):
        new(tmp_path, "me/set")
    assert new(tmp_path, "me/set", config="de")[1].train[0].dataset.load.config == "de"
    (sets / "none").mkdir()
    (sets / "none" / "README.md").write_text("nothing yet")
    with pytest.raises(UserError, match=r"me/none contains no files with rows, only README\.md"):
        new(tmp_path, "me/none", force=True)


def test_a_name_that_the_hub_does_not_have(tmp_path, hub, monkeypatch):
    connect_clients(monkeypatch, hub, tmp_path / "hf")
    with pytest.raises(UserError, match="--data me/nothing: cannot be opened"):
        new(tmp_path, "me/nothing")


def test_of_many_files_the_headers_of_a_few_are_read(tmp_path, place, monkeypatch):
    for name in ("a", "b"):
        write_clip(place / name / "0.wav")
        for n in range(1, 1500):
            (place / name / f"{n}.wav").hardlink_to(place / name / "0.wav")
    read = []
    monkeypatch.setattr(
        "uniaudio.data.sources.base.probe_seconds", lambda source, *more: read.append(source) or 0.1
    )
    text = new(tmp_path, place)[0]
    assert re.search(r"splits: train 2,[67]\d\d, test [23]\d\d rows", text)
    assert len(set(read)) <= 300


def test_clips_that_are_long_are_cut_where_the_answer_is_a_label(tmp_path, place):
    for name in "ab":
        for n in range(3):
            path = place / name / f"{n}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, np.zeros(16000 * 65, np.int16), 16000)
    _, _recipe, out = new(tmp_path, place)
    assert load_yaml(out / "data_recipes/datasets/birds.yaml")["long_clips"] == {
        "how": "windows",
        "seconds": 30,
    }
    assert load_run(str(out / "configs/birds.yaml")).stages[0].budget.audio_seconds == 31


def test_rows_that_cannot_be_used_are_allowed_for(tmp_path, place):
    rows = [{"label": "ab"[n % 2] if n % 4 else None} for n in range(40)]
    write_manifest(place, rows)
    text, _, out = new(tmp_path, place)
    assert load_run(str(out / "configs/birds.yaml")).data.max_skipped_share == 0.48
    assert "10 rows have none" in text


def test_labels_that_may_stand_for_none_are_noted(tmp_path, place):
    labels = ["happy", "sad", "n/a", None, ""]
    write_manifest(place, [{"emotion": labels[n % 5]} for n in range(50)])
    text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("happy", "n/a", "sad")
    assert "20 rows have none" in text
    assert "note: `emotion` is 'n/a' in 10 rows, learned and scored as an answer like any other" in text
    assert "write `keep: \"emotion != 'n/a'\"` under each split of the card" in text


def test_a_null_in_a_list_of_labels_is_none_of_them(tmp_path, place):
    lists = [["dog", None], ["rain"], ["dog", "rain"], []]
    write_manifest(place, [{"labels": lists[n % 4]} for n in range(40)])
    _, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("dog", "rain")


def test_labels_in_upper_and_lower_case_are_noted(tmp_path, place):
    write_manifest(
        place, [{"Emotion_Label": ("sad", "Sad", "happy")[n % 3], "rating": n % 5} for n in range(40)]
    )
    text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("Sad", "happy", "sad")
    assert "answer: `Emotion_Label` (the end of its name): a label with 3 values" in text
    assert "note: labels differ only in upper and lower case: Sad, sad; to merge them" in text


def test_pools_are_small_where_rows_are_few(tmp_path, place):
    write_manifest(place, [{"label": "ab"[n % 2], "split": "test" if n < 10 else "train"} for n in range(90)])
    _, _, out = new(tmp_path, place)
    data = load_run(str(out / "configs/birds.yaml")).data
    assert (data.pool, data.streams) == (10, 8)  # a pool of every stream, together the 80 rows


def test_files_are_replaced_only_with_force(tmp_path, place):
    write_classes(place, ["a", "b"], 5)
    out = new(tmp_path, place)[2]
    kept = out / "templates" / "birds.yaml"
    kept.write_text("mine")
    with pytest.raises(UserError, match=r"templates/birds\.yaml.* would be overwritten; use another NAME"):
        new(tmp_path, place)
    assert kept.read_text() == "mine"
    kept.write_bytes("für Vögel".encode("latin-1"))  # of an editor with another encoding
    assert "task: birds" in (new(tmp_path, place, force=True)[2] / "templates/birds.yaml").read_text()


def test_nothing_is_left_behind_by_a_mistake(tmp_path, place):
    write_classes(place, ["a", "b"], 5)
    with pytest.raises(UserError):
        new(tmp_path, place, question="{{ labels")
    assert not list((tmp_path / "project").rglob("*.yaml"))


@pytest.mark.parametrize("suffix", [".txt", ".lab", ".TXT"])
def test_texts_beside_clips_are_transcripts(tmp_path, place, suffix):
    for number in range(20):
        write_clip(place / f"{number}.wav", number)
        (place / f"{number}{suffix}").write_bytes(f"\ufeffwords of {number}\r\n".encode())
    (place / "about.txt").write_text("no clip has this name")
    text, recipe, _ = new(tmp_path, place)
    assert "`text` (by its name): a transcript" in text
    assert "skipped: file with suffix .txt (1)" in text
    train, test = read_sides(recipe)
    assert {q.answer for q in (*train.values(), *test.values())} == {f"words of {n}" for n in range(20)}
    assert recipe.evaluate[0].templates[0].scoring.metric == "wer"


def test_json_files_beside_clips_give_columns(tmp_path, place):
    for number in range(20):
        write_clip(place / f"{number}.wav", number)
        content = {"text": f"words of {number}", "speaker": f"s{number % 4}"}
        (place / f"{number}.json").write_text(json.dumps(content))
    assert "by `speaker`, each of 4 on one side only" in new(tmp_path, place)[0]
    (place / "0.json").write_text("{broken")
    text, _recipe, _ = new(tmp_path, place, force=True)
    assert "skipped: .json next to a clip, not readable as columns (1)" in text


def test_true_and_false_are_the_labels_yes_and_no(tmp_path, place):
    write_manifest(place, [{"is bird": number % 2 == 0, "x": number} for number in range(20)])
    _text, recipe, _ = new(tmp_path, place, label="is bird")
    assert recipe.train[0].templates[0].labels == ("no", "yes")
    answers = {key: q.answer for side in read_sides(recipe) for key, q in side.items()}
    assert (answers["clips/0.wav"], answers["clips/1.wav"]) == ("yes", "no")


def test_underscores_around_a_class_are_no_blanks(tmp_path, place):
    write_classes(place, ["__noise__", "dog_bark"], 6)
    recipe = new(tmp_path, place)[1]
    assert set(recipe.train[0].templates[0].labels) == {"noise", "dog bark"}
    assert {q.answer for q in read_sides(recipe)[0].values()} == {"noise", "dog bark"}


@pytest.mark.parametrize(("rows", "weight"), [(90_000, 500), (None, None)])
def test_several_training_splits_are_weighted_where_the_rows_of_all_are_known(rows, weight):
    division = Division({}, ("train_a", "train_b"), None, "the splits of the data")
    answer = Answer("label", "label")
    known = {"train_a": 500, "train_b": rows}
    task = TaskDescription("birds", Layout({}, ""), {}, answer, division, rows=known)
    assert make_line(task, "train_a", "train").get("weight") == weight


def test_labels_that_cannot_be_on_both_sides(tmp_path, place):
    write_classes(place, ["a", "b"], 1)
    assert "1 label(s) have so few clips that they occur only in the test split" in new(tmp_path, place)[0]


def test_folders_above_the_labels(tmp_path, place):
    for number in range(24):
        write_clip(place / "ab"[number % 2] / f"y{number % 3}" / f"{number}.wav", number)
    text, recipe, out = new(tmp_path, place)
    assert recipe.train[0].templates[0].labels == ("y0", "y1", "y2")
    assert "for the folders above it (a, b ...)" in text
    made = re.search(r"`(columns: .+?)` in the card", text)[1]
    card = out / "data_recipes/datasets/birds.yaml"
    card.write_text(f"{card.read_text()}{made}\n")
    template = out / "templates/birds.yaml"
    content = template.read_text().replace("[label]", "[outer]").replace("{{ label }}", "{{ outer }}")
    template.write_text(content.replace("[y0, y1, y2]", "[a, b]"))
    sides = read_sides(load_recipe(str(out / "data_recipes/birds.yaml")))
    assert {q.answer for side in sides for q in side.values()} == {"a", "b"}


def test_stored_splits_that_are_not_for_training(tmp_path, place):
    rows = {
        "audio": [{"bytes": clip_bytes(n), "path": f"{n}.wav"} for n in range(12)],
        "label": ["a", "b"] * 6,
    }
    fold = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    datasets.DatasetDict(fold1=fold, fold2=fold).save_to_disk(place / "saved")
    text, recipe, _ = new(tmp_path, place / "saved")
    assert "no stored split is called train: only fold1 is used, not fold2" in text
    assert sum(map(len, read_sides(recipe))) == 12
    assert "splits: train 9, test 3 rows" in text  # all were read, and counted


def test_of_two_columns_the_one_that_has_more_clips_is_taken(tmp_path, place):
    write_manifest(place, [{"label": "ab"[n % 2], "file": f"whole/{n}.wav"} for n in range(20)])
    for number in range(20):
        write_clip(place / f"whole/{number}.wav", number)
    for number in range(8):
        (place / f"clips/{number}.wav").unlink()
    _text, recipe, _ = new(tmp_path, place)
    assert recipe.train[0].dataset.audio == ("file",)
    assert sum(map(len, read_sides(recipe))) == 20


def test_a_manifest_of_which_half_the_clips_are_there(tmp_path, place):
    write_manifest(place, [{"label": "ab"[number // 2 % 2]} for number in range(40)])
    for number in range(0, 40, 2):
        (place / f"clips/{number}.wav").unlink()
    _text, _recipe, out = new(tmp_path, place)
    assert load_run(str(out / "configs/birds.yaml")).data.max_skipped_share > 0.5
    (place / "clips/1.wav").unlink()
    with pytest.raises(
        UserError, match=r"21 of the first 40 clips named in `audio` are missing, such as .+clips/0\.wav"
    ):
        new(tmp_path, place, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"1.wav,a\n2.wav,b\n",
            r"its first line is already a row \(1\.wav\); add a header line with the column names",
        ),
        (
            "file,class\n1.wav,Möwe\n2.wav,Krähe\n".encode("latin-1"),
            "`class` is not UTF-8 text in 2 of 2 rows",
        ),
    ],
)
def test_tables_of_other_programs(tmp_path, place, content, message):
    for number in (1, 2):
        write_clip(place / f"{number}.wav", number)
    (place / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        new(tmp_path, place / "table.csv")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("Is it {{ label }}?", "--ask: contains the answer, column 'label'"),
        ("<audio> or <audio>?", "--ask: contains <audio> 2 times"),
        ("What is {{ this }}?", "--ask: uses 'this', but the columns are "),
        ("What is {{ this?", "--ask: unexpected char"),
    ],
)
def test_questions_that_have_no_place_in_a_template(tmp_path, place, question, message):
    write_classes(place, ["a", "b"], 5)
    with pytest.raises(UserError, match=message):
        new(tmp_path, place, question=question)


@pytest.mark.parametrize("question", ['What\'s {this} "here"? #1', "100 %: 'a'\nor b\\n?"])
def test_questions_with_signs_of_yaml_and_jinja(tmp_path, place, question):
    write_classes(place, ["a", "b"], 5)
    train, _ = read_sides(new(tmp_path, place, question=question)[1])
    assert {q.prompt for q in train.values()} == {("", question)}


def ambiguous(folder):
    write_manifest(folder, [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(10)])


def unnamed(folder):
    write_manifest(folder, [{"x": f"t {n}", "y": "ab"[n % 2]} for n in range(10)])


def without_clips(folder):
    write_jsonl(folder / "manifest.jsonl", [{"audio": "gone.wav", "label": "a"}])


def without_paths(folder):
    write_jsonl(folder / "manifest.jsonl", [{"label": "a"}, {"label": "b"}])


def of_one_list(folder):
    (folder / "manifest.jsonl").write_text('[{"audio": "a.wav", "label": "a"}]')


def of_two_kinds(folder):
    for name in ("train.jsonl", "test.csv"):
        write_manifest(folder, [{"label": "ab"[n % 2]} for n in range(4)], name)


def broken(folder):
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "x.wav").write_bytes(b"no audio")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: None,
            r"contains no recordings, manifest, \.parquet or \.tar files \(found: nothing\)",
        ),
        (lambda folder: (folder / "a.pdf").touch(), r"\(found: \.pdf \(1\)\)"),
        (
            lambda folder: write_clip(folder / "a.wav"),
            r"contains 1 recording\(s\) without labels or texts",
        ),
        (lambda folder: write_classes(folder, ["rook"], 5), "all 5 rows have the same `label`, rook"),
        (
            ambiguous,
            "`text` or `label` may be the answer; name one with --label COLUMN or --text COLUMN: text",
        ),
        (unnamed, "it is not clear which column is the answer; name it .*: x, y"),
        (without_clips, r"`audio` names gone\.wav, which is not in any folder near it"),
        (without_paths, "no column names the recordings; the columns are label"),
        (of_one_list, r"manifest\.jsonl: holds a JSON list; write one object per line"),
        (
            of_two_kinds,
            r"contains tables and JSON Lines \(test\.csv, train\.jsonl\), but a card loads one kind",
        ),
        (broken, r"none of the first 2 recordings can be read \(broken audio\)"),
        (lambda folder: (folder / "1-2.trans.txt").touch(), "uniaudio data import librispeech"),
        (lambda folder: (folder / "validated.tsv").touch(), "uniaudio data import common-voice"),
    ],
)
def test_what_it_cannot_make_a_task_of(tmp_path, place, make, message):
    make(place)
    with pytest.raises(UserError, match=message):
        new(tmp_path, place)


def test_a_table_that_is_only_called_like_one_of_common_voice(tmp_path, place):
    write_classes(place, ["clips"], 10)
    rows = "".join(f"clips/clips{n}.wav\t{'ab'[n % 2]}\n" for n in range(10))
    (place / "cross_validated.tsv").write_text(f"audio\tlabel\n{rows}")
    train, test = read_sides(new(tmp_path, place)[1])
    assert len(train) + len(test) == 10


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "--data nowhere: there is no such file or folder"),
        ("../a/b/c", "there is no such file or folder"),
        (__file__, r"is not one of \.jsonl"),
    ],
)
def test_places_that_are_none(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        new(tmp_path, data)


@pytest.mark.parametrize(
    "name", ["x[1]", "a*b", "50% ${HOME}", "a::b", 'it\'s "q"', "# no", "-x", "鳥 ü", "a.tar"]
)
def test_folders_of_any_name(tmp_path, name):
    write_classes(tmp_path / name / "folder", ["a", "b"], 5)
    write_manifest(tmp_path / name / "list", [{"label": "ab"[n % 2]} for n in range(10)])
    for data in ("folder", "list"):
        assert sum(map(len, read_sides(new(tmp_path, tmp_path / name / data, force=True)[1]))) == 10


def test_braces_in_the_path_of_shards(tmp_path):
    write_parquet(tmp_path / "my {a,b}", rows=10)
    with pytest.raises(
        UserError, match="in a card, braces in a path stand for several files; rename the folder"
    ):
        new(tmp_path, tmp_path / "my {a,b}")


def test_one_file_and_one_row(tmp_path, place):
    write_clip(place / "a.wav")
    with pytest.raises(UserError, match="is one recording; name a folder of recordings"):
        new(tmp_path, place / "a.wav")
    write_manifest(place, [{"text": "only one"}])
    text, recipe, out = new(tmp_path, place / "manifest.jsonl")
    assert not recipe.evaluate
    assert len(read_rows(recipe.train[0])) == 1
    assert "too few clips for a test split" in text
    assert load_run(str(out / "configs/birds.yaml")).train.evaluate_every is None


def test_a_named_column_wins(tmp_path, place):
    ambiguous(place)
    assert new(tmp_path, place, label="label")[1].train[0].templates[0].labels == ("a", "b")
    assert new(tmp_path, place, text="text", force=True)[1].train[0].templates[0].labels is None
    with pytest.raises(
        UserError, match=r"no column 'lable' \(did you mean 'label'\?\); they have text, label"
    ):
        new(tmp_path, place, label="lable", force=True)


@pytest.mark.parametrize("name", ["my birds", "a/b", "", "../x", "birds.yaml", "x" * 101])
def test_names_that_no_file_can_have(tmp_path, place, name):
    with pytest.raises(UserError, match="use up to 100 letters, digits, _ and -, such as "):
        create_task(NewTask(name, str(place), out=tmp_path))


def test_names_of_shipped_files(tmp_path, place):
    with pytest.raises(UserError, match="NAME 'asr': uniaudio includes files of this name; use my_asr"):
        create_task(NewTask("asr", str(place), out=tmp_path))


@pytest.mark.parametrize("name", ["null", "123", "yes", "1e5", "vögel", "a.b", "0x1"])
def test_names_that_yaml_reads_as_something_else(tmp_path, place, name):
    write_classes(place, ["a", "b"], 5)
    config = create_task(NewTask(name, str(place), out=tmp_path), Console(file=io.StringIO()))
    assert Path(load_run(str(config)).stages[0].recipe).stem == name
    assert load_recipe(str(tmp_path / f"data_recipes/{name}.yaml")).train[0].templates[0].task == name


def test_models_that_are_named(tmp_path, place):
    write_classes(place, ["a", "b"], 5)
    with pytest.raises(UserError, match=r"--encoder \./nothing: there is no such folder"):
        new(tmp_path, place, encoder="./nothing")
    with pytest.raises(
        UserError, match=r"--decoder .+: the folder is neither a model \(no config\.json\) nor a run"
    ):
        new(tmp_path, place, decoder=str(place))
    out = new(tmp_path, place, encoder="microsoft/wavlm-base", decoder="me/lm")[2]
    config = load_run(str(out / "configs/birds.yaml"))
    assert config.encoders["wavlm_base"].path == "microsoft/wavlm-base"
    assert config.decoder.path == "me/lm"
    assert config.encoders["wavlm_base"].pad_to is None  # which is of Whisper alone


@pytest.mark.slow
def test_what_it_writes_passes_check_and_trains(
    tmp_path, place, chat_tokenizer, fresh_accelerate, monkeypatch
):
    """From recordings to the first training step in two commands."""
    make_bird_folder(tmp_path / "reader", chat_tokenizer)
    out = new(
        tmp_path,
        tmp_path / "reader/data/birds",
        encoder=str(tmp_path / "reader/openai/whisper-small"),
        decoder=str(tmp_path / "reader/Qwen/Qwen3-0.6B"),
    )[2]
    monkeypatch.chdir(out)
    smaller = ["stages.0.steps=1", "stages.0.warmup=0", "data.workers=0", "train.evaluate_every=null"]
    config = open_run("configs/birds.yaml", smaller)
    screen = io.StringIO()
    check_run(config, Console(file=screen, width=200))
    assert "ok: no mistake found in config, recipes, templates, columns, rows" in screen.getvalue()
    assert run_training(config, None) == 0
    assert Run("runs/birds").step == 1


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_weights(write_run(tmp_path / "run", ["task"]), b"weights")
    save_miniature_whisper(tmp_path / "model", d_model=16, layers=1)
    chosen = starting_config.choose_models(SMALL, "~/run", "~/model")
    assert chosen == (str(tmp_path / "run"), str(tmp_path / "model"))
    with pytest.raises(UserError, match="--encoder ~/nothing: there is no such folder"):
        starting_config.choose_models(SMALL, "~/nothing", None)
