"""Checkpoints that were damaged on disk: never loaded in silence; the one before is used and the console says so."""

import json
import os
import random
import shutil

import pytest
import torch
from helpers.run_folders import latest_checkpoint

from uniaudio.build.encoders import find_checkpoint, is_run, open_checkpoint
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.folders import choose_checkpoint, has_checkpoints, is_complete
from uniaudio.train.checkpoint.integrity import FileRecord, find_damage, read_listing
from uniaudio.train.checkpoint.reading import load_checkpoint
from uniaudio.train.checkpoint.writing import Snapshot, save_checkpoint
from uniaudio.train.continual.l2_sp_ewc import checksum_file, load_or_estimate_fisher
from uniaudio.train.resume import find_newest_checkpoint
from uniaudio.train.state import TrainState

PIECE = "optimizer-00000-of-00001.safetensors"
CONTENTS = ("model.safetensors", "ema.safetensors", PIECE, "state.json", "bases.json", "config.yaml")


def flip(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def delete(file):
    file.unlink()


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


@pytest.fixture
def run(tone_run, tmp_path):
    """A run folder with the checkpoints of steps 1 and 2."""
    config = load_run(tone_run)
    for step in (1, 2):
        full = torch.full((3,), float(step))
        state = {"stage": 0, "stage_step": step, "stream": None}
        whole = Snapshot(step, state, {"w|exp_avg": full, "w|exp_avg_sq": full + 1}, {"w": full}, {"w": full})
        save_checkpoint(tmp_path / "run", whole, config, {})
    return tmp_path / "run"


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("damage", [flip, cut, zero, delete, replace_by_folder])
def test_the_checkpoint_before_a_damaged_one_is_used_and_the_console_says_so(run, capsys, name, damage):
    second = run / "checkpoints" / "step-000002"
    assert find_newest_checkpoint(run).path == second
    damage(second / name)
    checkpoint = find_newest_checkpoint(run)
    assert checkpoint.path.name == "step-000001"
    assert checkpoint.model["w"].tolist() == [1.0] * 3
    said = capsys.readouterr().out
    assert f"step-000002 is damaged (the content of {name}" in said or f"damaged ({name}" in said
    assert "; step-000001 is used" in said
    if name != PIECE:  # what only a resume reads does not hinder others
        assert open_checkpoint(str(run)).path.name == "step-000001"
        with pytest.raises(UserError, match=rf"step-000002 is not a complete checkpoint \(.*{name}"):
            load_checkpoint(second, ema=True)


def test_every_flipped_bit_of_the_listing_is_noticed(run):
    second = run / "checkpoints" / "step-000002"
    content = (second / "complete.json").read_bytes()
    for at in range(0, len(content), 3):
        flip(second / "complete.json", at)
        try:
            same = read_listing(second) == read_listing_of(content, second)
        except ValueError:
            same = False
        assert same or find_damage(second), at
        (second / "complete.json").write_bytes(content)
    assert not find_damage(second)


def read_listing_of(content, folder):
    data = json.loads(content)
    return {name: FileRecord.from_json(entry) for name, entry in data.items()}


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        ("{}", "does not list model.safetensors"),
        ("[]", "not a JSON object"),
        ("7", "not a JSON object"),
        ("", "complete.json cannot be used"),
        ("{", "complete.json cannot be used"),
        ("\0" * 40, "complete.json cannot be used"),
        (b"\xff\xfe\x00", "complete.json cannot be used"),
        ("[" * 100_000, "complete.json cannot be used"),
        ('{"model.safetensors": 4}', "without checksums"),
        ('{"model.safetensors": "4"}', "size and checksum"),
        ('{"model.safetensors": {"bytes": "4", "sha256": 5}}', "size and checksum"),
        (None, "is missing"),
    ],
)
def test_an_odd_listing_is_no_whole_checkpoint(run, listing, reason):
    file = run / "checkpoints" / "step-000002" / "complete.json"
    if listing is None:
        file.unlink()
    else:
        file.write_bytes(listing if isinstance(listing, bytes) else listing.encode())
    assert not is_complete(file.parent)
    assert reason in find_damage(file.parent)
    assert find_newest_checkpoint(run).path.name == "step-000001"
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        find_checkpoint(str(file.parent))


def test_the_listing_names_the_parts_of_all_processes_and_no_other_folder(run):
    folder = run / "checkpoints" / "step-000002"
    whole = json.loads((folder / "complete.json").read_text())
    record = whole[PIECE]
    for pieces in ({}, {"optimizer-00000-of-00002.safetensors": record}):
        rest = {name: entry for name, entry in whole.items() if name != PIECE}
        (folder / "complete.json").write_text(json.dumps(rest | pieces))
        assert "optimizer files of all processes" in find_damage(folder)
    (folder / "complete.json").write_text(json.dumps(whole | {"../latest": record}))
    assert "not a plain file name" in find_damage(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\x00\x9f", "latest cannot be read"),
        (b"", "latest names no checkpoint"),
        (b"/etc", "latest names no checkpoint"),
        (b"../../other/checkpoints/step-000001", "latest names no checkpoint"),
        (b"step-000009", "step-000009, named by `latest`, is missing"),
        (b"step-" + b"9" * 5000, "latest names no checkpoint"),
    ],
)
def test_an_odd_latest_is_said_and_the_newest_step_is_used(run, content, said, capsys):
    (run / "checkpoints" / "latest").write_bytes(content)
    assert find_newest_checkpoint(run).path.name == "step-000002"
    assert latest_checkpoint(run).name == "step-000002"
    assert said in capsys.readouterr().out


def test_checkpoints_of_an_abandoned_end_are_the_last_resort(run):
    (run / "checkpoints" / "latest").write_text("step-000001\n")
    assert find_newest_checkpoint(run).path.name == "step-000001"
    flip(run / "checkpoints" / "step-000001" / "model.safetensors")
    assert find_newest_checkpoint(run).path.name == "step-000002"


def test_a_checkpoint_is_used_only_with_the_start_of_its_stage_where_that_is_needed(
    tone_run, tmp_path, capsys
):
    """The start is that of the run's own steps: another end of the stage before is of an abandoned try."""
    config, run = load_run(tone_run), tmp_path / "run"
    for step, stage, stage_step in ((2, 0, 2), (3, 0, 3), (5, 1, 3)):
        state = {**TrainState(stage=stage, stage_step=stage_step).to_json(), "stage_done": stage == 0}
        save_checkpoint(run, Snapshot(step, state, {}, {"w": torch.zeros(1)}), config, {})
    assert find_newest_checkpoint(run, [0, 1]).path.name == "step-000005"
    flip(run / "checkpoints" / "step-000003" / "model.safetensors")
    assert find_newest_checkpoint(run, [0, 1]).path.name == "step-000005"
    flip(run / "checkpoints" / "step-000002" / "model.safetensors")
    assert find_newest_checkpoint(run, [0]).path.name == "step-000005"
    with pytest.raises(
        UserError,
        match=r"`continual` needs step-000002, where the stage began, but the content of model\.safetensors",
    ):
        find_newest_checkpoint(run, [1])


def test_only_the_files_that_are_read_are_compared(run):
    flip(run / "checkpoints" / "step-000002" / "model.safetensors")
    assert find_checkpoint(str(run), ("config.yaml",)).name == "step-000002"
    assert find_checkpoint(str(run)).name == "step-000001"


def test_latest_is_a_path_of_a_checkpoint(run):
    latest = run / "checkpoints" / "latest"
    assert find_checkpoint(str(latest)) == run / "checkpoints" / "step-000002"
    latest.write_text("step-000001\n")
    assert find_checkpoint(f"{latest}:ema") == run / "checkpoints" / "step-000001"
    assert is_run(str(latest))
    assert open_checkpoint(str(latest)).state["step"] == 1
    latest.write_text("../../elsewhere\n")
    with pytest.raises(UserError, match="latest names no checkpoint; name a folder step-N"):
        find_checkpoint(str(latest))


def test_where_no_checkpoint_is_left_one_sentence_says_why(run):
    for step in (1, 2):
        flip(run / "checkpoints" / f"step-00000{step}" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"no checkpoint that can be used: .*step-000002.*step-000001.*output_dir"
    ):
        find_newest_checkpoint(run)
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        find_checkpoint(str(run))
    assert has_checkpoints(run)


def test_a_run_of_which_only_damaged_checkpoints_are_left_is_not_begun_anew(run, tone_run):
    for step in (1, 2):
        (run / "checkpoints" / f"step-00000{step}" / "state.json").unlink()
    config = load_run(tone_run, [f"output_dir={run}"])
    with pytest.raises(UserError, match="already holds a run"):
        run_training(config, None)
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        run_training(config, "auto")


def test_stored_fisher_information_that_is_damaged_is_measured_again(tmp_path, capsys):
    model = torch.nn.Linear(2, 1)
    path = tmp_path / "fisher" / "two.safetensors"

    def load(is_resumed=True):
        return load_or_estimate_fisher(path, model, dict(model.named_parameters()), [], 4, is_resumed)

    measured = load(is_resumed=False)
    stored = path.read_bytes()
    assert load().keys() == measured.keys()
    assert capsys.readouterr().out == ""
    for damage in (flip, cut, zero):
        path.write_bytes(stored)
        damage(path)
        load()
        assert "is measured again" in capsys.readouterr().out
        assert path.read_bytes() == stored
    checksum_file(path).unlink()
    load()
    assert "is measured again" in capsys.readouterr().out


def weights(folder):
    return load_checkpoint(latest_checkpoint(folder)).model


@pytest.mark.slow
def test_runs_whose_stored_state_is_damaged_at_random_end_exact_or_are_refused(tone_run, tmp_path):
    """The steps of a damaged checkpoint are done again, to the bit."""
    settings = ["stages.0.steps=4", "train.save_every=1", "train.keep_last=3", "data.workers=0"]
    whole = tmp_path / "whole"
    assert run_training(load_run(tone_run, [*settings, f"output_dir={whole}"]), None) == 0
    expected, chance = weights(whole), random.Random(7)
    outcomes = []
    for trial in range(8):
        out = tmp_path / f"trial{trial}"
        shutil.copytree(whole, out)
        steps = sorted((out / "checkpoints").glob("step-*"))
        struck = steps if trial == 0 else [steps[-1], *chance.sample(steps[:-1], chance.randrange(2))]
        for folder in struck:
            file = chance.choice(sorted(folder.iterdir()))
            chance.choice([flip, cut, zero, delete])(file)
        if chance.random() < 0.5:
            chance.choice([cut, zero, delete])(out / "checkpoints" / "latest")
        chance.choice([cut, zero, flip])(out / "metrics.jsonl")
        config = load_run(tone_run, [*settings, f"output_dir={out}"])
        left, said = choose_checkpoint(out)
        assert said
        if left is None:
            with pytest.raises(UserError, match="no checkpoint that can be used"):
                run_training(config, "yes")
            outcomes.append("refused")
            continue
        assert run_training(config, "yes") == 0
        result = weights(out)
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
        outcomes.append("exact")
    assert outcomes[0] == "refused"
    assert outcomes.count("exact") >= 5
