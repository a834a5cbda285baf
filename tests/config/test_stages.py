"""What a config may say of its stages, and what each mistake is told."""

import json

import pytest

from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError

STAGE = {"name": "one", "recipe": "tone_recipe", "steps": 8, "budget": {"audio_seconds": 6}}


def stages(*changes):
    return f"stages={json.dumps([STAGE | change for change in changes])}"


def test_a_stage_reads_back_from_the_saved_config(tone_run, tmp_path):
    full = {
        "train": {"^encoder": "frozen", "layers\\.1": "lora"},
        "lr": {"^adapter": 1e-4},
        "layer_decay": 0.9,
        "merge_lora": True,
        "continual": {
            "l2sp": {"weight": 0.1},
            "ewc": {"weight": 2, "recipe": "tone_recipe", "examples": 3, "on": "layers"},
            "distill": {"weight": 1, "distance": "cosine"},
            "ema": {"decay": 0.5},
        },
        "balance": {"every": 3},
    }
    config = load_run(tone_run, [stages(full, {"name": "two"}), "guard={sets: {t: tones}, every: 2}"])
    config.save(tmp_path / "saved.yaml")
    again = load_run(tmp_path / "saved.yaml")
    assert again.resolve_values() == config.resolve_values()
    stage = again.stages[0]
    assert list(stage.train) == ["^encoder", "layers\\.1"]  # their order is what decides
    assert (stage.continual.ewc.examples, stage.continual.ewc.on) == (3, "layers")
    assert stage.continual.l2sp.on == r"^encoder\."
    assert (stage.balance.bound, stage.balance.rate, stage.balance.examples) == (4.0, 0.5, 64)
    assert again.guard.sets["t"] == str(tone_run.parent / "tones")
    assert again.stages[1].continual.model_dump() == dict.fromkeys(("l2sp", "ewc", "distill", "ema"))


def test_a_recipe_of_ewc_is_found_from_any_folder(tone_run, tmp_path, monkeypatch):
    config = load_run(tone_run, [stages({"continual": {"ewc": {"weight": 1, "recipe": "tone_recipe"}}})])
    named = config.stages[0].continual.ewc.recipe
    assert named == config.stages[0].recipe
    assert named != "tone_recipe"


def test_hours_leave_the_number_of_steps_open(tone_run):
    by_hours = {"steps": None, "hours": 0.5, "warmup": 100}
    assert load_run(tone_run, [stages(by_hours)]).total_steps is None
    assert load_run(tone_run, [stages(by_hours), "train.max_steps=7"]).total_steps == 7
    assert load_run(tone_run, [stages({}, {"name": "two", "steps": 5})]).total_steps == 13
    assert load_run(tone_run, [stages({}, {"name": "two"}), "train.max_steps=9"]).total_steps == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "stage one needs either `steps` or `hours` (of audio)"),
        ({"hours": 1}, "stage one has both `steps` and `hours` (of audio); leave out one of them"),
        ({"warmup": 9}, "warmup 9 is longer than the stage's 8 steps"),
        ({"train": {"(": "full"}}, "'(' is not a regular expression"),
        ({"lr": {"*": 1e-3}}, "'*' is not a regular expression"),
        ({"train": {"a": "half"}}, "'half' is not one of full, lora, frozen"),
        ({"lr": {"a": 0}}, "should be greater than 0"),
        ({"continual": {"l2sp": {"weight": 1, "on": "["}}}, "l2sp.on: '[' is not a regular expression"),
        (
            {"continual": {"ewc": {"weight": 1, "on": "a{2,1}"}}},
            "ewc.on: 'a{2,1}' is not a regular expression",
        ),
        ({"layer_decay": 0}, "layer_decay: input should be greater than 0"),
        ({"layer_decay": 1.1}, "layer_decay: input should be less than or equal to 1"),
        ({"final_lr_share": 2}, "final_lr_share: input should be less than or equal to 1"),
        ({"schedule": "step"}, "'step' is not one of cosine, linear, constant"),
        ({"balance": {"every": 1, "bound": 1}}, "balance.bound: input should be greater than 1"),
        ({"continual": {"l2sp": {}}}, "continual.l2sp.weight"),
        ({"continual": {"ema": {"decay": 1}}}, "continual.ema.decay: input should be less than 1"),
        ({"continual": {"l2ps": {"weight": 1}}}, "unknown key (did you mean 'l2sp'?)"),
        ({"continual": {"distill": {"weight": 1, "distance": "l1"}}}, "'l1' is not one of mse, cosine"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(tone_run, change, message):
    with pytest.raises(UserError) as output:
        load_run(tone_run, [stages(change)])
    assert message in str(output.value)
    assert "\n" not in str(output.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([stages({}, {})], "stages must have different names, got one, one"),
        (["stages=[]"], "stages"),
        (["guard={sets: {}, every: 2}"], "guard.sets"),
        (["guard={sets: {a: b}, every: 2, action: halt}"], "'halt' is not one of alarm, stop"),
        (["guard={sets: {a: b}, every: 2, max_drop: -1}"], "guard.max_drop"),
    ],
)
def test_so_are_those_of_all_stages_and_of_the_guard(tone_run, overrides, message):
    with pytest.raises(UserError) as output:
        load_run(tone_run, overrides)
    assert message in str(output.value)
