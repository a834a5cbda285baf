"""Adding a task, soups, reservoirs and the forgetting matrix, as a user goes through them."""

import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from conftest import tiny_qwen, tone
from helpers.run_folders import latest_checkpoint
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer

from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import load_model
from uniaudio.cli import main
from uniaudio.commands import forgetting, soup
from uniaudio.commands.add_task import add_task
from uniaudio.commands.data_pack import pack_recipe, sample_reservoir
from uniaudio.commands.forgetting import measure_forgetting
from uniaudio.commands.soup import (
    average_tensors,
    hold_out_clips,
    hold_out_sets,
    interpolate_tensors,
    make_soup,
    score_shares,
)
from uniaudio.commands.train import run_training
from uniaudio.commands.tune_batch import measure_peak_in_child, tune_overrides
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.config.trust import Trust
from uniaudio.data.recipe import load_recipe
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.probing.held_probes import HeldScores
from uniaudio.evaluate.probing.labelled_folder import hold_folders
from uniaudio.launched_processes import make_module_command
from uniaudio.model.lora import merge_lora
from uniaudio.train.checkpoint.folders import find_stage_ends
from uniaudio.train.checkpoint.reading import load_checkpoint

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CPU = torch.device("cpu")


@pytest.fixture
def finished(tone_run):
    """A finished run of one stage."""
    folder = tone_run.parent / "old"
    settings = [f"output_dir={folder}", "stages.0.steps=4", "data.log_ids=false"]
    assert run_training(load_run(tone_run, settings), None) == 0
    return folder


@pytest.fixture
def buzzes(tone_run):
    """A second task in the same folder: is a buzz short or long? Returns its recipe."""
    folder = tone_run.parent
    (folder / "buzzes").mkdir()
    rows = []
    for index in range(24):
        long = index % 2
        soundfile.write(folder / "buzzes" / f"{index}.wav", tone(0.7 if long else 0.3, 900, index), 16000)
        split = "train" if index < 16 else "test"
        rows.append({"audio": f"{index}.wav", "label": "long" if long else "short", "split": split})
    (folder / "buzzes" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {
        "buzz.yaml": {
            "task": "buzz",
            "domain": "sound",
            "inputs": ["label"],
            "labels": ["long", "short"],
            "prompts": ["<audio>Which tone is it?"],
            "target": "{{ label }}",
        },
        "buzzes.yaml": {
            "dataset": "buzzes",
            "load": {"jsonl": "buzzes"},
            "license": "CC0-1.0",
            "splits": {"train": {"keep": "split == 'train'"}, "test": {"keep": "split == 'test'"}},
        },
        "buzz_recipe.yaml": {
            "recipe": "buzz_recipe",
            "train": [{"dataset": "buzzes", "template": "buzz"}],
            "evaluate": [{"dataset": "buzzes", "template": "buzz"}],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(dump_yaml(content))
    return folder / "buzz_recipe.yaml"


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_a_task_more_goes_on_from_the_finished_run(finished, buzzes, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    changes = ["continual={distill: {weight: 0.1}}", "warmup=0"]
    config = add_task(finished, str(buzzes), tmp_path / "new", 3, 0.25, [], changes)
    opened = load_run(config)
    assert [stage.name for stage in opened.stages] == ["one", "buzz_recipe"]
    assert opened.stages[1].continual.distill.weight == 0.1
    recipe = load_recipe(opened.stages[1].recipe, near=opened.folder)
    assert {e.name: e.share for e in recipe.train} == {"buzzes:buzz": 0.75, "tones:tone": 0.25}
    assert run_training(load_run(config, ["data.log_ids=true"]), "yes") == 0
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before
    message = rows(tmp_path / "new")
    assert [row["step"] for row in message if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    new_ids = [
        i for row in message if row.get("step", 0) > 4 and "ids" in row for step in row["ids"] for i in step
    ]
    assert {i.split("/")[0] for i in new_ids} == {"buzzes", "tones"}
    assert sorted(find_stage_ends(tmp_path / "new")[0]) == [0, 1]
    old, new = (load_checkpoint(find_stage_ends(tmp_path / "new")[0][i]).model for i in (0, 1))
    assert all(torch.equal(old[n], t) for n, t in load_checkpoint(latest_checkpoint(finished)).model.items())
    assert any(not torch.equal(old[n], new[n]) for n in old)


def test_what_cannot_be_added_to_is_reported(finished, buzzes, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        add_task(finished, str(buzzes), tmp_path / "full", None, 0.0, [])
    with pytest.raises(UserError, match="has no finished stage"):
        add_task(tmp_path / "nothing", str(buzzes), tmp_path / "a", None, 0.0, [])
    with pytest.raises(UserError, match="unknown key"):
        add_task(finished, str(buzzes), tmp_path / "b", None, 0.0, [], ["stepz=3"])


def test_a_new_task_is_not_ended_by_the_cap_of_the_old_run(tone_run, buzzes, tmp_path):
    old = tmp_path / "old"
    capped = [f"output_dir={old}", "stages.0.steps=2", "train.max_steps=2", "stages.0.warmup=0"]
    assert run_training(load_run(tone_run, capped), None) == 0
    config = add_task(old, str(buzzes), tmp_path / "new", 3, 0.0, [])
    assert run_training(load_run(config), "yes") == 0
    assert [row["step"] for row in rows(tmp_path / "new") if "loss" in row] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=one"], "stages must have different names, got one, one"),
        (["steps=0"], "steps: input should be"),
    ],
)
def test_a_mistake_in_the_new_stage_leaves_nothing_behind(finished, buzzes, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        add_task(finished, str(buzzes), tmp_path / "new", None, 0.5, [], overrides)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match=message):
        add_task(finished, str(buzzes), tmp_path / "new", None, 0.5, [], overrides)
    assert add_task(finished, str(buzzes), tmp_path / "new", None, 0.5, []).is_file()


def test_a_recipe_with_replay_finds_the_files_of_its_labels(finished, buzzes, tmp_path):
    """They are named relative to the recipe, of which the new run has a copy."""
    (buzzes.parent / "labels.txt").write_text("long\nshort\n")
    line = {"dataset": "buzzes", "template": "buzz"}
    lines = [{**line, "labels": "labels.txt"}, {**line, "split": "test", "labels": {"label": "labels.txt"}}]
    evaluate = [{**line, "labels": "none"}]
    buzzes.write_text(dump_yaml({"recipe": "buzz_recipe", "train": lines, "evaluate": evaluate}))
    config = load_run(add_task(finished, str(buzzes), tmp_path / "new", 3, 0.25, []))
    recipe = load_recipe(config.stages[1].recipe)
    assert [entry.label_sets for entry in recipe.train[:2]] == [(("long", "short"),)] * 2
    assert recipe.evaluate[0].label_sets == (None,)


def test_a_reservoir_is_replayed_when_the_old_data_are_gone(finished, buzzes, tone_run, tmp_path):
    pack_recipe(str(tone_run.parent / "tone_recipe.yaml"), tmp_path / "kept", 64, rows=7)
    kept = [json.loads(line) for line in (tmp_path / "kept/tones/train.jsonl").read_text().splitlines()]
    assert len(kept) == 7
    tests = (tmp_path / "kept/tones/test.jsonl").read_text().splitlines()
    assert len(tests) == 10  # evaluation sets stay whole
    for clip in (tone_run.parent / "tones").glob("*.wav"):
        clip.unlink()
    config = add_task(
        finished,
        str(buzzes),
        tmp_path / "new",
        3,
        0.5,
        [str(tmp_path / "kept/tone_recipe.yaml")],
        ["warmup=0"],
    )
    assert run_training(load_run(config, ["data.log_ids=true"]), "yes") == 0
    ids = [i for row in rows(tmp_path / "new") if "ids" in row for step in row["ids"] for i in step]
    replayed = {i.split("/")[-1] for i in ids if i.startswith("tones/")}
    assert replayed
    assert replayed <= {row["key"] for row in kept}


def test_a_reservoir_takes_every_row_equally_often(tone_run):
    recipe = load_recipe(str(tone_run.parent / "tone_recipe.yaml"))
    source = open_source(recipe.train[0].dataset, "train")
    chosen = list(sample_reservoir(source.rows(), 12))
    assert [row.key for row in chosen] == [row.key for row in sample_reservoir(source.rows(), 12)]
    order = [row.key for row in source.rows() if isinstance(row, Row)]
    assert [order.index(row.key) for row in chosen] == sorted(order.index(row.key) for row in chosen)
    assert len({row.key for row in chosen}) == 12
    assert max(order.index(row.key) for row in chosen) > 14  # not the first ones
    assert len(list(sample_reservoir(source.rows(), 1000))) == len(order) == 30

    def broken():
        yield RowError("missing file", "x")
        yield from source.rows()

    assert [row.key for row in sample_reservoir(broken(), 12)] == [row.key for row in chosen]


def test_interpolation_and_mean_are_the_equations():
    start, end = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0]), "new": torch.ones(1)}
    mixed = interpolate_tensors(start, end, 0.25)
    assert mixed["w"].tolist() == [1.5, 1.0]
    assert torch.equal(mixed["new"], end["new"])
    mean = average_tensors([{"w": torch.tensor([2.0])}, {"w": torch.tensor([8.0])}], [1.0, 2.0])
    assert mean["w"].item() == pytest.approx(6.0)
    with pytest.raises(UserError, match="different tensors"):
        average_tensors([start, end], [1, 1])
    with pytest.raises(UserError, match="low-rank"):
        average_tensors([{"q.lora_A.default.weight": torch.ones(1)}] * 2, [1, 1])


def test_of_a_low_rank_update_the_update_is_scaled():
    a, b = torch.randn(2, 5), torch.randn(4, 2)
    start = {"q.lora_A.default.weight": torch.randn(2, 5), "q.lora_B.default.weight": torch.zeros(4, 2)}
    end = {"q.lora_A.default.weight": a, "q.lora_B.default.weight": b}
    mixed = interpolate_tensors(start, end, 0.3)
    update = mixed["q.lora_B.default.weight"] @ mixed["q.lora_A.default.weight"]
    torch.testing.assert_close(update, 0.3 * (b @ a))


def test_a_soup_lies_between_the_run_and_its_start(finished, tone_run, tmp_path):
    start = load_encoder(str(tone_run.parent / "whisper"), CPU).state_dict()
    end = load_encoder(str(finished), CPU).state_dict()
    for alpha, out in ((0.0, "zero"), (0.4, "some"), (1.0, "one")):
        make_soup([str(finished)], tmp_path / out, alphas=(alpha,))
        for name, value in load_encoder(str(tmp_path / out), CPU).state_dict().items():
            torch.testing.assert_close(value, torch.lerp(start[name], end[name], alpha))
    adapter = load_model(str(tmp_path / "zero"), CPU).model.adapter.down.weight
    assert torch.equal(adapter, load_model(str(finished), CPU).model.adapter.down.weight)  # it has no start
    make_soup([str(finished), str(tmp_path / "zero")], tmp_path / "mean", weights=[1, 3])
    for name, value in load_encoder(str(tmp_path / "mean"), CPU).state_dict().items():
        torch.testing.assert_close(value, torch.lerp(start[name], end[name], 0.25))


STAGE = {"recipe": "tone_recipe", "steps": 3, "budget": {"audio_seconds": 6}}


def train_two_stages(tone_run, folder, first, merge=False, **settings):
    """Train a run whose first stage trains some of the parts; return the ends of both stages."""
    stages = [{**STAGE, "name": "a", "train": first}, {**STAGE, "name": "b", "merge_lora": merge}]
    changes = {"stages": stages, "output_dir": str(folder), "data.log_ids": False, **settings}
    assert run_training(load_run(tone_run, changes), None) == 0
    return find_stage_ends(folder)[0]


def merged_encoder(spec):
    encoder = load_encoder(str(spec), CPU)
    merge_lora(encoder)
    return encoder.state_dict()


def assert_between(mixed, start, end, alpha):
    first, last, result = merged_encoder(start), merged_encoder(end), merged_encoder(mixed)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    for name, value in result.items():
        torch.testing.assert_close(value, torch.lerp(first[name], last[name], alpha), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "settings"),
    [
        ({"^encoder": "frozen"}, {}),  # whose checkpoint holds no tensor of the encoder
        ({"^encoder": "frozen"}, {"encoders.whisper.train": "lora"}),
        ({}, {"encoders.whisper.train": "lora", "encoders.whisper.lr": 0.05, "merge": True}),
        ({"^encoder": "full"}, {"encoders.whisper.train": "lora", "encoders.whisper.lr": 0.05}),
    ],
)
def test_a_soup_lies_between_a_run_and_the_end_of_its_first_stage(tone_run, tmp_path, first, settings):
    ends = train_two_stages(tone_run, tmp_path / "two", first, **settings)
    for alpha, out in ((0.0, "zero"), (0.4, "some")):
        make_soup([str(tmp_path / "two")], tmp_path / out, str(ends[0]), alphas=(alpha,))
        assert_between(tmp_path / out, ends[0], ends[1], alpha)
    start, end, mixed = (
        load_model(str(path), CPU).model.adapter for path in (*ends.values(), tmp_path / "some")
    )
    torch.testing.assert_close(
        mixed.down.weight, torch.lerp(start.down.weight, end.down.weight, 0.4), atol=1e-6, rtol=1e-5
    )


def test_two_updates_of_low_rank_have_no_mean_of_that_rank(tone_run, tmp_path):
    settings = {"encoders.whisper.train": "lora", "encoders.whisper.lr": 0.05}
    ends = train_two_stages(tone_run, tmp_path / "two", {}, **settings)
    with pytest.raises(
        UserError, match=r"step-000003: encoder\.\S+ differs from that of .*step-000006, which does"
    ):
        make_soup([str(tmp_path / "two")], tmp_path / "mixed", str(ends[0]), alphas=(0.5,))
    assert not (tmp_path / "mixed").exists()


def test_updates_of_a_decoder_are_not_interpolated_factor_by_factor(tone_run, tmp_path):
    ends = train_two_stages(tone_run, tmp_path / "two", {}, **{"decoder.train": "lora", "decoder.lr": 0.01})
    with pytest.raises(UserError, match="its decoder has other low-rank updates than"):
        make_soup([str(tmp_path / "two")], tmp_path / "mixed", str(ends[0]), alphas=(0.5,))
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (2, {"weights": [0.0, 0.0]}, r"--weights 0,0: their sum must be a number above 0"),
        (2, {"weights": [1.0, float("nan")]}, r"--weights 1,nan: their sum must be a number above 0"),
        (2, {"weights": [1.0]}, "2 models need the same number of --weights, not 1"),
        (2, {"alphas": (0.5,)}, "--start, --alpha and --data are for one run"),
        (2, {"data": ["tones=tones"]}, "--start, --alpha and --data are for one run"),
        (2, {"start": "run"}, "--start, --alpha and --data are for one run"),
        (1, {"weights": [0.5]}, "--weights is for several runs; for one run, give --alpha"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, models, options, message):
    with pytest.raises(UserError, match=message):
        make_soup(["run"] * models, tmp_path / "out", **options)


def test_models_with_different_decoders_are_not_averaged(finished, tone_run, tmp_path):
    folder = tone_run.parent
    tiny_qwen(AutoConfig.from_pretrained(folder / "qwen").vocab_size, seed=1).save_pretrained(
        folder / "other"
    )
    AutoTokenizer.from_pretrained(folder / "qwen").save_pretrained(folder / "other")
    settings = [f"output_dir={tmp_path / 'second'}", "stages.0.steps=2", "decoder.path=other"]
    assert run_training(load_run(tone_run, settings), None) == 0
    with pytest.raises(
        UserError, match=r"was trained with the decoder .*qwen .*; average runs with the same"
    ):
        make_soup([str(finished), str(tmp_path / "second")], tmp_path / "mean")


def test_probes_on_held_out_train_clips_choose_the_share(finished, tone_run, tmp_path, capsys):
    data = f"tones={tone_run.parent / 'tones'}"
    main_ok("soup", str(finished), "-o", str(tmp_path / "best"), "--data", data)
    facts = json.loads((tmp_path / "best" / "soup.json").read_text())
    means = {float(alpha): scores["mean"] for alpha, scores in facts["scores"].items()}
    assert len(means) == 11
    assert means[facts["alpha"]] == max(means.values())
    assert f"alpha {facts['alpha']:g} is kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="--data NAME=FOLDER is needed to choose alpha"):
        make_soup([str(finished)], tmp_path / "none")
    (rows,) = hold_folders({"tones": tone_run.parent / "tones"}, print)
    (trial,) = hold_out_clips(rows).trials
    assert len(trial.test) + len(trial.train) == len(rows.parts["train"]) == 30
    assert len(trial.test) == 6  # 15 of each class: three of them each


def write_folder(tone_run, name, rows):
    """A labelled folder with some of the tones: (number, label, split). Returns the option that names it."""
    folder = tone_run.parent / name
    folder.mkdir()
    lines = [
        json.dumps({"audio": f"../tones/{number}.wav", "label": label, "split": split})
        for number, label, split in rows
    ]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return f"{name}={folder}"


FEW = [(0, "a", "train"), (1, "b", "train"), (2, "a", "test")]  # nothing can be held out of them


def test_a_soup_chooses_by_the_sets_that_clips_can_be_held_out_of(tone_run):
    data = [
        write_folder(tone_run, "few", FEW),
        write_folder(tone_run, "one", [(number, "a", "train") for number in range(8)] + [(9, "a", "test")]),
        f"tones={tone_run.parent / 'tones'}",
    ]
    notes = []
    assert [rows.name for rows in hold_out_sets(data, notes.append)] == ["tones"]
    assert notes == [
        "one is left out: 'label' names 1 class, too few to probe",
        "few is left out: its classes have fewer than 4 train clips to hold out from",
    ]
    with pytest.raises(
        UserError, match=r"^--data few: its classes have fewer than 4 train clips to hold out"
    ):
        hold_out_sets(data[:1], notes.append)


def test_a_share_with_which_a_set_cannot_be_scored_is_not_chosen(monkeypatch):
    reason = "embeddings are not finite"

    def probe(alpha, sets, seeds, kinds):
        means = {name: mean + alpha for name, mean in (("a", 0.1), ("b", 0.3)) if name == "b" or alpha <= 0.5}
        unscored = {name: reason for name in ("a", "never") if name not in means}
        notes = ["b: 1 row skipped"] if alpha == 0 else []
        return HeldScores({name: {"knn": {"mean": mean}} for name, mean in means.items()}, unscored, notes)

    monkeypatch.setattr(soup, "probe_held", probe)
    notes = []
    scores = score_shares(lambda alpha: alpha, (0.0, 0.5, 1.0), [], "knn", notes.append)
    assert scores == {
        0.0: {"a": 0.1, "b": 0.3, "mean": pytest.approx(0.2)},
        0.5: {"a": 0.6, "b": 0.8, "mean": pytest.approx(0.7)},
    }
    assert notes == [
        "alpha 0: b: 1 row skipped",
        f"alpha 0: never cannot be scored: {reason}",
        f"alpha 0.5: never cannot be scored: {reason}",
        f"alpha 1: a cannot be scored: {reason}",
        f"alpha 1: never cannot be scored: {reason}",
    ]
    monkeypatch.setattr(soup, "probe_held", lambda *given: HeldScores({}, {"a": reason}, []))
    with pytest.raises(
        UserError, match=f"^no share of the weights can be chosen: a cannot be scored: {reason}$"
    ):
        score_shares(lambda alpha: alpha, (0.8, 1.0), [], "knn", notes.append)


def test_a_stage_after_which_a_set_cannot_be_scored_leaves_a_gap(monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(forgetting, "build_encoder", lambda config: torch.nn.Identity())
    monkeypatch.setattr(forgetting, "load_encoder", lambda spec, trust: spec)

    def probe(encoder, sets, seeds):
        scores = {name: {kind: {"mean": 0.5} for kind in ("linear", "mlp", "knn")} for name in ("a", "b")}
        if encoder == "folder":
            del scores["a"]
            return HeldScores(scores, {"a": "embeddings are not finite"}, ["b: 1 row skipped"])
        return HeldScores(scores, {}, [])

    monkeypatch.setattr(forgetting, "probe_held", probe)
    measured = forgetting.probe_rows(SimpleNamespace(trust=None), {"one": "folder"}, [], 1, console)
    matrix = forgetting.probe_matrices(measured, ["a", "b"], {"a": 1})["probe/knn"]
    assert (matrix.scores, matrix.learned) == (((0.5, 0.5), (None, 0.5)), (1, None))
    said = console.file.getvalue()
    assert "one: b: 1 row skipped\none: a cannot be scored: embeddings are not finite\n" in said


def test_forgetting_without_a_set_to_probe_measures_answers_alone(tone_run):
    console = Console(file=io.StringIO(), width=200)
    folders = {"one": tone_run.parent / "one"}
    write_folder(tone_run, "one", [(0, "a", "train"), (1, "a", "test")])
    assert forgetting.hold_probed_sets(folders, True, console) == []
    assert console.file.getvalue() == (
        "nothing is probed: task one: 'label' names 1 class, too few to probe\n"
    )
    with pytest.raises(UserError, match=r"^task one: 'label' names 1 class, too few to probe$"):
        forgetting.hold_probed_sets(folders, False, console)


def main_ok(*arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code in (0, None)


def refuse_call(*_):
    raise AssertionError("a mistake in the options is found before anything is probed")


def test_the_forgetting_matrix_of_two_stages(finished, buzzes, tmp_path, monkeypatch, capsys):
    config = add_task(finished, str(buzzes), tmp_path / "new", 3, 0.25, [], ["warmup=0"])
    assert run_training(load_run(config), "yes") == 0
    folders = {name: buzzes.parent / name for name in ("tones", "buzzes")}
    data = [f"{name}={folder}" for name, folder in folders.items()]
    monkeypatch.setattr(forgetting, "probe_held", refuse_call)
    with pytest.raises(
        UserError, match=r"--learned tone=one: no set 'tone' is probed \(did you mean 'tones'"
    ):
        measure_forgetting(tmp_path / "new", data, None, ["tone=one"])
    monkeypatch.undo()
    capsys.readouterr()
    result = measure_forgetting(tmp_path / "new", [*data, f"other={folders['tones']}"], None, max_examples=4)
    assert "no stage trains on a dataset called other: these sets count as known" in capsys.readouterr().out
    assert result["probe/knn"]["learned"] == [1, 2, None]
    result = measure_forgetting(tmp_path / "new", data, None, max_examples=4)
    stored = json.loads((tmp_path / "new" / "forgetting.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert set(stored) == {"probe/linear", "probe/mlp", "probe/knn", "answers"}
    knn = stored["probe/knn"]
    assert knn["stages"] == ["start", "one", "buzz_recipe"]
    assert knn["sets"] == ["tones", "buzzes"]
    assert knn["learned"] == [1, 2]
    scores = knn["scores"]
    assert all(0 <= value <= 1 for row in scores for value in row)
    summary = knn["summary"]
    assert summary["average_accuracy"] == pytest.approx((scores[2][0] + scores[2][1]) / 2)
    assert summary["backward_transfer"] == pytest.approx(scores[2][0] - scores[1][0])
    assert stored["answers"]["scores"][0] == [None, None]
    assert (tmp_path / "new" / "forgetting.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(UserError, match="no checkpoint from the end of a stage"):
        measure_forgetting(tmp_path, data, None)


def test_a_stage_may_have_the_name_of_the_row_before_training(tone_run, tmp_path):
    stage = {**STAGE, "name": "start", "steps": 2}
    changes = {"stages": [stage], "output_dir": str(tmp_path / "run")}
    assert run_training(load_run(tone_run, changes), None) == 0
    data = [f"tones={tone_run.parent / 'tones'}"]
    result = measure_forgetting(tmp_path / "run", data, None, ["tones=start"], max_examples=4, seeds=1)
    assert result["probe/knn"]["stages"] == result["answers"]["stages"] == ["start", "stage start"]
    assert result["probe/knn"]["learned"] == result["answers"]["learned"] == [1]
    assert len(result["probe/knn"]["scores"]) == 2


def test_the_budget_is_tuned_before_a_run_for_every_stage(tone_run, monkeypatch):
    monkeypatch.setattr(
        "uniaudio.commands.tune_batch.measure_peak_in_child",
        lambda name, overrides, budget, trust: budget / 10,
    )
    monkeypatch.setattr("uniaudio.commands.tune_batch.get_device_memory", lambda: 10.0)
    stage = "{name: %s, recipe: tone_recipe, steps: 3, budget: {audio_seconds: 6}}"
    overrides = tune_overrides(str(tone_run), [f"stages=[{stage % 'a'}, {stage % 'b'}]"])
    config = load_run(tone_run, overrides)
    results = {stage.budget.audio_seconds for stage in config.stages}
    assert len(results) == 1
    assert 80 < results.pop() <= 90  # a tenth of a GiB a second, nine tenths of ten
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="searches in one process"):
        tune_overrides(str(tone_run), [])


def test_a_trial_of_a_budget_looks_for_modules_where_the_search_does(tone_run, monkeypatch):
    seen = []

    def run(command, **how):
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, '{"peak_gib": 0.5}', "")

    monkeypatch.setattr("uniaudio.commands.tune_batch.subprocess.run", run)
    assert measure_peak_in_child(str(tone_run), ["seed=1"], 6.0, Trust(code=True)) == 0.5
    given = ["[false, true]", str(tone_run), "seed=1", "train.micro_batches=1"]
    assert seen == [[*make_module_command("uniaudio.commands.tune_batch"), *given]]


def test_a_tuned_run_goes_on_with_the_budget_that_it_began_with(tone_run, monkeypatch, capsys):
    """Another one, found on another machine, would draw other data."""
    module = "uniaudio.commands.tune_batch"
    monkeypatch.setattr(f"{module}.measure_peak_in_child", lambda name, overrides, budget, trust: budget / 10)
    monkeypatch.setattr(f"{module}.get_device_memory", lambda: 1.0)
    stored = tone_run.parent / "out" / "config.yaml"
    main_ok("train", str(tone_run), "--tune-batch", "train.max_steps=2")
    budget = load_run(stored).stages[0].budget.audio_seconds
    assert 8 <= budget <= 9
    monkeypatch.setattr(f"{module}.measure_peak_in_child", refuse_call)
    main_ok("train", str(tone_run), "--tune-batch", "--resume", "auto", "train.max_steps=4")
    assert load_run(stored).stages[0].budget.audio_seconds == budget
    assert [row["step"] for row in rows(stored.parent) if "loss" in row] == [1, 2, 3, 4]
