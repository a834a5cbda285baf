"""What of the paths and names on a command line is refused before the slow imports, and what is not."""

from pathlib import Path

import pytest

from uniaudio.checks import named_paths
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError


def test_options_name_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_paths.parse_folders(["a=some/clips", "b=~/clips"]) == {
        "a": Path("some/clips"),
        "b": tmp_path / "clips",
    }
    for wrong in ("clips", "=clips", "a="):
        with pytest.raises(UserError, match=rf"^--data {wrong}: write NAME=FOLDER$"):
            named_paths.parse_folders([wrong])
    with pytest.raises(UserError, match="'a' is given twice"):
        named_paths.parse_folders(["a=x", "a=y"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a run, models in two folders, and a clip."""
    (tmp_path / "runs" / "birds" / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "checkpoints" / "latest").write_text("step-000002")
    (tmp_path / "openai" / "whisper-tiny").mkdir(parents=True)
    (tmp_path / "clip.wav").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spec",
    [
        "runs/birds",
        "runs/birds:ema",
        "runs/birds/checkpoints/latest",
        "runs/birds/checkpoints/step-000002?pad_to=30",
        "openai/whisper-tiny",
        "random:openai/whisper-tiny",
        "openai/whisper-small",  # of the Hub, though a folder is called like its owner
        "someone/else",
        "whisper",
        "my_module:MyEncoder",
    ],
)
def test_what_is_here_or_may_be_of_the_hub_or_a_class_goes_on(here, spec):
    assert named_paths.refuse_missing_encoder(spec) is None  # nothing is raised


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("runs/brids", r"^there is no folder runs/brids \(did you mean 'birds'\?\)$"),
        ("runs/brids:ema", r"^there is no folder runs/brids \("),
        ("random:./whisper?pad_to=30", r"^there is no folder \./whisper$"),
        (
            "runs/birds/checkpoints/step-000003",
            r"there is no folder .*step-000003 \(did you mean 'step-000002'\?\)$",
        ),
        ("/none/of/these", r"^there is no folder /none/of/these$"),
        ("clip.wav/x/y", r"^there is no folder clip\.wav/x/y$"),
        ("runs/birds?pda_to=30", "a model has no option 'pda_to'"),
    ],
)
def test_what_can_be_neither_is_refused_with_a_near_name(here, spec, message):
    for refuse in (named_paths.refuse_missing_encoder, named_paths.refuse_missing_model):
        with pytest.raises(UserError, match=message):
            refuse(spec)


def test_a_whole_model_of_the_hub_has_an_owner_that_is_no_folder_here(here):
    named_paths.refuse_missing_model("someone/else")
    for spec in ("whisper", "openai/whisper-small"):
        with pytest.raises(UserError, match=f"^there is no folder {spec}"):
            named_paths.refuse_missing_model(spec)


def test_one_clip_that_is_here_is_enough(here):
    named_paths.refuse_missing_clips([Path("none.wav"), Path("clip.WAV")])  # it is called clip.wav
    with pytest.raises(UserError, match=r"^missing file: runs is a folder$"):
        named_paths.refuse_missing_clips([Path("runs")])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoders.whisper.path=./gone", r"^encoders\.whisper\.path: there is no folder \./gone$"),
        ("decoder.path=random:a/b/c", r"^decoder\.path: there is no folder a/b/c$"),
        ("stages.0.recipe=nowhere", r"^there is no recipe 'nowhere'"),
        ("stages.0.continual={ewc: {weight: 1, recipe: nowhere}}", r"^there is no recipe 'nowhere'"),
        ("guard={sets: {old: nowhere}, every: 1}", r"^guard\.sets old=.*nowhere: there is no such folder$"),
    ],
)
def test_what_a_run_config_names_must_be_here(tone_run, override, message):
    named_paths.refuse_missing_parts(load_run(tone_run))
    with pytest.raises(UserError, match=message):
        named_paths.refuse_missing_parts(load_run(tone_run, [override]))
    miniature = "decoder={miniature: {}, path: /none}"  # which nobody reads
    named_paths.refuse_missing_parts(load_run(tone_run, [miniature]))


def test_a_run_folder_fits_the_option_resume(tone_run):
    config = load_run(tone_run)
    for resume in (None, "auto"):
        named_paths.refuse_unfit_run_folder(config, resume)
    with pytest.raises(
        UserError, match=r"^--resume: .*out holds no complete checkpoint; leave --resume out to start$"
    ):
        named_paths.refuse_unfit_run_folder(config, "yes")
    (tone_run.parent / "out" / "checkpoints" / "step-000002").mkdir(parents=True)
    for resume in ("yes", "auto"):
        named_paths.refuse_unfit_run_folder(config, resume)
    with pytest.raises(
        UserError, match=r"out already holds a run: continue it with --resume, or set another"
    ):
        named_paths.refuse_unfit_run_folder(config, None)
