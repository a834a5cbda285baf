"""Real runs: cells go on where they were stopped, every run's config is valid, tables say what the cells hold."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import real
import real_figures
import real_plan
import real_runs
import real_tables
from cells import Cell, run_cells

from uniaudio.config.path_variables import REAL_FOLDERS
from uniaudio.config.run_files import load_run
from uniaudio.data.recipe import load_recipe
from uniaudio.evaluate.probing.suite import load_suite

WRITE = "import json, sys; json.dump({'value': int(sys.argv[2])}, open(sys.argv[1], 'w'))"


@pytest.fixture
def real_folders(tmp_path, monkeypatch):
    """Folders that are named and empty."""
    for name, (variable, _) in REAL_FOLDERS.items():
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


def a_cell(folder: Path, name: str, *needs: Path, code: str = WRITE) -> Cell:
    return Cell(name, (sys.executable, "-c", code, "{out}", "7"), folder / f"{name}.json", needs)


def test_cells_are_run_in_order_and_once(tmp_path):
    first = a_cell(tmp_path, "first")
    second = a_cell(tmp_path, "second", first.result)
    said: list[str] = []
    assert run_cells([second, first], 2, 1, said.append) == 0
    assert [line.split(" in ")[0] for line in said] == [
        "first: started",
        "first: done",
        "second: started",
        "second: done",
    ]
    assert json.loads(second.result.read_text())["value"] == 7
    assert not second.unfinished.exists()
    said.clear()
    assert run_cells([second, first], 2, 1, said.append) == 0
    assert said == []


def test_threads_of_a_cell_do_not_spin(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    cell = a_cell(tmp_path, "cell", code=code)
    assert run_cells([cell], 1, 3, print) == 0
    environment = json.loads(cell.result.read_text())
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("3", "passive")


def test_a_failed_cell_leaves_out_those_that_need_it(tmp_path):
    broken = a_cell(tmp_path, "broken", code="print('no memory'); raise SystemExit(3)")
    after, other = a_cell(tmp_path, "after", broken.result), a_cell(tmp_path, "other")
    said: list[str] = []
    assert run_cells([broken, after, other], 1, 1, said.append) == 1
    assert (other.is_done, after.is_done) == (True, False)
    assert f"broken: failed, see {broken.log}" in said
    assert "after: left out, it needs what failed" in said
    assert broken.log.read_text() == "no memory\n"


def test_a_signal_stops_the_commands_and_keeps_the_rest_for_later(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print(1, flush=True); time.sleep(60)"
    long, after = a_cell(tmp_path, "long", code=code), a_cell(tmp_path, "after")

    def interrupt() -> None:
        while not (long.log.exists() and long.log.read_text()):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=interrupt, daemon=True).start()
    assert run_cells([long, after], 1, 1, said.append) == 75
    assert said == ["long: started", "long: stopped"]
    assert not after.is_done
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", real_runs.RUNS)
def test_every_run_is_a_valid_config_of_the_same_length(name, real_folders):
    run = real_runs.RUNS[name]
    changes = [c.replace("{one_wording}", str(real_plan.one_wording(real_folders))) for c in run.overrides]
    config = load_run(run.config, [*changes, *real_runs.shorten(run, 100)])
    assert (config.total_steps == 100 * run.share) == run.short
    assert len(config.stages) == (4 if run.stages else 1 if run.config == "real_fusion" else 2)
    assert all(encoder.trust_remote_code for name, encoder in config.encoders.items() if name != "whisper")
    for stage in config.stages:
        load_recipe(stage.recipe, near=config.folder)


def test_questions_compare_runs_that_there_are():
    named = {name for question in real_runs.QUESTIONS.values() for name in question.arms.values()}
    assert named == set(real_runs.RUNS)
    assert all(set(question.references) <= question.arms.keys() for question in real_runs.QUESTIONS.values())


def test_encoders_with_foreign_code_are_allowed_in_every_command(real_folders):
    plan = real_plan.Plan(real_folders / "out", 100, "realaudio", 3, 80, False)
    for cell in real_plan.plan_run(plan, "sfx_gate", real_runs.RUNS["sfx_gate"], 0):
        assert "--trust-remote-code" in cell.command
    for cell in real_plan.plan_run(plan, "joint", real_runs.RUNS["joint"], 0):
        assert "--trust-remote-code" not in cell.command


def test_a_plan_may_compute_in_bfloat16_and_probe_by_one_protocol(real_folders):
    plan = real_plan.Plan(real_folders / "out", 100, "realaudio", 3, 80, False, ["masked"], True)
    cells = {cell.name: cell for cell in real_plan.plan_run(plan, "depth", real_runs.RUNS["depth"], 0)}
    assert sorted(cells) == [f"depth_seed0/{name}" for name in ("answers", "masked", "train")]
    changes = [word for word in cells["depth_seed0/train"].command if "=" in word]
    config = load_run("real", changes)
    assert (config.train.precision, config.adapter.depth.encoder_layers) == ("bf16", (2, 4))


def test_an_output_folder_is_not_continued_with_other_settings(real_folders, monkeypatch):
    """Nothing is written for them either, and the settings that it was begun with go on."""
    out = real_folders / "out"
    monkeypatch.setattr(real, "fetch_missing", lambda runs, scripts: None)
    calls = []
    monkeypatch.setattr(real, "run_cells", lambda cells, *rest: calls.append(len(cells)) or 0)

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["real.py", "--out", str(out), "--only", "joint", *options])
        with pytest.raises(SystemExit) as end:
            real.main()
        return end.value.code

    monkeypatch.setattr(sys, "argv", ["real.py", "--out", str(out), "--only", "joint", "--list"])
    real.main()
    assert not out.exists()
    assert call("--steps", "100") == 0
    settings = json.loads((out / "settings.json").read_text())
    assert settings == {"steps": 100, "bf16": False, "quick": False}
    for options, other in (
        (["--steps", "100", "--bf16"], "steps=100, bf16=true, quick=false"),
        (["--steps", "99"], "steps=99, bf16=false, quick=false"),
        (["--steps", "100", "--bf16", "--list"], "steps=100, bf16=true, quick=false"),
        (["--quick"], "steps=3, bf16=false, quick=true"),
    ):
        assert call(*options) == (
            f"{out} holds results with steps=100, bf16=false, quick=false, not {other}: give the same options, or "
            "another --out"
        )
    assert not (out / "realaudio_quick.yaml").exists()
    assert call("--steps", "100", "--protocols", "masked") == 0
    assert calls[1] < calls[0]  # probes by one protocol are fewer cells, not other ones


@pytest.mark.parametrize("name", ["real_listen", "real"])
def test_one_wording_has_the_same_tasks_and_shares_in_one_way(name, real_folders, tmp_path):
    recipe, whole = load_recipe(str(real_plan.one_wording(tmp_path) / f"{name}.yaml")), load_recipe(name)
    assert [entry.dataset.name for entry in recipe.train] == [entry.dataset.name for entry in whole.train]
    assert recipe.compute_train_shares() == whole.compute_train_shares()
    for entry, other in zip(recipe.train, whole.train, strict=True):
        assert [template.task for template in entry.templates] == [t.task for t in other.templates]
        assert {len(template.prompts) for template in entry.templates} == {1}
    assert [entry.name for entry in recipe.evaluate] == [entry.name for entry in whole.evaluate]


def test_one_wording_changes_nothing_but_the_wordings_of_both_stages(real_folders, tmp_path):
    run = real_runs.RUNS["one_wording"]
    changes = [
        change.replace("{one_wording}", str(real_plan.one_wording(tmp_path))) for change in run.overrides
    ]
    stages = load_run(run.config, changes).stages
    for stage, other in zip(stages, load_run("real", []).stages, strict=True):
        recipe, whole = load_recipe(stage.recipe), load_recipe(other.recipe)
        assert recipe.compute_train_shares() == whole.compute_train_shares()
        assert stage.model_copy(update={"recipe": other.recipe}) == other


def test_a_plan_says_what_is_done_and_how_far_a_training_came(real_folders):
    plan = real_plan.Plan(real_folders / "out", 100, "realaudio", 3, 80, False)
    cells = {cell.name: cell for cell in real_plan.make_plan(plan, real.choose_runs(["d"]))}
    assert {name.split("/")[0] for name in cells} == {
        *(
            "before",
            "before_best",
            "before_cut",
            "before_decoder",
            "random",
            "encoder_lora_seed0",
            "encoder_frozen_seed0",
        ),
        *(f"joint_seed{seed}" for seed in range(3)),
    }
    train, answers = cells["encoder_lora_seed0/train"], cells["encoder_lora_seed0/answers"]
    assert (real.describe_state(plan, train), real.describe_state(plan, answers)) == (
        "to do",
        "waits for others",
    )
    (plan.folder_of("encoder_lora", 0) / "checkpoints" / "step-000050").mkdir(parents=True)
    assert real.describe_state(plan, train) == "stopped after step 50"
    train.result.parent.mkdir(parents=True)
    train.result.write_text("{}")
    assert (real.describe_state(plan, train), real.describe_state(plan, answers)) == ("done", "to do")
    assert "--resume" in train.command
    assert cells["before_best/masked"].command[4].endswith("whisper-base?pad_to=30")
    assert not any("fusion" in real_runs.RUNS[name].config for name in real.choose_runs([]))
    with pytest.raises(SystemExit, match="questions are main, a"):
        real.choose_runs(["z"])


def test_what_is_missing_is_fetched_by_a_script_or_named(real_folders):
    for name, sets in real.SETS.items():
        for folder in sets:
            (real_folders / name / folder).mkdir()
            (real_folders / name / folder / "manifest.jsonl").touch()
    assert real.missing_folders("realmodels", ["qwen"]) == [
        *("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct", "whisper-base")
    ]
    with pytest.raises(SystemExit, match="holds no smollm2-135m-instruct, whisper-base"):
        real.fetch_missing(["joint"], {})
    script = real_folders / "fetch.py"
    script.write_text(
        "import pathlib, sys\n"
        "for name in ('smollm2-135m-instruct', 'whisper-base'):\n"
        "    folder = pathlib.Path(sys.argv[1], name)\n"
        "    folder.mkdir()\n"
        "    (folder / 'config.json').touch()\n"
    )
    real.fetch_missing(["joint"], {"realmodels": script})
    (real_folders / "realaudio" / "drums" / "manifest.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"labelled audio sets: .*\(UNIAUDIO_REALAUDIO\) holds no drums"):
        real.fetch_missing(["joint"], {})


def test_the_quick_suite_has_a_trained_and_an_unseen_set(real_folders):
    tasks = load_suite(real_plan.quick_suite(real_folders / "out")).tasks
    assert {name: (task.unseen, task.max_clips) for name, (task, _) in tasks.items()} == {
        "esc10": (False, 80),
        "digits": (True, 80),
    }


def test_the_stages_of_a_run_are_probed_at_their_ends(real_folders):
    plan = real_plan.Plan(real_folders / "out", 100, "realaudio", 3, 80, False)
    cells = real_plan.plan_run(plan, "stages", real_runs.RUNS["stages"], 0)
    folders = [Path(cell.command[4]).name for cell in cells if "/stage" in cell.name.removeprefix("stages_")]
    assert folders == ["step-000055", "step-000065"]


def test_a_training_is_summed_up_over_an_interruption(tmp_path):
    rows = [
        {"step": 5, "loss": 3.0, "seconds": 30.0, "audio_seconds": 90.0},
        {"step": 10, "loss": 9.0, "seconds": 30.0, "audio_seconds": 90.0},
        {"event": "stopped", "step": 10},
        {"step": 10, "loss": 1.0, "seconds": 90.0, "audio_seconds": 90.0},
        {"event": "finished", "step": 10},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = real_plan.summarise_training(tmp_path)
    assert summary == {"steps": 10, "minutes": 2.0, "audio_hours": 0.05, "loss": 2.0}


def probed(**scores: float) -> dict:
    """A made-up cell of a probe: drums are unseen."""
    names = {"esc10": "trained", "drums": "unseen"}
    return {
        "tasks": {task: {"unseen": True} if part == "unseen" else {} for task, part in names.items()},
        "scores": {task: {"m": {"knn": {"mean": scores[task], "std": 0.0}}} for task in names},
        "average": {"m": {"knn": {part: scores[task] for task, part in names.items()}}},
    }


def write_cell(folder: Path, name: str, content: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_tables_hold_means_over_seeds_and_what_was_forgotten(tmp_path):
    start = probed(esc10=0.8, drums=0.5)
    for seed, drums in enumerate((0.4, 0.6)):
        write_cell(tmp_path / str(seed), "masked", probed(esc10=0.9, drums=drums))
    rows = {"ours": [tmp_path / "0", tmp_path / "1"], "to do": [tmp_path / "2"]}
    lines = real_tables.probe_table(rows, "masked", start).splitlines()
    assert lines[0].endswith("| kNN, trained | kNN, unseen | forgotten, linear | forgotten, kNN |")
    assert lines[2] == "| ours |  |  |  |  | 0.900 ± 0.000 | 0.500 ± 0.100 |  | 5.0 ± 5.0 |"
    assert lines[3].replace(" ", "") == "|todo|||||||||"
    by_task = real_tables.task_table(rows, "masked", "knn").splitlines()
    assert by_task[0] == "|  | esc10 | drums (unseen) |"
    assert by_task[2] == "| ours | 0.900 ± 0.000 | 0.500 ± 0.100 |"


def test_fusions_are_held_against_the_better_encoder_of_every_set(tmp_path):
    scores = {"Whisper": (0.9, 0.4), "sfx": (0.7, 0.61), "concat": (0.88, 0.59), "gate": (0.95, 0.588)}
    for name, (esc10, drums) in scores.items():
        write_cell(tmp_path / name, "masked", probed(esc10=esc10, drums=drums))
    rows = {name: [tmp_path / name] for name in (*scores, "to do")}
    table = real_tables.close_table(rows, ("Whisper", "sfx"), "masked", "knn")
    assert table.splitlines()[2:] == [
        "| Whisper | 1 of 2 | drums -21.0 | 0.650 |",
        "| sfx | 1 of 2 | esc10 -20.0 | 0.655 |",
        "| concat | 2 of 2 | esc10 -2.0 | 0.735 |",
        "| gate | 1 of 2 | drums -2.2 | 0.769 |",
    ]


def test_a_fusion_is_blue_or_red_by_its_distance_to_the_better_encoder(tmp_path, monkeypatch):
    drawn: list[list[list[float]]] = []
    draw = real_figures.draw_gaps
    monkeypatch.setattr(
        real_figures, "draw_gaps", lambda axes, gaps: (drawn.append(gaps.tolist()), draw(axes, gaps))
    )
    for name, (esc10, drums) in {"Whisper": (0.9, 0.4), "sfx": (0.7, 0.6), "gate": (0.95, 0.5)}.items():
        write_cell(tmp_path / name, "masked", probed(esc10=esc10, drums=drums))
    rows = {name: [tmp_path / name] for name in ("Whisper", "sfx", "gate", "to do")}
    real_figures.draw_fusions(rows, ("Whisper", "sfx"), tmp_path / "fusion.png")
    np.testing.assert_allclose(drawn[0], [[0, -20], [-20, 0], [5, -10]], atol=1e-9)
    assert np.isnan(drawn[1]).all()  # no linear probe
    assert (tmp_path / "fusion.png").read_bytes().startswith(b"\x89PNG")


def test_arms_are_drawn_by_what_they_moved_with_every_seed_and_their_mean(tmp_path, monkeypatch):
    marks: dict[str, list[tuple[float, float]]] = {}
    save = real_figures.save_figure

    def look(figure, path):
        for axes in figure.axes[:2]:
            marks[axes.get_title(loc="left")] = [
                tuple(map(float, xy)) for c in axes.collections for xy in c.get_offsets()
            ]
        save(figure, path)

    monkeypatch.setattr(real_figures, "save_figure", look)
    cells = [probed(esc10=esc10, drums=0.4) for esc10 in (0.6, 0.7)]
    arm = real_figures.Arm(cells, probed(esc10=0.5, drums=0.5))
    real_figures.draw_questions({"Decoders": {"ours": arm}}, tmp_path / "questions.png")
    np.testing.assert_allclose(marks["trained sets"], [(15, 0.84), (10, 0.84), (20, 0.84)])
    np.testing.assert_allclose(marks["unseen sets"], [(-10, 0.84)] * 3)
    assert (tmp_path / "questions.png").is_file()


def test_a_run_in_stages_is_reported_stage_by_stage(tmp_path):
    for cell, drums in (("stage1", 0.5), ("masked", 0.3)):
        write_cell(tmp_path / "stages", cell, probed(esc10=0.9, drums=drums))
    write_cell(tmp_path / "joint", "masked", probed(esc10=1.0, drums=1.0))
    rows = {"joint": [tmp_path / "joint"], "in stages": [tmp_path / "stages"]}
    table = real_tables.stage_table(rows, {"speech": "stage1", "sounds": "stage2", "music": "masked"}, "knn")
    assert table.splitlines()[2:] == [
        "| in stages, after speech | 0.900 | 0.500 |",
        "| in stages, after music | 0.900 | 0.300 |",
    ]


def test_answers_stand_beside_the_cost_of_the_training(tmp_path):
    write_cell(
        tmp_path, "answers", {"esc10:sound": {"metric": "accuracy", "score": 0.9}, "process_seconds": 3}
    )
    write_cell(tmp_path, "train", {"loss": 1.234, "audio_hours": 0.5, "minutes": 9.87})
    table = real_tables.answer_table({"ours": [tmp_path]})
    assert table.splitlines()[0] == "|  | esc10:sound, accuracy | loss | hours of audio | minutes |"
    assert table.splitlines()[2] == "| ours | 0.900 | 1.23 | 0.50 | 9.9 |"
