"""Every command that takes a recipe takes the same names: of recipes, run configs, run folders."""

import pytest
from rich.console import Console

from uniaudio.build.recipe_of_run import open_recipe
from uniaudio.commands.data_stats import show_stats
from uniaudio.commands.preview import preview
from uniaudio.errors import UserError


@pytest.fixture
def project(tone_run, monkeypatch):
    """The files of the run in the folders where names are looked up, and a config that inherits its stages."""
    folder = tone_run.parent
    (folder / "configs").mkdir()
    (folder / "data_recipes").mkdir()
    for name in ("tone.yaml", "tones.yaml", "tone_recipe.yaml"):
        (folder / name).rename(folder / "data_recipes" / name)
    (folder / "data_recipes" / "tones.yaml").write_text(
        (folder / "data_recipes" / "tones.yaml").read_text().replace("jsonl: tones", "jsonl: ../tones")
    )
    text = tone_run.read_text().replace("whisper/", "../whisper").replace("path: ", "path: ../")
    (folder / "configs" / "run.yaml").write_text(text)
    (folder / "configs" / "longer.yaml").write_text("base: run.yaml\nseed: 3\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["tone_recipe", "data_recipes/tone_recipe.yaml"])
def test_a_recipe_by_name_or_path(project, name):
    opened = open_recipe(name)
    assert (opened.recipe.name, opened.config, opened.checkpoint) == ("tone_recipe", None, None)


@pytest.mark.parametrize("name", ["run", "longer", "configs/run.yaml", "configs/longer.yaml"])
def test_a_run_config_by_name_or_path(project, name):
    opened = open_recipe(name)
    assert (opened.recipe.name, opened.checkpoint) == ("tone_recipe", None)
    assert opened.config.stages[0].steps == 8


@pytest.mark.parametrize("name", ["tone_recipe", "run"])
def test_a_folder_of_the_same_name_hides_nothing(project, name):
    """Clips often lie in a folder with the name of their recipe."""
    (project / name).mkdir()
    assert open_recipe(name).recipe.name == "tone_recipe"


def test_names_of_nothing(project):
    with pytest.raises(UserError, match="tone_recip"):
        open_recipe("tone_recip")
    with pytest.raises(
        UserError, match="tones is a folder without a checkpoint; name a recipe, a run config"
    ):
        open_recipe("tones")
    (project / "configs" / "run.yaml").write_text("stages: []\n")
    with pytest.raises(UserError, match=r"configs/run\.yaml: "):
        open_recipe("run")


@pytest.mark.parametrize("name", ["tone_recipe", "run"])
def test_commands_take_the_same_names(project, name):
    console = Console(file=(project / "out.txt").open("w"), width=200)
    [stats] = show_stats(name, None, 5, None, None, console)
    assert stats.looked_at == 5
    preview(name, 1, str(project / "qwen"), 0, console)
    console.file.flush()
    assert "1. tones:tone  row " in (project / "out.txt").read_text()
