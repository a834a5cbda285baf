from pathlib import Path

import pytest

from uniaudio.config.run_files import load_run
from uniaudio.config.search_paths import find_file, make_portable_name
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError


def test_overrides_go_through_the_same_checks(tone_run):
    config = load_run(
        tone_run, ["train.max_steps=3", "stages.0.budget.audio_seconds=7", "encoders.whisper.lr=1e-4"]
    )
    assert (config.total_steps, config.stages[0].budget.audio_seconds, config.encoders["whisper"].lr) == (
        3,
        7,
        1e-4,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_stepz=3", "train.max_stepz: unknown key (did you mean 'max_steps'?)"),
        ("trian.max_steps=3", "unknown key (did you mean 'train'?)"),
        ("train.max_steps=many", "train.max_steps: input should be a valid integer"),
        ("train.max_steps=0", "train.max_steps: input should be greater than 0"),
        ("stages.4.steps=3", "4 is not one of the positions 0 to 0"),
        ("stages.0.warmup=300", "warmup 300 is longer than the stage's 8 steps"),
        ("seed", "write key.sub=value"),
        ("encoders.second={path: x}", "2 encoders need `fusion: {kind: ...}`"),
        ("train.precision=fp16", "train.precision: 'fp16' is not one of auto, bf16, no"),
        ("data.log_ids=yes", "data.log_ids: input should be a valid boolean, got 'yes'"),
        ("train.clip='1'", "train.clip: input should be a valid number, got '1'"),
        ("stages.0.steps.x=1", "stages.0.steps is a value and has no keys"),
        ("stages.0.budget.x.y=1", "stages.0.budget.x: unknown key"),
        ("folder=/tmp", "unknown key"),
        ("stages.one.steps=3", "one is not one of the positions 0 to 0; items of a list are numbered"),
        (
            "encoders.decoder={path: x}",
            "encoders: 'decoder' is the name of another part of the model; use another name",
        ),
        ("adapter.kind=stak", "adapter.kind: 'stak' is not"),
        ("decoder.miniature.layerz=3", "decoder.miniature.layerz: unknown key (did you mean 'layers'?)"),
    ],
)
def test_mistakes_name_the_key_and_the_nearest_one(tone_run, override, message):
    with pytest.raises(UserError) as mistake:
        load_run(tone_run, [override])
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_config_inherits(tone_run):
    child = tone_run.with_name("child.yaml")
    child.write_text("base: run.yaml\ntrain: {clip: 0.5}\n")
    config = load_run(child)
    assert (config.train.clip, config.train.micro_batches) == (0.5, 2)
    child.write_text("base: child.yaml\n")
    with pytest.raises(UserError, match="inherit from each other in a cycle"):
        load_run(child)


def test_the_resolved_config_reads_back(tone_run, tmp_path):
    config = load_run(tone_run, ["train.max_steps=3"])
    config.save(tmp_path / "again.yaml")
    assert load_run(tmp_path / "again.yaml").resolve_values() == config.resolve_values()


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(UserError, match=r"there is no template 'asrr' \(did you mean 'asr'\?\)"):
        find_file("template", "asrr")
    with pytest.raises(UserError, match=r"there is no config file nowhere/x\.yaml"):
        find_file("config", "nowhere/x.yaml")


def test_paths_and_recipes_mean_the_same_from_anywhere(tone_run, tmp_path, monkeypatch):
    """A saved config stands in another folder than the one it was read from."""
    config = load_run(tone_run)
    saved = tmp_path / "elsewhere" / "config.yaml"
    saved.parent.mkdir()
    config.save(saved)
    monkeypatch.chdir(saved.parent)
    again = load_run("config.yaml")
    assert again.resolve_values() == config.resolve_values()
    assert load_recipe(again.stages[0].recipe, near=again.folder).train
    assert Path(again.encoders["whisper"].path).is_dir()


def test_a_shipped_recipe_keeps_its_name():
    shipped = Path(load_run.__code__.co_filename).parent
    assert make_portable_name("recipe", "realdata", shipped) == "realdata"
    assert make_portable_name("recipe", "no such recipe", shipped) == "no such recipe"


def test_a_file_of_the_user_comes_before_the_shipped_one(tmp_path, monkeypatch):
    shipped = find_file("template", "asr").resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "asr.yaml").write_text("task: asr\n")
    assert find_file("template", "asr") == Path("templates/asr.yaml")
    assert find_file("template", "asr").resolve() != shipped


def test_a_missing_folder_of_recordings_is_reported(tone_run, monkeypatch):
    monkeypatch.delenv("UNIAUDIO_REALDATA", raising=False)
    with pytest.raises(
        UserError, match=r"encoders\.whisper\.path: no folder of real recordings; set UNIAUDIO_REALDATA"
    ):
        load_run(tone_run, ["encoders.whisper.path=${realdata}/weights"])


def test_a_model_is_named_by_the_folder_of_pretrained_models(tone_run, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_REALMODELS", "/models")
    paths = ["encoders.whisper.path=random:${realmodels}/base", "decoder.path=${realmodels}/lm"]
    config = load_run(tone_run, paths)
    assert (config.encoders["whisper"].path, config.decoder.path) == ("random:/models/base", "/models/lm")
    monkeypatch.delenv("UNIAUDIO_REALMODELS")
    with pytest.raises(UserError, match=r"decoder\.path: no folder of pretrained models"):
        load_run(tone_run, paths[1:])


def test_steps_are_capped(tone_run):
    assert load_run(tone_run).total_steps == 8
    assert load_run(tone_run, ["train.max_steps=5"]).total_steps == 5
    assert load_run(tone_run, ["train.max_steps=50"]).total_steps == 8
