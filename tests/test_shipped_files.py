"""Every YAML file in the repository is a test case."""

import os
import random
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from uniaudio.config.run import load_run
from uniaudio.data.card import load_card
from uniaudio.data.recipe import load_recipe
from uniaudio.data.source import open_source
from uniaudio.data.template import load_template

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def some_folders(monkeypatch, tmp_path):
    """Cards of local recordings name their folder by a variable; loading them needs it set, not full."""
    if "UNIAUDIO_REALDATA" not in os.environ:
        monkeypatch.setenv("UNIAUDIO_REALDATA", str(tmp_path))
    monkeypatch.setenv("UNIAUDIO_DATA", str(tmp_path))


def names(pattern):
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]


# What a row may hold for inputs that are not plain text.
SAMPLES = {
    "captions": ["a dog barks", "barking"],
    "tags": ["Dog", "Bark"],
    "choices": ["a dog", "a cat"],
    "midi": 69,
}


@pytest.mark.parametrize("name", names("templates/*.yaml"))
def test_template(name):
    template = load_template(str(ROOT / name))
    fields = {
        key: SAMPLES.get(key, template.labels[0] if template.labels else "some text")
        for key in template.inputs
    }
    seen = {template.render(fields, random.Random(seed)) for seed in range(60)}
    assert len({rendered.prompt for rendered in seen}) == len(template.prompts)
    assert all(len(rendered.prompt) == template.num_clips + 1 for rendered in seen)
    assert all("{{" not in "".join(rendered.prompt) and rendered.answer for rendered in seen)


def test_templates_cover_speech_sound_and_music():
    templates = [load_template(str(ROOT / name)) for name in names("templates/*.yaml")]
    assert len(templates) >= 20
    assert {template.domain for template in templates} == {"speech", "sound", "music"}
    assert load_template("speaker_verification").num_clips == 2
    assert load_template("pitch").render({"midi": 69}, None).answer == "A4"
    assert load_template("tagging").render({"tags": ["Dog", "Bark"]}, None).answer == "Bark; Dog"


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
    """Read by accelerate itself, which refuses keys it does not know; what the run config owns is left open."""
    config = load_config_from_file(str(ROOT / name))
    assert config.compute_environment == "LOCAL_MACHINE"
    assert config.mixed_precision is None
    deepspeed = config.deepspeed_config
    assert (config.distributed_type == DistributedType.DEEPSPEED) == bool(deepspeed)
    if deepspeed:
        assert deepspeed["gradient_accumulation_steps"] == deepspeed["gradient_clipping"] == "auto"
        assert f"zero{deepspeed['zero_stage']}" == Path(name).stem


def test_every_topology_has_a_file():
    stems = {Path(name).stem for name in names("configs/accelerate/*.yaml")}
    assert stems == {"single", "ddp"}  # the engines that the loop accepts


@pytest.mark.realdata
def test_cards_of_real_recordings_find_their_rows(realdata, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_REALDATA", str(realdata))
    recipe = load_recipe("realdata")
    sizes = {entry.dataset.name: open_source(entry.dataset, entry.split).size for entry in recipe.train}
    assert sizes == {"esc10": 320, "fsdd_digits": 320, "fsdd_connected": 100, "ljspeech_mini": 75}
    for entry in recipe.train:
        row = open_source(entry.dataset, entry.split).row(0)
        assert entry.templates[0].render(entry.dataset.fields(row.columns), None).answer
