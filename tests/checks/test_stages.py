"""Mistakes of later stages end a run before its first step, and `uniaudio check` names them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from rich.console import Console

from uniaudio.build import model as models
from uniaudio.build import stage_data
from uniaudio.build.model import load_model
from uniaudio.checks.stages import check_stage_rows, describe_unreached_stages, sketch_stages
from uniaudio.commands import train as training
from uniaudio.commands import tune_batch
from uniaudio.commands.check import check_run
from uniaudio.commands.plan import show_plan
from uniaudio.commands.train import check_later_stages, run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.estimate.gpus import Machine

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
    for name, numbers in {"muted": range(40), "muted_later": range(20, 40), "muted_first": range(20)}.items():
        muted = card.replace("dataset: tones", f"dataset: {name}").replace("jsonl: tones", f"jsonl: {name}")
        (folder / f"{name}.yaml").write_text(muted)
        shutil.copytree(folder / "tones", folder / name)
        for number in numbers:  # the header alone can be read
            clip = folder / name / f"{number}.wav"
            soundfile.write(clip, np.full(4800, np.nan), 16000, subtype="FLOAT")
    for name, data in {
        "no_rows": {"train": [empty], "evaluate": [line]},
        "no_column": {"train": [line | {"template": "pitch"}], "evaluate": [line]},
        "no_evaluation_rows": {"train": [line], "evaluate": [empty]},
        "no_evaluation": {"train": [line]},
        "mute": {"train": [line | {"dataset": "muted"}], "evaluate": [line | {"dataset": "muted"}]},
        "mute_first": {"train": [line | {"dataset": "muted_first"}]},
        "mute_later": {"train": [line | {"dataset": "muted_later"}]},
        "mute_evaluation": {"train": [line], "evaluate": [line | {"dataset": "muted"}]},
        "half_mute": {
            "train": [line, line | {"dataset": "muted"}],
            "evaluate": [line | {"dataset": "muted"}, line],
        },
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
    "a mixture without a clip that can be decoded": (
        {"recipe": "mute_evaluation", "balance": {"every": 1}},
        "stages.two.balance: evaluation sets of recipe mute_evaluation: none of the clips tried of muted:tone, split "
        "test can be decoded (30.wav: non-finite samples",
    ),
    "a stage without a clip that can be decoded": (
        {"recipe": "mute"},
        "stages.two.recipe: mute: none of the clips tried of muted:tone, split train can be decoded (0.wav: non-fin",
    ),
    "a stage with a set without a clip that can be decoded": (
        {"recipe": "half_mute"},
        "stages.two.recipe: half_mute: none of the clips tried of muted:tone, split train can be decoded (0.wav: non-",
    ),
    "ewc without a clip that can be decoded": (
        ways(ewc={"weight": 1, "recipe": "mute"}),
        "stages.two.continual.ewc.recipe: mute: none of the clips tried of muted:tone, split train can be decoded",
    ),
    "ewc with clips that can be decoded at the beginning alone": (
        ways(ewc={"weight": 1, "recipe": "mute_later"}),
        "stages.two.continual.ewc.recipe: mute_later: none of the clips tried of muted_later:tone, split train can be "
        "decoded (20.wav: non-finite samples",
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


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"duration": 600}, "stated duration is wrong: .* 600"),
        ({"start": 100, "end": 600}, "span outside of the recording: .*100 to 600 s of"),
    ],
)
def test_times_in_milliseconds_are_no_matter_of_the_budget(recipes, monkeypatch, times, reason):
    folder = recipes.parent / "timed"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.full(9600, 0.1), 16000)
    rows = [{"audio": "a.wav", "label": "low", **times}] * 4
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {"dataset": "timed", "load": {"jsonl": "timed"}, "license": "CC0-1.0", "splits": {"train": {}}}
    (recipes.parent / "timed.yaml").write_text(dump_yaml(card))
    recipe = {"recipe": "timed_recipe", "train": [{"dataset": "timed", "template": "tone"}]}
    (recipes.parent / "timed_recipe.yaml").write_text(dump_yaml(recipe))
    monkeypatch.setattr(training, "build_model", None)
    for budget in ({}, {"data.max_seconds": 1000}):
        settings = [f"{key}={value}" for key, value in budget.items()]
        run = load_run(recipes, [f"stages={json.dumps([STAGE | {'recipe': 'timed_recipe'}])}", *settings])
        with pytest.raises(UserError, match=f"none of the clips tried of timed:tone, .* \\(a.wav: {reason}"):
            check_run(run, Console(quiet=True))


def check_second_stage(recipes, second, *overrides):
    run = config(recipes, second, *overrides)
    names = ("tone_recipe", second["recipe"])
    check_stage_rows(run, [load_recipe(name, recipes.parent) for name in names])


def test_of_balance_and_ewc_one_set_with_clips_that_can_be_decoded_is_enough(recipes):
    second = {"recipe": "half_mute", "balance": {"every": 1}} | ways(ewc={"weight": 1, "recipe": "half_mute"})
    check_second_stage(recipes, second, "data.max_skipped_share=0.6")  # which lets a training set be lost


def test_clips_that_are_broken_at_the_beginning_alone_are_no_reason_to_refuse_a_set(recipes):
    check_second_stage(recipes, {"recipe": "mute_first"} | ways(ewc={"weight": 1, "recipe": "mute_first"}))


@pytest.mark.parametrize("name", ["mute", "mute_later", "half_mute"])
def test_check_refuses_a_first_stage_whose_clips_cannot_be_decoded_behind_its_notes(recipes, name, capsys):
    run = config(recipes, {}, f"stages.0.recipe={name}")
    with pytest.raises(UserError, match=rf"^stages\.one\.recipe: {name}: none of the clips tried of muted"):
        check_run(run, Console(width=300))
    printed = capsys.readouterr().out
    assert "clips of 8 rows spread over the set that cannot be decoded: non-finite samples (8)" in printed
    assert ("clips of the first 20 rows that cannot be decoded" in printed) is (name != "mute_later")


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


ALL_PARTS = {"^encoder": "frozen", "^adapter": "frozen"}


@pytest.mark.parametrize(
    ("modes", "decoder"),
    [({".": "frozen"}, {}), (ALL_PARTS, {"miniature": {}}), ({".": "frozen"}, {"train": "lora"})],
)
def test_a_stage_that_trains_nothing_is_named_before_any_model_is_loaded(
    recipes, modes, decoder, monkeypatch
):
    for module, slow in (
        (training, "build_model"),
        (training, "train_miniature"),
        (tune_batch, "measure_peak_in_child"),
    ):
        monkeypatch.setattr(module, slow, None)
    overrides = [f"decoder.{key}={json.dumps(value)}" for key, value in decoder.items()]
    run, quiet = config(recipes, {"train": modes}, *overrides), Console(quiet=True)
    attempts = [
        lambda: run_training(run, None),
        lambda: check_run(run, quiet),
        lambda: show_plan(run, Machine(1), None, quiet),
    ]
    if "train" not in decoder:  # what it has of a decoder is its `train`
        stages = json.dumps([STAGE | {"name": "two", "train": modes}])
        attempts.append(
            lambda: tune_batch.tune_batch(
                str(recipes), [f"stages={stages}", *overrides], None, 9, console=quiet
            )
        )
    frozen = ", ".join(f"'{pattern}'" for pattern in modes)
    for attempt in attempts:
        with pytest.raises(UserError) as output:
            attempt()
        assert str(output.value) == (
            f"stage two: nothing is trained, because stages.two.train sets {frozen} to frozen; end that mapping "
            "with the part to train, such as '^adapter': full, or leave it out"
        )
    assert not (recipes.parent / "out").exists()


def test_a_stage_may_train_the_decoder_alone(recipes):
    run = config(recipes, {"train": ALL_PARTS}, "decoder.train=lora")
    check_run(run, Console(quiet=True))
    assert sketch_stages(run)[1].keys() == {"whisper"}
    assert sketch_stages(run)[1]["whisper"] == 0


def test_stages_that_the_cap_leaves_out_are_named(recipes, capsys):
    check_run(config(recipes, {}, "train.max_steps=2"), Console(width=200))
    sentence = "stage two is never trained: train.max_steps is 2, and the stages before it have 2 steps"
    assert sentence in capsys.readouterr().out
    assert describe_unreached_stages(config(recipes, {}, "train.max_steps=3")) == []
    assert describe_unreached_stages(config(recipes, {})) == []


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


def test_a_tokenizer_that_evaluations_will_need_is_reported_before_any_model_is_loaded(recipes, monkeypatch):
    def missing(tokenize):
        raise RuntimeError("Japanese tokenization requires extra dependencies")

    monkeypatch.setattr("sacrebleu.metrics.bleu.BLEU", missing)
    monkeypatch.setattr(training, "build_model", None)
    with (recipes.parent / "tone.yaml").open("a") as template:
        template.write(dump_yaml({"scoring": {"metric": "bleu", "tokenize": "ja"}}))
    run = config(recipes, {}, "train.evaluate_every=2")
    for attempt in (lambda: run_training(run, None), lambda: check_run(run, Console(quiet=True))):
        with pytest.raises(UserError, match=r"scoring\.tokenize: ja: sacrebleu's ja-mecab is not installed"):
            attempt()


def test_stages_that_are_right_pass(recipes):
    right = {
        "train": {"^encoder.*layers": "lora", "^adapter": "full", "embed": "frozen"},
        "lr": {"lora_A": 1e-3, "^adapter": 1e-3},
        "balance": {"every": 1, "examples": 2},
    } | ways(l2sp={"weight": 1, "on": "^adapter"})
    run = config(recipes, right, "train.evaluate_every=2", "evaluate.max_new_tokens=2")
    check_run(run, Console(quiet=True))
    assert run_training(run, None) == 0
