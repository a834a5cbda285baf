import json

import pytest
import torch

from uniaudio.config.run import load_run
from uniaudio.errors import UserError
from uniaudio.train.checkpoint import (
    check_bases,
    is_whole,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

BASES = {"decoder": {"path": "a", "sha256": "1" * 64}}


@pytest.fixture
def save(tone_run, tmp_path):
    config = load_run(tone_run)

    def run(step):
        state = {"stage": 0, "stage_step": step, "stream": None}
        return save_checkpoint(
            tmp_path / "run", step, {"w": torch.full((3,), step)}, {}, state, config, BASES
        )

    return run


def test_what_is_saved_is_read(save, tmp_path):
    path = save(5)
    checkpoint = load_checkpoint(path)
    assert path.name == "step-000005"
    assert latest_checkpoint(tmp_path / "run") == path
    assert torch.equal(checkpoint.model["w"], torch.full((3,), 5))
    assert checkpoint.state["step"] == 5
    assert (path.parent / "latest").read_text().strip() == "step-000005"


def test_only_the_last_ones_are_kept(save):
    for step in (1, 2, 3, 4):
        path = save(step)
    assert sorted(p.name for p in path.parent.glob("step-*")) == ["step-000003", "step-000004"]


def test_a_cut_checkpoint_is_never_taken_for_a_whole_one(save, tmp_path):
    first, second = save(1), save(2)
    (second / "optimizer.pt").write_bytes(b"x")
    assert not is_whole(second)
    assert latest_checkpoint(tmp_path / "run") == first
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        load_checkpoint(second)


def test_unfinished_folders_are_ignored_and_removed(save, tmp_path):
    first = save(1)
    unfinished = first.with_name(".unfinished-step-000002")
    unfinished.mkdir()
    (unfinished / "model.safetensors").touch()
    assert latest_checkpoint(tmp_path / "run") == first
    save(3)
    assert not unfinished.exists()


def test_another_decoder_is_refused_by_name(save):
    checkpoint = load_checkpoint(save(1))
    check_bases(checkpoint, {"decoder": {"path": "elsewhere", "sha256": "1" * 64}})
    with pytest.raises(
        UserError, match=r"trained with the decoder a \(111111111111\), but the config names b \(222"
    ):
        check_bases(checkpoint, {"decoder": {"path": "b", "sha256": "2" * 64}})


def test_a_disk_that_refuses_leaves_the_previous_one(save, tmp_path, monkeypatch):
    first = save(1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uniaudio.train.checkpoint.save_file", full)
    with pytest.raises(UserError, match=r"could not be written .*No space left"):
        save(2)
    assert latest_checkpoint(tmp_path / "run") == first
    assert not list(first.parent.glob(".unfinished-*step*"))


def test_pickles_are_not_executed(save):
    path = save(1)

    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"state": Evil()}, path / "optimizer.pt")
    sizes = json.loads((path / "complete.json").read_text())
    sizes["optimizer.pt"] = (path / "optimizer.pt").stat().st_size
    (path / "complete.json").write_text(json.dumps(sizes))
    with pytest.raises(Exception, match=r"weights_only|Unsupported|WeightsUnpickler"):
        load_checkpoint(path)
