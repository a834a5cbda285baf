from pathlib import Path

import numpy as np
import pytest
import torch

import uniaudio
from uniaudio.config.path_variables import get_cache_root
from uniaudio.config.run_files import load_run
from uniaudio.config.search_paths import find_file, make_portable_name
from uniaudio.data.recipe import load_recipe
from uniaudio.data.template import load_template
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
        ("stages.4.steps=3", "there is no item 4, the list has only position 0"),
        ("stages.0.warmup=300", "warmup 300 is longer than the stage's 8 steps"),
        ("seed", "write key.sub=value"),
        ("encoders.second={path: x}", "2 encoders need `fusion: {kind: ...}`"),
        ("train.precision=fp16", "train.precision: 'fp16' is not one of auto, bf16, no"),
        ("data.log_ids=yes", "data.log_ids: input should be a valid boolean, got 'yes'"),
        ("train.clip='1'", "train.clip: input should be a valid number, got '1'"),
        ("stages.0.steps.x=1", "stages.0.steps is a value and has no keys"),
        ("stages.0.budget.x.y=1", "stages.0.budget.x: unknown key"),
        ("folder=/tmp", "unknown key"),
        (
            "stages.one.steps=3",
            "there is no item one, the list has only position 0; items of a list are numbered",
        ),
        (
            "encoders.decoder={path: x}",
            "encoders: 'decoder' is the name of another part of the model; use another name",
        ),
        ("adapter.kind=stak", "adapter.kind: 'stak' is not"),
        (
            "encoders.whisper.lora.targets=['(q']",
            "encoders.whisper.lora.targets: '(q' is not a regular expression",
        ),
        ("output_dir=''", "output_dir: input should be text that is not empty, got ''"),
        ('train.run_name="\\ud800"', "a text holds half a character (U+D800 to U+DFFF); remove it"),
        ("seed=18446744073709551616", "seed: a seed is a whole number of 64 bits; give a smaller one"),
        ("train.betas=[0.9, 1.0]", "train.betas.1: input should be less than 1"),
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
    with pytest.raises(UserError, match=r"^there is no template 'asrr' \(did you mean 'asr'\?\)$"):
        find_file("template", "asrr")
    with pytest.raises(
        UserError, match=r"^there is no template 'zzzz'; known: accent, acoustic_scene, age, "
    ):
        find_file("template", "zzzz")
    with pytest.raises(UserError, match=r"^there is no dataset 'zzzz'; known: .* and \d+ more$") as many:
        find_file("dataset", "zzzz")
    assert str(many.value).count(", ") == 39
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


def test_a_path_is_looked_for_beside_the_file_that_names_it_first(tmp_path, monkeypatch):
    """A file of this name in the working folder may be another project's."""
    for folder in ("mine", "mine/configs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common.yaml").write_text("stages: []\n")
    monkeypatch.chdir(tmp_path / "mine")
    near = tmp_path / "mine" / "configs"
    assert find_file("config", "common.yaml", near) == near / "common.yaml"
    assert find_file("config", "configs/common.yaml", near) == Path("configs/common.yaml")
    assert find_file("config", "common.yaml") == Path("common.yaml")


@pytest.mark.parametrize(
    "content",
    ['{"recipe": "mine", "train": []}', '{\n  "recipe": "mine"\n}', "'recipe': mine\n", "recipe : mine\n"],
)
def test_a_file_of_a_kind_is_known_however_its_key_is_written(tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    (tmp_path / "other.yaml").write_text("task: other\nlines: {recipe: mine}\n")
    assert find_file("recipe", "mine", tmp_path) == tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="there is no recipe 'other'"):
        find_file("recipe", "other", tmp_path)


@pytest.mark.parametrize("content", ["", "# to be written\n", "- task: mine\n", "a: [1, 2\n", "tsk: mine\n"])
@pytest.mark.parametrize(
    ("kind", "folder"), [("template", "templates"), ("dataset", "data_recipes/datasets")]
)
def test_a_file_without_the_key_of_its_kind_is_not_called_missing(tmp_path, content, kind, folder):
    """What is wrong with it is said when it is read."""
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "mine.yaml").write_text(content)
    assert find_file(kind, "mine", tmp_path) == tmp_path / folder / "mine.yaml"
    is_of_a_kind = content.startswith("tsk")  # beside the file that names it, it may be a config, or a card
    (tmp_path / "beside.yaml").write_text(content)
    if is_of_a_kind:
        with pytest.raises(UserError, match=f"there is no {kind} 'beside'"):
            find_file(kind, "beside", tmp_path)
    else:
        assert find_file(kind, "beside", tmp_path) == tmp_path / "beside.yaml"


def test_an_empty_template_is_called_empty(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "mine.yaml").write_text("")
    with pytest.raises(
        UserError, match=r"templates/mine\.yaml: is empty; it must be one mapping of keys to values$"
    ):
        load_template("mine", tmp_path)


def test_a_whole_file_of_the_name_comes_before_one_that_is_empty(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "templates" / "mine.yaml").write_text("task: mine\n")
    assert find_file("template", "mine", tmp_path) == tmp_path / "templates" / "mine.yaml"


@pytest.mark.parametrize("name", ["Which tone is it? " * 30, "Which tone is it? " * 30 + ".yaml"])
def test_a_text_in_the_place_of_a_name_is_no_file(name, tmp_path):
    """Such as a question where the name of its template belongs."""
    with pytest.raises(UserError, match="there is no template 'Which tone is it"):
        find_file("template", name, tmp_path)


def test_a_tilde_is_the_home_folder_wherever_a_path_is_named(tone_run, monkeypatch):
    """Shells expand it, but neither files nor Python do."""
    home = tone_run.parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("UNIAUDIO_CACHE", "~/cache")
    monkeypatch.setenv("MINE", "~/whisper")
    config = load_run(
        "~/run.yaml", ["stages.0.recipe=~/tone_recipe.yaml", "encoders.whisper.path=${env:MINE}"]
    )
    assert config.stages[0].recipe == str((home / "tone_recipe.yaml").resolve())
    assert config.encoders["whisper"].path == str(home / "whisper")
    assert get_cache_root() == home / "cache"
    with pytest.raises(UserError, match=f"{home}/tones is neither a checkpoint nor a run"):
        uniaudio.load_model("~/tones", "cpu")
    with pytest.raises(UserError, match=f"{home}/tones contains no model"):
        uniaudio.load_encoder("~/tones", "cpu")


def test_an_output_folder_may_be_named_by_a_variable_which_the_saved_config_keeps(
    tone_run, monkeypatch, tmp_path
):
    """Such as the fast disk of a cluster; before, a folder called ``${env:SCRATCH}`` was made."""
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    config = load_run(tone_run, ["output_dir=${env:SCRATCH}/tones"])
    assert config.output_dir == str(tmp_path / "scratch" / "tones")
    assert config.resolve_values()["output_dir"] == "${env:SCRATCH}/tones"
    config.save(tmp_path / "saved.yaml")
    assert load_run(tmp_path / "saved.yaml").output_dir == config.output_dir
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(UserError, match=r"run\.yaml: output_dir: set the environment variable SCRATCH"):
        load_run(tone_run, ["output_dir=${env:SCRATCH}/tones"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decoder.dtype": torch.bfloat16}, "config: decoder.dtype: give text, .* not torch.bfloat16"),
        ({"train": {"tags": {"a"}}}, "config: train.tags: give text, numbers, lists or mappings, not {'a'}"),
        ({"stages.0.train": [object]}, "config: stages.0.train.0: give text"),
    ],
)
def test_a_value_from_python_that_no_file_could_hold_is_named(tone_run, overrides, message):
    with pytest.raises(UserError, match=message):
        load_run(tone_run, overrides)


def test_numbers_of_numpy_and_torch_are_numbers(tone_run):
    config = load_run(
        tone_run, {"train.betas": np.array([0.5, 0.75]), "seed": np.int64(3), "train.clip": torch.tensor(0.5)}
    )
    assert (config.train.betas, config.seed, config.train.clip) == ((0.5, 0.75), 3, 0.5)


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
