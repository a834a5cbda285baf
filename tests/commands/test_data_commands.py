"""The tools around a recipe: what it holds, packed copies, speed, and the budget that fits."""

import json
import math

import numpy as np
import pytest
import soundfile
from rich.console import Console

from uniaudio.commands import tune_batch as tuning
from uniaudio.commands.data_bench import bench_recipe
from uniaudio.commands.data_pack import pack_recipe
from uniaudio.commands.data_stats import show_hours, show_stats
from uniaudio.commands.preview import preview
from uniaudio.commands.tune_batch import find_largest_budget, tune_batch
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.data.audio import decode
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError


@pytest.fixture
def quiet(tmp_path):
    return Console(file=(tmp_path / "told.txt").open("w"), width=200)


def test_stats_count_what_is_there(tone_run, tmp_path, quiet):
    out, plot = tmp_path / "stats.json", tmp_path / "lengths.png"
    [stats] = show_stats(str(tone_run), None, 2000, out, plot, quiet)
    assert (stats.rows, stats.looked_at, stats.unusable, stats.share) == (30, 30, 0, 1.0)
    lengths = [0.3 + 0.05 * (i % 9) for i in range(30)]
    assert sorted(stats.seconds) == pytest.approx(sorted(lengths))
    assert stats.hours == pytest.approx(sum(lengths) / 3600)
    # 8 steps of two micro-batches of 6 s; a row costs its seconds and one more
    assert stats.epochs == pytest.approx(8 * 2 * 6 / (np.mean(lengths) + 1) / 30)
    capped = tone_run.with_name("capped.yaml")
    capped.write_text("base: run.yaml\ntrain: {max_steps: 4}\n")
    [first_steps] = show_stats(str(capped), None, 2000, None, None, quiet)
    assert first_steps.epochs == pytest.approx(stats.epochs / 2)
    assert json.loads(out.read_text())[0]["answer_words"] == [1] * 30
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_several_questions_about_a_clip_cost_more_and_some_may_be_left_out(tone_run, tmp_path, quiet):
    """As in training: a row is used if one of its questions can be asked, and each of them costs budget."""
    template = (tmp_path / "tone.yaml").read_text()
    (tmp_path / "place.yaml").write_text(
        template.replace("task: tone", "task: place")
        .replace("- label", "- place")
        .replace("{{ label", "{{ place")
        .replace("labels:\n- low\n- high\n", "")
    )
    manifest = tmp_path / "tones" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text(
        "".join(json.dumps(r | {"place": "here" if i % 3 else None}) + "\n" for i, r in enumerate(rows))
    )
    line = {"dataset": "tones", "template": ["tone", "place"]}
    (tmp_path / "tone_recipe.yaml").write_text(dump_yaml({"recipe": "tone_recipe", "train": [line]}))
    [stats] = show_stats(str(tone_run), None, 2000, None, None, quiet)
    assert (stats.looked_at, stats.unusable, len(stats.answer_words)) == (30, 0, 50)
    assert stats.epochs == pytest.approx(8 * 2 * 6 / (np.mean(stats.seconds) + 50 / 30) / 30)
    preview(str(tone_run), 12, str(tmp_path / "qwen"), 0, quiet)
    quiet.file.flush()
    shown = (tmp_path / "told.txt").read_text()
    assert shown.count("tones:tone+place  tone") == 12
    assert 0 < shown.count("tones:tone+place  place") < 12


@pytest.mark.parametrize("hours", [None, 0.01])
def test_epochs_are_those_of_clips_after_a_change_of_speed(tone_run, quiet, hours):
    """A step has as many clips as fit at their longest, and a stage ends by the hours that are drawn."""
    line = {"dataset": "tones", "template": "tone", "augment": [{"speed": {"factor": [0.5, 1.0]}}]}
    tone_run.with_name("tone_recipe.yaml").write_text(dump_yaml({"recipe": "tone_recipe", "train": [line]}))
    config = load_yaml(tone_run)
    config["stages"][0] |= {"steps": None, "hours": hours} if hours else {}
    tone_run.write_text(dump_yaml(config))
    [stats] = show_stats(str(tone_run), None, 2000, None, None, quiet)
    mean = np.mean([0.3 + 0.05 * (i % 9) for i in range(30)])
    assert np.mean(stats.seconds) == pytest.approx(mean)  # the table shows the data
    examples = 2 * 6 / (2 * mean + 1)
    steps = round(3600 * hours / (examples * mean * 2 * math.log(2))) if hours else 8
    assert stats.epochs == pytest.approx(steps * examples / 30)


def test_stats_of_part_of_a_source_are_estimates(tone_run, quiet):
    recipe = str(tone_run.with_name("tone_recipe.yaml"))
    [stats] = show_stats(recipe, None, 10, None, None, quiet)
    assert (stats.looked_at, stats.estimated) == (10, True)
    assert stats.hours == pytest.approx(sum(stats.seconds) * 3 / 3600)
    with pytest.raises(UserError, match="--steps needs a run config"):
        show_stats(recipe, 100, 10, None, None, quiet)


def test_hours_are_added_up_without_the_data(tone_run, tmp_path, quiet, monkeypatch):
    """The folder of the rows is named by a variable that is not set; every split counts once."""
    monkeypatch.delenv("UNIAUDIO_DATA", raising=False)
    recipe = tone_run.with_name("tone_recipe.yaml")
    card = {
        "dataset": "far",
        "load": {"jsonl": "${env:UNIAUDIO_DATA}/far"},
        "license": "CC0-1.0",
        "hours": 100,
        "splits": {"train": {}, "more": {"name": "more", "hours": 20.5}, "unknown": {"name": "x"}},
    }
    recipe.with_name("far.yaml").write_text(dump_yaml(card))
    recipe.with_name("open.yaml").write_text(dump_yaml({**card, "dataset": "open", "hours": None}))
    lines = [{"dataset": "far", "template": "tone", "split": split} for split in ("train", "more")]
    lines.append({"dataset": "open", "template": "tone"})
    recipe.write_text(dump_yaml({"recipe": "tone_recipe", "train": lines}))
    assert show_hours(str(recipe), tmp_path / "hours.json", quiet) == 120.5
    assert [entry["hours"] for entry in json.loads((tmp_path / "hours.json").read_text())] == [
        100,
        20.5,
        None,
    ]
    quiet.file.flush()
    assert "3 splits (and 1 of unknown length)" in (tmp_path / "told.txt").read_text()
    with pytest.raises(UserError, match="set the environment variable UNIAUDIO_DATA"):
        show_stats(str(recipe), None, 10, None, None, quiet)


def test_stats_say_what_is_odd_about_clips_and_what_is_skipped(tone_run, tmp_path, quiet):
    tone = np.sin(np.arange(4800) / 5)
    soundfile.write(tmp_path / "tones" / "3.wav", np.stack([tone, -tone], 1) * 0.5, 16000)
    [stats] = show_stats(str(tone_run.with_name("tone_recipe.yaml")), None, 2000, None, None, quiet)
    [note] = stats.notes
    assert note.startswith("anti-phase channels in 1 of the first 30 rows: their mean is silent")
    quiet.file.flush()
    assert f"{stats.name}: anti-phase channels" in (tmp_path / "told.txt").read_text()


def test_a_packed_recipe_holds_the_same_rows(tone_run, tmp_path, quiet):
    clips = tmp_path / "tones"
    stereo = np.stack([np.full(4410, 1000), np.full(4410, 3000)], 1).astype(np.int16)
    soundfile.write(clips / "0.wav", stereo, 44100)
    (clips / "1.wav").write_bytes(b"no audio")
    content = {
        "recipe": "tone_recipe",
        "train": [{"dataset": "tones", "template": "tone", "augment": [{"gain": {"db": [-6, 6], "p": 0.5}}]}],
        "evaluate": [{"dataset": "tones", "template": "tone", "condition": "noise_10db", "max_examples": 5}],
    }
    (tmp_path / "tone_recipe.yaml").write_text(dump_yaml(content))
    plain = load_recipe(str(tmp_path / "tone_recipe.yaml"))
    pack_recipe(str(tmp_path / "tone_recipe.yaml"), tmp_path / "packed", 1, quiet)
    packed = load_recipe(str(tmp_path / "packed" / "tone_recipe.yaml"))
    assert packed.compute_train_shares() == plain.compute_train_shares()
    assert packed.train[0].augmenter.steps == plain.train[0].augmenter.steps
    assert (packed.evaluate[0].condition, packed.evaluate[0].max_examples) == ("noise_10db", 5)
    old, new = (open_source(recipe.train[0].dataset, "train") for recipe in (plain, packed))
    assert new.size == old.size - 1 == 29
    left_out = json.loads((tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()[0])
    assert left_out["reason"] == "broken audio"
    by_key = {row.columns["key"]: row for row in new.rows()}
    for index in range(old.size):
        row = old.row(index)
        if row.key == "1.wav":
            continue
        ref, other_run = row.audio[0], by_key[row.key].audio[0]
        samples = decode(ref.source, 10, "old")
        assert np.array_equal(decode(other_run.source, 10, "new"), samples)
        assert other_run.read_seconds() == pytest.approx(len(samples) / 16000)
        assert by_key[row.key].columns["label"] == row.columns["label"]
    assert len(list((tmp_path / "packed" / "tones").glob("*.tar"))) == 2  # one for each split
    with pytest.raises(UserError, match="is not empty; give --out a new folder"):
        pack_recipe(str(tmp_path / "tone_recipe.yaml"), tmp_path / "packed", 1, quiet)


def test_packing_keeps_columns_that_are_called_as_something_of_ours(tone_run, tmp_path, quiet):
    """The key of a piece of music, and how long a clip is, may be what a model learns."""
    manifest = tmp_path / "tones" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, row in enumerate(rows):
        seconds = soundfile.info(tmp_path / "tones" / row["audio"]).duration
        row |= {"key": ("C major", "D minor")[index % 2], "duration": seconds}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {
        "task": "tone",
        "domain": "music",
        "inputs": ["key", "duration"],
        "prompts": ["<audio>Which key is it in, and how long is it?"],
        "target": "{{ key }}, {{ duration }} s",
    }
    (tmp_path / "tone.yaml").write_text(dump_yaml(template))
    pack_recipe(str(tmp_path / "tone_recipe.yaml"), tmp_path / "packed", 1, quiet)
    answers = []
    for folder in (tmp_path, tmp_path / "packed"):
        (entry,) = load_recipe(str(folder / "tone_recipe.yaml")).train
        rows = list(open_source(entry.dataset, "train").rows())
        answers.append({row.key: entry.render_question(row, entry.templates[0]).answer for row in rows})
    assert answers[0] == answers[1]
    assert answers[1]["1.wav"] == "D minor, 0.35 s"


def test_a_packed_sample_states_its_hours(tone_run, tmp_path, quiet):
    card = tmp_path / "tones.yaml"
    card.write_text(card.read_text() + "hours: 100\n")
    pack_recipe(str(tmp_path / "tone_recipe.yaml"), tmp_path / "packed", 1, quiet, rows=6)
    (entry,) = load_recipe(str(tmp_path / "packed" / "tone_recipe.yaml")).train
    clips = [row.audio[0].read_seconds() for row in open_source(entry.dataset, "train").rows()]
    assert len(clips) == 6
    assert entry.dataset.split("train").hours == pytest.approx(sum(clips) / 3600, rel=1e-3)
    assert show_hours(str(tmp_path / "packed" / "tone_recipe.yaml"), None, quiet) < 0.01


def test_a_packed_recipe_has_the_questions_of_the_recipes_that_it_replays(tone_run, tmp_path, quiet):
    """Each recipe has a template of this name beside it."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, question in ((old, "<audio>An old question?"), (new, "<audio>A new question?")):
        folder.mkdir()
        content = (tmp_path / "tone.yaml").read_text().replace("<audio>Which tone is it?", question)
        (folder / "tone.yaml").write_text(content.replace("- Name the tone.<audio>\n", ""))
        card = (tmp_path / "tones.yaml").read_text().replace("jsonl: tones", f"jsonl: {tmp_path / 'tones'}")
        for name in ("tones", "others"):
            (folder / f"{name}.yaml").write_text(card.replace("dataset: tones", f"dataset: {name}"))
    lines = [{"dataset": "tones", "template": "tone"}]
    (old / "before.yaml").write_text(dump_yaml({"recipe": "before", "train": lines}))
    replay = [{"recipe": "../old/before.yaml", "share": 0.5}]
    content = {"recipe": "after", "train": [{**lines[0], "dataset": "others"}], "replay": replay}
    (new / "after.yaml").write_text(dump_yaml(content))
    pack_recipe(str(new / "after.yaml"), tmp_path / "packed", 1, quiet)
    packed = load_recipe(str(tmp_path / "packed" / "after.yaml"))
    questions = {entry.dataset.name: entry.templates[0].prompts[0].source[1:] for entry in packed.train}
    assert questions == {"others": "A new question?", "tones": "An old question?"}


def test_a_figure_has_the_name_that_was_given(tone_run, tmp_path, quiet):
    show_stats(str(tone_run), None, 2000, None, tmp_path / "lengths", quiet)
    assert (tmp_path / "lengths").read_bytes()[:4] == b"\x89PNG"


def test_bench_measures_every_number_of_workers(tone_run, quiet):
    speeds = bench_recipe(str(tone_run), 0.2, [0, 1], quiet)
    assert [speed.workers for speed in speeds] == [0, 1]
    assert all(speed.audio_seconds_per_second > 1 and speed.longest_wait > 0 for speed in speeds)


@pytest.mark.parametrize("limit", [1.5, 4.0, 7.3, 100.0])
def test_the_search_ends_just_below_the_limit(limit):
    def peak(budget):
        return None if budget > 900 else 1.0 + budget / 100

    budget, tried = find_largest_budget(peak, limit, first=10, most=2000)
    true = min(900.0, (limit - 1) * 100)
    assert true / 1.06 <= budget <= true
    assert len(tried) < 20
    with pytest.raises(UserError, match=r"not even a micro-batch of 10 s fits into 1\.0 GiB"):
        find_largest_budget(peak, 1.0, first=10, most=2000)
    assert find_largest_budget(lambda budget: 0.5, 1.0, first=10, most=70)[0] == 70


def test_a_budget_is_tried_with_what_every_stage_trains(tone_run, tmp_path, monkeypatch, fresh_accelerate):
    """The first stage trains the adapter alone, as in the usual recipe: later ones need more memory."""
    budget = {"audio_seconds": 6}
    stages = [
        {"name": "a", "recipe": "tone_recipe", "steps": 2, "budget": budget, "train": {"^encoder": "frozen"}},
        {"name": "b", "recipe": "tone_recipe", "steps": 2, "budget": budget},
    ]
    config = load_run(tone_run, {"stages": stages})
    seen = []

    def count_trained(config, stage, model, data, device):
        seen.append({name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad})
        return float(stage)

    monkeypatch.setattr(tuning, "measure_stage_peak", count_trained)
    assert tuning.measure_step_peak(config) == 1.0
    assert seen == [{"adapter"}, {"adapter", "encoder"}]


@pytest.mark.slow
def test_tune_batch_measures_real_steps(tone_run, quiet, tmp_path):
    budget = tune_batch(str(tone_run), ["data.max_seconds=5"], 50.0, 10.0, quiet)
    assert budget == 10.0
    with pytest.raises(UserError, match="not even a micro-batch of 5 s fits"):
        tune_batch(str(tone_run), ["data.max_seconds=5"], 0.01, 10.0, quiet)
