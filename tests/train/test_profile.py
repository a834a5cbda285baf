"""Time by part of a step."""

import gzip
import json
import time
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.train.profile import BACKWARD, MARK, build_parts_table, mark_calls, sum_time_by_part


def event(name, single=0.0, parent=None, number=-1, device=0.0, total=0.0):
    return SimpleNamespace(
        name=name,
        self_cpu_time_total=single * 1e6,
        self_device_time_total=device * 1e6,
        cpu_time_total=total * 1e6,
        cpu_parent=parent,
        sequence_nr=number,
        device_type=DeviceType.CPU,
    )


def made_up_events():
    encoder = event(MARK + "encoder", single=0.5)
    mel = event(MARK + "mel", single=0.25, parent=encoder)
    product = event("aten::mm", single=2, device=0.02, parent=encoder, number=7)
    inside = event("aten::copy_", single=1, parent=mel, number=8)
    backward = event(BACKWARD + "MmBackward0", single=0.125, number=7)
    return [
        encoder,
        mel,
        product,
        inside,
        backward,
        event("aten::mm", single=4, device=0.04, parent=backward),
        event(BACKWARD + "AccumulateGrad", single=0.0625, number=99),
        event(MARK + "data", single=8),
        event("gloo:all_reduce", total=16),
    ]


def test_time_goes_to_the_innermost_part_and_the_backward_to_the_part_of_its_forward():
    result = sum_time_by_part(made_up_events(), on_device=False)
    assert result == {
        "encoder": {"forward": 2.5, "backward": 4.125},
        "mel": {"forward": 1.25, "backward": 0.0},
        "rest": {"forward": 0.0, "backward": 0.0625},
        "data": {"forward": 8.0, "backward": 0.0},
        "communication": {"forward": 16.0, "backward": 0.0},
    }


def test_on_a_device_device_time_counts_and_waiting_for_data_is_the_hosts():
    result = sum_time_by_part(made_up_events(), on_device=True)
    assert result["encoder"] == {"forward": 0.02, "backward": 0.04}
    assert result["data"]["forward"] == 8.0


def test_a_part_gets_the_time_that_it_takes_in_a_real_trace():
    """One part sleeps in its forward, the other in its backward."""

    class SlowBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.1)
            return gradient

    class Slow(torch.nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.slow = forward

        def forward(self, x):
            if not self.slow:
                return SlowBackward.apply(x)
            time.sleep(0.05)
            return x * 2

    one, other = Slow(True), Slow(False)
    hooks = mark_calls("one", one) + mark_calls("other", other)
    x = torch.ones(3, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as looked:
        other(one(x)).sum().backward()
    for hook in hooks:
        hook.remove()
    result = sum_time_by_part(looked.events(), on_device=False)
    assert result["one"]["forward"] == pytest.approx(0.05, rel=0.5)
    assert result["one"]["backward"] < 0.02
    assert result["other"]["forward"] < 0.02
    assert result["other"]["backward"] == pytest.approx(0.1, rel=0.5)


def test_a_run_with_profile_gets_a_trace_and_a_table(tone_run, tmp_path, fresh_accelerate, capsys):
    assert run_training(load_run(str(tone_run), ["train.profile=true"]), None) == 0
    message = json.loads((tmp_path / "out/profile/parts.json").read_text())
    assert {"encoder", "mel", "adapter", "decoder", "loss", "optimizer", "data"} <= set(message["parts"])
    for name in ("encoder", "adapter", "decoder"):
        assert message["parts"][name]["forward"] > 0
        assert message["parts"][name]["backward"] > 0
    assert message["parts"]["mel"]["backward"] == 0
    # parts do not overlap, and there is little beside them
    counts = sum(sum(row.values()) for row in message["parts"].values())
    assert 0.6 * message["seconds_per_step"] < counts < 1.05 * message["seconds_per_step"]
    with gzip.open(tmp_path / "out/profile/trace.json.gz", "rt") as trace:
        assert "uniaudio::encoder" in trace.read()
    assert "time by part" in capsys.readouterr().out
    assert build_parts_table(message).row_count == len(message["parts"])


@pytest.mark.parametrize("steps", [2, 6])
def test_a_run_that_is_too_short_for_a_profile_says_so(tone_run, tmp_path, fresh_accelerate, capsys, steps):
    run_training(load_run(str(tone_run), ["train.profile=true", f"train.max_steps={steps}"]), None)
    assert (
        "train.profile: no profile was written, because the run did fewer than 8 steps"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "out/profile").exists()


def test_nobody_looks_at_a_run_that_has_no_profile(tone_run, tmp_path, fresh_accelerate):
    run_training(load_run(str(tone_run), ["train.max_steps=2"]), None)
    assert not (tmp_path / "out/profile").exists()
