"""Mistakes of later stages end a run before its first step, and `uniaudio check` names them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from uniaudio.build import model as models
from uniaudio.build import stage_data
from uniaudio.build.model import load_model
from uniaudio.commands import train as training
from uniaudio.commands.check import check_run
from uniaudio.commands.train import check_later_stages, run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

STAGE = {"name": "one", "recipe": "tone_recipe", "steps": 2, "budget": {"audio_seconds": 6}}


def config(tone_run, second, *overrides):
    stages = json.dumps([STAGE, STAGE | {"name": "two"} | second])
    return load_run(tone_run, [f"stages={stages}", *overrides])


@pytest.fixture
def recipes(tone_run):
    """Recipes that cannot be used, beside the one that can."""
    folder, line = tone_run.parent, {"dataset": "tones", "template": "tone"}
    card = (folder / "tones.yaml").read_text()
    nothing = card.replace("dataset: tones", "dataset: nothing").replace("split == 'train'", "split == 'x'")
    (folder / "nothing.yaml").write_text(nothing.replace("split == 'test'", "split == 'y'"))
    template = (folder / "tone.yaml").read_text()
    other = (
        template.replace("task: tone", "task: pitch").replace("label", "pitch").replace("pitchs", "labels")
    )
    (folder / "pitch.yaml").write_text(other)
    empty = line | {"dataset": "nothing"}
    for name, data in {
        "no_rows": {"train": [empty], "evaluate": [line]},
        "no_column": {"train": [line | {"template": "pitch"}], "evaluate": [line]},
        "no_evaluation_rows": {"train": [line], "evaluate": [empty]},
        "no_evaluation": {"train": [line]},
    }.items():
        (folder / f"{name}.yaml").write_text(dump_yaml({"recipe": name, **data}))
    return tone_run


def ways(**continual):
    return {"continual": continual}


MISTAKES = {
    "a pattern of train": (
        {"train": {"^encoder.whisperr": "frozen"}},
        "'^encoder.whisperr' matches no parameter",
    ),
    "a pattern of the adapter": ({"train": {"^adapter.nothing": "full"}}, "'^adapter.nothing' matches no"),
    "low-rank updates of a bias": ({"train": {"^encoder.*conv1": "lora"}}, "matches no linear layer"),
    "a pattern of lr": ({"lr": {"^encoder.nothing": 1e-3}}, "stages.two.lr: '^encoder.nothing' matches no"),
    "an anchor": (
        ways(l2sp={"weight": 1, "on": "^encoder.nothing"}),
        "two.continual.l2sp.on: '^encoder.nothing'",
    ),
    "an anchor of what is frozen": (
        {"train": {"^encoder": "frozen"}} | ways(l2sp={"weight": 1}),
        "two.continual.l2sp.on: '^encoder\\.' matches no parameter that the stage trains in full",
    ),
    "an anchor of ewc": (ways(ewc={"weight": 1, "on": "^encoder.nothing"}), "stages.two.continual.ewc.on"),
    "a recipe that is not there": ({"recipe": "nowhere"}, "there is no recipe 'nowhere'"),
    "the recipe of ewc": (ways(ewc={"weight": 1, "recipe": "nowhere"}), "there is no recipe 'nowhere'"),
    "a split without rows": ({"recipe": "no_rows"}, "nothing.yaml: split 'train' keeps no rows"),
    "rows of ewc": (
        ways(ewc={"weight": 1, "recipe": "no_rows"}),
        "nothing.yaml: split 'train' keeps no rows",
    ),
    "a column": ({"recipe": "no_column"}, "pitch"),
    "an evaluation": ({"recipe": "no_evaluation_rows"}, "nothing.yaml: split 'test' keeps no rows"),
    "a budget": (
        {"budget": {"audio_seconds": 1, "per_example": 0.9}},
        "stages.two.budget.audio_seconds: 1 is less",
    ),
    "a mixture without a loss": (
        {"recipe": "no_evaluation", "balance": {"every": 1}},
        "stages.two.balance needs validation losses, but recipe no_evaluation has no `evaluate` list",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_it_is_reported_before_any_model_is_loaded_and_by_check(recipes, kind, monkeypatch):
    second, message = MISTAKES[kind]
    monkeypatch.setattr(training, "build_model", None)
    run = config(recipes, second)
    for attempt in (lambda: run_training(run, None), lambda: check_run(run, Console(quiet=True))):
        with pytest.raises(UserError) as output:
            attempt()
        assert message in str(output.value)
        assert "\n" not in str(output.value)
    assert not (recipes.parent / "out").exists()


def test_a_budget_below_the_average_clip_is_reported_whatever_stage_it_is_of(recipes, monkeypatch):
    monkeypatch.setattr(training, "build_model", None)
    budget = {"budget": {"audio_seconds": 1, "per_example": 0.9}}
    run = load_run(recipes, [f"stages={json.dumps([STAGE | budget])}"])
    with pytest.raises(
        UserError, match=r"stages\.one\.budget\.audio_seconds: 1 is less than the average clip of ton"
    ):
        run_training(run, None)
    allowed = load_run(recipes, [f"stages={json.dumps([STAGE | budget])}", "data.max_seconds=2"])
    check_run(allowed, Console(quiet=True))  # clips above the budget are trained on alone


def test_the_first_stage_has_no_recipe_before_it(recipes):
    run = load_run(recipes, [f"stages={json.dumps([STAGE | ways(ewc={'weight': 1})])}"])
    with pytest.raises(
        UserError, match=r"stages\.one\.continual\.ewc\.recipe: the first stage has no previous stage"
    ):
        check_run(run, Console(quiet=True))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"train": {"nothing": "frozen"}}, "stages.two.train: 'nothing' matches no parameter"),
        ({"train": {".": "frozen"}}, "stage two: nothing is trained"),
        ({"train": {"lm.model": "full"}}, "but decoder.train says frozen"),
        (ways(l2sp={"weight": 1, "on": "lm.model"}), "stages.two.continual.l2sp.on: 'lm.model' matches no"),
    ],
)
def test_what_only_the_whole_model_shows_is_reported_before_the_first_step(recipes, second, message):
    with pytest.raises(UserError) as output:
        run_training(config(recipes, second), None)
    assert message in str(output.value)
    assert not (recipes.parent / "out").exists()


def test_a_miniature_decoder_is_copied_into_the_run_folder_when_everything_is_checked(recipes, monkeypatch):
    monkeypatch.setattr(models, "build_miniature_decoder", lambda settings, recipes: Path("qwen").absolute())
    monkeypatch.chdir(recipes.parent)
    out, miniature = recipes.parent / "out", "decoder={miniature: {}}"
    with pytest.raises(UserError, match=r"stages\.two\.train: 'nothing' matches no parameter"):
        run_training(config(recipes, {"train": {"nothing": "frozen"}}, miniature), None)
    assert not out.exists()
    monkeypatch.setattr(stage_data, "make_loader", refuse)  # the last that can be refused
    with pytest.raises(UserError, match="no data"):
        run_training(config(recipes, {}, miniature), None)
    assert not (out / "decoder").exists()
    monkeypatch.undo()
    monkeypatch.setattr(models, "build_miniature_decoder", lambda settings, recipes_: recipes.parent / "qwen")
    assert run_training(config(recipes, {}, miniature), None) == 0
    assert sorted(p.name for p in (out / "decoder").iterdir()) == sorted(
        p.name for p in (recipes.parent / "qwen").iterdir()
    )
    assert load_model(str(out)).bases["decoder"]["path"] == str(out / "decoder")
    stored = json.loads((out / "checkpoints/step-000004/bases.json").read_text())
    assert stored["decoder"]["path"] == str(out / "decoder")


def refuse(*arguments):
    raise UserError("no data")


def test_means_that_the_engine_cannot_do_are_reported_whatever_stage_they_are_of(recipes, monkeypatch):
    plugin = SimpleNamespace(zero_stage=3)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=2)
    run = config(recipes, ways(ema={"decay": 0.9}))
    with pytest.raises(UserError, match=r"stages\.two\.continual\.ema .*zero3"):
        check_later_stages(run, (), accelerator, 0)


def test_stages_that_are_right_pass(recipes):
    right = {
        "train": {"^encoder.*layers": "lora", "^adapter": "full", "embed": "frozen"},
        "lr": {"lora_A": 1e-3, "^adapter": 1e-3},
        "balance": {"every": 1, "examples": 2},
    } | ways(l2sp={"weight": 1, "on": "^adapter"})
    run = config(recipes, right, "train.evaluate_every=2", "evaluate.max_new_tokens=2")
    check_run(run, Console(quiet=True))
    assert run_training(run, None) == 0
