"""Every YAML file in the repository is a test case."""

import os
from pathlib import Path

import pytest

from uniaudio.config.run import load_run
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.card import load_card
from uniaudio.data.recipe import load_recipe
from uniaudio.data.template import load_template

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def some_realdata(monkeypatch, tmp_path):
    """Cards of real recordings name their folder by a variable; loading them needs it to be set, not to be there."""
    if "UNIAUDIO_REALDATA" not in os.environ:
        monkeypatch.setenv("UNIAUDIO_REALDATA", str(tmp_path))


def names(pattern):
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("name", names("templates/*.yaml"))
def test_template(name):
    assert load_template(str(ROOT / name)).num_clips >= 1


@pytest.mark.parametrize("name", names("data_recipes/datasets/*.yaml"))
def test_card(name):
    assert load_card(str(ROOT / name)).license


@pytest.mark.parametrize("name", names("data_recipes/*.yaml"))
def test_recipe(name):
    assert sum(load_recipe(str(ROOT / name)).train_shares()) == pytest.approx(1)


@pytest.mark.parametrize("name", names("configs/*.yaml"))
def test_run_config(name):
    config = load_run(ROOT / name)
    for stage in config.stages:
        load_recipe(stage.recipe, near=config.folder)


@pytest.mark.parametrize("name", names("configs/accelerate/*.yaml"))
def test_accelerate_file(name):
    assert load_yaml(ROOT / name)["compute_environment"] == "LOCAL_MACHINE"
