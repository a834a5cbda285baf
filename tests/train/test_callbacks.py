"""Callbacks of users: what they are called with, that they change nothing, and what happens when one fails."""

import random

import numpy as np
import pytest
import torch
from helpers.run_folders import latest_checkpoint
from safetensors.torch import load_file

import uniaudio
from uniaudio.config.run_files import load_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.errors import RowError
from uniaudio.train.callbacks import EVENTS, collect_callbacks

STEPS = {"train.max_steps": 4, "train.save_every": 2, "train.log_every": 2}


class Notes(uniaudio.Callback):
    """Notes all events, and does what could disturb a run."""

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def note(self, name, event):
        self.events.append((name, event.step))
        torch.manual_seed(event.step)
        torch.rand(3), np.random.rand(), random.random()
        event.model.eval()

    def on_stage(self, event):
        self.note("stage", event)
        assert (event.stage, event.metrics["processes"], event.is_main) == ("one", 1, True)

    def on_step(self, event):
        self.note("step", event)
        assert event.metrics["loss"] > 0
        assert set(event.metrics["lr"]) == {"whisper", "adapter"}
        if event.step == self.stop_at:
            event.stop()

    def on_log(self, event):
        self.note("log", event)
        assert event.metrics["tasks"]["tone"] == pytest.approx(event.metrics["loss"])

    def on_evaluate(self, event):
        self.note("evaluate", event)
        assert event.metrics["tones:tone"]["examples"] == 10

    def on_save(self, event):
        self.note("save", event)
        assert (event.metrics["checkpoint"] / "complete.json").is_file()
        assert event.folder.samefile(event.metrics["checkpoint"].parent.parent)


def weights_of(run):
    return load_file(latest_checkpoint(run.folder) / "model.safetensors")


def test_every_event_comes_and_a_stopped_and_continued_run_has_the_same_weights(tone_run, tmp_path):
    plain = uniaudio.train(tone_run, {**STEPS, "output_dir": tmp_path / "plain"})
    options = {**STEPS, "output_dir": tmp_path / "noted", "train.evaluate_every": 4}
    first, second = Notes(stop_at=3), Notes()
    stopped = uniaudio.train(tone_run, options, callbacks=[first])
    assert not stopped.is_finished
    assert [event for event in first.events if event[0] != "save"] == [
        ("stage", 0), ("step", 1), ("step", 2), ("log", 2), ("step", 3), ("log", 3)]  # fmt: skip
    assert [step for name, step in first.events if name == "save"] == [2, 3]
    run = uniaudio.train(tone_run, options, resume=True, callbacks=[second])
    assert run.is_finished
    assert [event for event in second.events if event[0] != "save"] == [
        ("stage", 3), ("step", 4), ("log", 4), ("evaluate", 4)]  # fmt: skip
    wanted, weights = weights_of(plain), weights_of(run)
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


def test_an_exception_ends_the_run_with_a_sentence_that_names_callback_and_line(tone_run):
    class Broken:
        def on_log(self, event):
            return event.metrics["los"]

    with pytest.raises(uniaudio.UserError, match=r"Broken\.on_log failed at step 2") as caught:
        uniaudio.train(tone_run, STEPS, callbacks=[Broken()])
    assert "KeyError: 'los', test_callbacks.py line" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    assert uniaudio.train(tone_run, STEPS, resume="auto").is_finished


def test_a_config_names_callbacks_by_module_and_class(tone_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_callbacks.py").write_text(
        "class Touch:\n    def on_stage(self, event):\n        (event.folder / 'touched').touch()\n"
    )
    options = {"train.max_steps": 1, "train.callbacks": ["my_callbacks:Touch"]}
    with pytest.raises(uniaudio.UserError, match=r"train\.callbacks\.0: needs code of its own"):
        uniaudio.train(tone_run, options)
    run = uniaudio.train(tone_run, options, allow_code=True)
    assert (run.folder / "touched").is_file()
    # made here, so a resume needs no option
    assert load_run(run.folder / "config.yaml").trust == Trust(code=True)


@pytest.mark.parametrize(
    ("given", "names", "trust", "message"),
    [
        (object(), [], NO_TRUST, "callbacks: give a list of objects, not object"),
        ([RowError], [], NO_TRUST, "RowError'> cannot be created .*; give an object of that class"),
        ([object()], [], NO_TRUST, "object: it has none of the callback methods"),
        ([type("Typing", (), {"on_evalute": print})], [], NO_TRUST, "did you mean 'on_evaluate'"),
        (
            [],
            ["nowhere_at_all:X"],
            Trust(code=True),
            r"train\.callbacks\.0: nowhere_at_all:X cannot be imported",
        ),
        ([], ["uniaudio.errors:Nothing"], Trust(code=True), "cannot be imported"),
        ([], ["uniaudio.errors:RowError"], Trust(code=True), r"RowError\(\) cannot be created"),
    ],
)
def test_what_is_no_callback_is_refused(given, names, trust, message):
    with pytest.raises(uniaudio.UserError, match=message):
        collect_callbacks(given, names, trust)


def test_a_name_in_the_config_is_a_module_and_a_class(tone_run):
    with pytest.raises(uniaudio.UserError, match=r"callbacks: 'Touch' is not written as module:Class"):
        load_run(tone_run, ["train.callbacks=[Touch]"])
    assert all(callable(getattr(uniaudio.Callback, event)) for event in EVENTS)
