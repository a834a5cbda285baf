"""What machines have to have alike, and what may be another on each."""

import re

import pytest
from accelerate import Accelerator

import uniaudio
from uniaudio.config.run_files import load_run
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.train import host_agreement
from uniaudio.train.host_agreement import (
    describe_config,
    describe_package,
    describe_recipes,
    describe_software,
    require_agreement,
    require_same_run,
    require_same_weights,
)


@pytest.fixture
def other_host(monkeypatch):
    """Let the second of two processes have the facts that a function makes of those of the first."""

    def install(change):
        def gather(value):
            if isinstance(value, str):
                return [value, "another hash"]
            return [("host0", value[1]), ("host1", change(value[1]))]

        monkeypatch.setattr(host_agreement, "gather_objects", gather)
        monkeypatch.setattr(host_agreement, "world_size", lambda: 2)

    return install


def test_equal_facts_exchange_a_hash_alone(monkeypatch):
    sent = []
    monkeypatch.setattr(host_agreement, "gather_objects", lambda value: sent.append(value) or [value, value])
    require_agreement("the starts", {"b": 1, "a": [{"c": 2.5}]}, "")
    require_agreement("the starts", {"a": [{"c": 2.5}], "b": 1}, "")
    assert sent[0] == sent[1]
    assert len(sent[0]) == 64


def test_a_difference_names_machines_and_both_values(other_host):
    other_host(lambda facts: {**facts, "software": {"torch": "2.12.0", "numpy": "2.0"}})
    with pytest.raises(UserError) as refusal:
        require_agreement("the starts", {"software": {"torch": "2.13.0", "numpy": "2.0"}}, "mend it")
    assert str(refusal.value) == (
        "the starts of process 0 on host0 and process 1 on host1 differ: software.torch is '2.13.0' and '2.12.0'; "
        "mend it"
    )


def test_many_differences_are_given_as_a_number(other_host):
    other_host(lambda facts: {key: value + 1 for key, value in facts.items()})
    with pytest.raises(UserError, match="a is 0 and 1; b is 1 and 2; c is 2 and 3; and 2 more; mend"):
        require_agreement("the data", {key: number for number, key in enumerate("abcde")}, "mend it")


def test_a_changed_recipe_setting_and_package_are_refused_at_the_start(tone_run, other_host):
    config = load_run(tone_run)
    recipes = [load_recipe(stage.recipe, near=config.folder) for stage in config.stages]

    def change(facts):
        files = dict(facts["files"])
        files["recipe tone_recipe.yaml"] = {**files["recipe tone_recipe.yaml"], "train": "another"}
        return {
            **facts,
            "files": files,
            "config": {**facts["config"], "seed": 7},
            "software": {**facts["software"], "uniaudio": "0.0.1, commit abc, files 1234"},
        }

    other_host(change)
    with pytest.raises(UserError) as refusal:
        require_same_run(config, recipes, Accelerator(cpu=True))
    assert "config.seed is 0 and 7" in str(refusal.value)
    assert "software.uniaudio is " in str(refusal.value)
    assert "and '0.0.1, commit abc, files 1234'" in str(refusal.value)
    assert "files.recipe tone_recipe.yaml.train is " in str(refusal.value)


def test_places_of_a_machine_may_differ(tone_run, tmp_path):
    moved = [f"output_dir={tmp_path / 'other'}", "data.workers=3", "encoders.whisper.path=/elsewhere/whisper"]
    assert describe_config(load_run(tone_run, moved)) == describe_config(load_run(tone_run))
    assert describe_config(load_run(tone_run, ["train.save_every=3"])) != describe_config(load_run(tone_run))
    config = load_run(tone_run)
    before = describe_recipes([load_recipe("tone_recipe", near=config.folder)])
    card = config.folder / "tones.yaml"
    card.write_text(card.read_text().replace("jsonl: tones", f"jsonl: {tmp_path / 'tones'}"))
    assert describe_recipes([load_recipe("tone_recipe", near=config.folder)]) == before
    card.write_text(card.read_text().replace("CC0-1.0", "CC-BY-4.0"))
    assert describe_recipes([load_recipe("tone_recipe", near=config.folder)]) != before


def test_software_names_versions_commit_and_files():
    import torch

    software = describe_software()
    assert software["torch"] == torch.__version__
    assert ", files " in software["uniaudio"]


def test_a_checkout_without_git_is_described_by_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    described = describe_package.__wrapped__()
    assert re.fullmatch(rf"{re.escape(uniaudio.__version__)}, files [0-9a-f]{{8}}", described)


def test_weights_are_compared_by_content(other_host):
    other_host(lambda facts: {**facts, "decoder": {"sha256": "bb"}})
    with pytest.raises(UserError, match=r"decoder\.sha256 is 'aa' and 'bb'; copy the weights"):
        require_same_weights({"decoder": {"path": "/a", "sha256": "aa"}})
