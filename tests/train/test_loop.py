"""The loop in one process with a stand-in for the model: what it does with bad numbers, stages and a continued run."""

import json
import math
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from helpers.run_folders import latest_checkpoint
from torch import nn

from uniaudio.commands.train import open_newest
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.ragged import Ragged
from uniaudio.train.activation_checkpointing import Recomputing
from uniaudio.train.checkpoint.folders import find_stage_ends
from uniaudio.train.checkpoint.reading import MomentFiles, load_checkpoint
from uniaudio.train.engines.accelerator import make_accelerator
from uniaudio.train.skipped_steps import StepFilter
from uniaudio.train.stages import train_stages
from uniaudio.train.state import TrainState
from uniaudio.types import Auxiliary, Batch, LossSum

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@dataclass
class Place:
    n: int

    def to_json(self):
        return {"n": self.n}


@dataclass
class Step:
    micro: tuple[Batch, ...]
    state: Place
    skips: tuple = ()
    notices: tuple = ()
    cost: float = 1.0
    drawn: dict = field(default_factory=dict)


def batch(n):
    """Two answer tokens, half a second; the samples hold the number of the batch."""
    audio = Ragged(torch.full((4,), n, dtype=torch.int16), torch.tensor([4]))
    ids, none = torch.zeros(3, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    labels = torch.tensor([1, 2])
    return Batch(
        audio,
        Ragged(ids, torch.tensor([3])),
        none,
        none,
        labels,
        labels,
        labels * 0,
        torch.zeros(0, 4, dtype=torch.long),
        Ragged(torch.zeros(1, dtype=torch.long), torch.tensor([1])),
        torch.zeros(1, dtype=torch.long),
        torch.tensor([1]),
        ("tone",),
        (f"tones/{n}",),
        4,
        0.5,
    )


class Model(nn.Module):
    """A line through the number of the batch.

    Args:
        bad: batches without a finite loss. huge: batches with a loss of 1e6 times what it should be.
        stops_at: the batch in which a SIGTERM comes.
    """

    def __init__(self, bad=(), huge=(), auxiliary=False, stops_at=None):
        super().__init__()
        self.encoder, self.adapter = nn.Linear(1, 1), nn.Linear(1, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)
        self.dropout, self.bad, self.huge = nn.Dropout(0.5), bad, huge
        self.encoder.auxiliary = ("balance",) if auxiliary else ()
        self.stops_at = stops_at

    def forward(self, batch):
        n = batch.audio.values[:1].float()
        if int(n) == self.stops_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = self.adapter(self.dropout(self.encoder((n % 16 / 8)[:, None]).expand(16, 1))).square().mean()
        if int(n) in self.bad:
            loss = loss / 0
        if int(n) in self.huge:
            loss = loss * 1e6 + 1e6
        sums = self.encoder.weight[0] * n
        extra = {"balance": Auxiliary(sums, 1.0, lambda mean: mean[0] ** 2)} if self.encoder.auxiliary else {}
        return LossSum(2 * loss, 2, torch.tensor([[2 * loss.item(), 2, 1]]), extra)


class Models:
    """``model``: one for the first stage, or a function that builds one for every stage."""

    bases: ClassVar = {"decoder": {"path": "none"}}

    def __init__(self, model):
        self.model = model
        self.first = [model] if isinstance(model, nn.Module) else []

    def build(self):
        return (
            self.first.pop() if self.first else Model() if isinstance(self.model, nn.Module) else self.model()
        )

    def choose_recomputing(self, stage, engine):
        return Recomputing()

    def write_start(self):
        pass


class Data:
    """Numbered batches; ``opened`` notes where the data were opened."""

    tasks = ("tone",)

    def __init__(self, opened=None):
        self.opened = [] if opened is None else opened

    def open_steps(self, stage, model, balance, state):
        self.opened.append((stage, state))
        begin = state or {"n": 0}
        return begin, self.iterate_steps(begin["n"])

    def iterate_steps(self, n):
        while True:
            n += 1
            yield Step((batch(2 * n - 1), batch(2 * n)), Place(n))

    def join_states(self, states):
        return states[0]

    def iterate_examples(self, stage, model, recipe):
        yield from ()

    def take_skips(self):
        return []

    def encode_in_text(self, ids):
        return list(ids)


def run(config_path, model, *overrides, resume=False, opened=None):
    config = load_run(config_path, ["train.precision=no", *overrides])
    checkpoint = open_newest(config) if resume else None
    return train_stages(Models(model), Data(opened), None, config, make_accelerator(config), checkpoint)


def saved(config_path, folder="out"):
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())  # the run waited for it
    return load_checkpoint(latest_checkpoint(config_path.parent / folder))


def everything(config_path, folder="out"):
    """All tensors of the newest checkpoint: weights and moments."""
    checkpoint = saved(config_path, folder)
    moments = MomentFiles(checkpoint.path)
    return {**checkpoint.model, **{key: moments.get(*key.split("|")) for key in moments.place}}


def same(one, two):
    assert one.keys() == two.keys()
    assert len(one) >= 12  # four parameters and their moments
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def rows(config_path, folder="out"):
    return [
        json.loads(line) for line in (config_path.parent / folder / "metrics.jsonl").read_text().splitlines()
    ]


def losses(config_path, folder="out"):
    return {row["step"]: row["loss"] for row in rows(config_path, folder) if "loss" in row}


def events(config_path, name, folder="out"):
    return [row for row in rows(config_path, folder) if row.get("event") == name]


def to(folder, config_path):
    return f"output_dir={config_path.parent / folder}"


def two_stages(first="steps: 3", second="steps: 3"):
    stage = "{name: %s, recipe: tone_recipe, %s, warmup: 1, budget: {audio_seconds: 6}}"
    return f"stages=[{stage % ('a', first)}, {stage % ('b', second)}]"


def test_losses_that_are_not_finite_end_the_run_before_the_weights_and_name_the_examples(tone_run):
    model = Model(bad=range(9, 100))
    message = (
        r"^1 steps in a row were skipped \(train.max_bad_steps=1\); the last: step 5 .*: tones/9, tones/10$"
    )
    with pytest.raises(UserError, match=message):
        run(tone_run, model, "train.max_bad_steps=1")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert saved(tone_run).state["step"] == 4


@pytest.mark.parametrize("bad", [(9,), (10,), (9, 10)])
def test_a_step_left_out_leaves_weights_and_moments_untouched_and_the_data_goes_on(tone_run, bad, capsys):
    model, opened = Model(bad=bad), []
    run(tone_run, model, "train.max_steps=4", to("four", tone_run), "stages.0.schedule=constant")
    run(
        tone_run,
        Model(bad=bad),
        "train.max_steps=5",
        "stages.0.schedule=constant",
        "train.save_every=1",
        opened=opened,
    )
    before, after = everything(tone_run, "four"), everything(tone_run)
    same(before, after)
    assert any(tensor.any() for name, tensor in after.items() if name.endswith("exp_avg"))
    state = saved(tone_run).state
    assert (state["step"], state["stage_step"], state["updates"], state["bad"]) == (5, 5, 4, 1)
    assert state["stream"] == {"n": 5}
    output = "step 5 was skipped: its loss or gradient is not finite; its examples: tones/9, tones/10"
    assert output in capsys.readouterr().out
    [event] = events(tone_run, "left_out")
    assert (event["step"], event["ids"]) == (5, ["tones/9", "tones/10"])
    assert event["reason"] == "its loss or gradient is not finite"
    run(tone_run, Model(bad=bad), "stages.0.schedule=constant", resume=True, opened=opened)
    assert opened == [(0, None), (0, {"n": 5})]
    state = saved(tone_run).state
    assert (state["step"], state["updates"], state["bad"]) == (8, 7, 0)
    assert len(events(tone_run, "left_out")) == 1


def test_a_resume_after_a_step_left_out_is_exact(tone_run):
    """The count of updates, not of steps, is what AdamW's bias correction goes on from."""
    run(tone_run, Model(bad=(3,)), to("whole", tone_run))
    with pytest.raises(UserError):
        run(tone_run, Model(bad=(3, 11)), "train.max_bad_steps=1", "train.save_every=1", to("x", tone_run))
    run(tone_run, Model(bad=(3, 11), stops_at=9))
    run(tone_run, Model(bad=(3,)), resume=True)
    same(everything(tone_run, "whole"), everything(tone_run))


def test_a_parameter_that_never_had_a_gradient_does_not_hinder_a_resume(tone_run):
    """Such as the head of an encoder class of the user's own, on which its frames do not depend."""

    def build(**how):
        model = Model(**how)
        model.encoder.head = nn.Parameter(torch.ones(2))
        return model

    run(tone_run, build(), to("whole", tone_run))
    assert run(tone_run, build(stops_at=9)) == 75
    assert run(tone_run, build(), resume=True) == 0
    same(everything(tone_run, "whole"), everything(tone_run))


def test_a_loss_that_explodes_is_left_out_once_there_is_a_usual_one(tone_run, capsys):
    overrides = [
        "stages.0.steps=30",
        "stages.0.schedule=constant",
        "train.save_every=1",
        "encoders.whisper.lr=1e-4",
    ]
    huge = (3, 2 * 22 - 1)  # in step 2, when nothing is usual yet, and in step 22, the 22nd update
    model = Model(huge=huge)
    run(tone_run, model, *overrides)
    [event] = events(tone_run, "left_out")
    assert event["step"] == 22
    assert event["ids"] == ["tones/43", "tones/44"]
    assert "more than train.max_loss_ratio=10 times the mean" in event["reason"]
    assert float(event["loss"]) > 1e5
    assert "step 22 was skipped: its loss is" in capsys.readouterr().out
    state = saved(tone_run).state
    assert (state["step"], state["updates"], state["bad"]) == (30, 29, 0)
    assert state["loss_mean"] < 1e6


def test_an_exploding_loss_leaves_weights_and_moments_untouched(tone_run):
    overrides = ["stages.0.steps=40", "stages.0.schedule=constant"]
    run(tone_run, Model(), *overrides, "train.max_steps=24", to("before", tone_run))
    run(tone_run, Model(huge=(49,)), *overrides, "train.max_steps=25")
    assert saved(tone_run).state["updates"] == 24
    same(everything(tone_run, "before"), everything(tone_run))
    assert saved(tone_run, "before").state["loss_mean"] == saved(tone_run).state["loss_mean"]


def test_bad_steps_in_a_row_end_the_run_and_others_do_not(tone_run):
    run(tone_run, Model(bad=(1, 5, 9, 13)), "train.max_bad_steps=2", to("apart", tone_run))
    assert [event["step"] for event in events(tone_run, "left_out", "apart")] == [1, 3, 5, 7]
    assert saved(tone_run, "apart").state["updates"] == 4
    message = (
        r"^3 steps in a row were skipped \(train.max_bad_steps=3\); the last: step 6 was skipped: .*tones/12$"
    )
    with pytest.raises(UserError, match=message):
        run(tone_run, Model(bad=(1, 7, 9, 11)), "train.max_bad_steps=3")
    assert [event["step"] for event in events(tone_run, "left_out")] == [1, 4, 5, 6]


def test_bad_steps_in_a_row_count_across_a_resume(tone_run):
    run(tone_run, Model(bad=range(1, 100), stops_at=4), "train.max_bad_steps=4")
    assert saved(tone_run).state["bad"] == 2
    with pytest.raises(UserError, match=r"^4 steps in a row .*the last: step 4 "):
        run(tone_run, Model(bad=range(1, 100)), "train.max_bad_steps=4", resume=True)


@pytest.mark.parametrize("limit", ["train.max_bad_steps=100", "train.max_bad_steps=3"])
def test_weights_that_are_not_finite_are_named_and_the_run_does_not_end_well(tone_run, limit):
    """Fewer steps than the limit, none of them applied: before, such a run ended with exit code 0."""
    model = Model()
    with torch.no_grad():
        model.encoder.bias.fill_(math.nan)
    learned_nothing = r"stage one has learned nothing: all of its 8 steps were skipped, .*"
    reason = r"encoder\.bias holds NaN or infinite values: start from undamaged weights"
    message = {
        "train.max_bad_steps=100": rf"^{learned_nothing}; {reason}$",
        "train.max_bad_steps=3": rf"^3 steps in a row were skipped \(.*=3\); {reason}; the last: step 3",
    }[limit]
    with pytest.raises(UserError, match=message):
        run(tone_run, model, limit)
    assert not events(tone_run, "finished")
    assert not find_stage_ends(tone_run.parent / "out")[0]


def test_a_stage_in_which_no_step_was_applied_ends_the_run_wherever_it_ends(tone_run):
    message = (
        r"^stage one has learned nothing: all of its 2 steps were skipped, .* try a smaller learning rate or "
    )
    with pytest.raises(UserError, match=message):  # at the cap, with weights that are fine
        run(tone_run, Model(bad=range(1, 5)), "train.max_steps=2")
    assert run(tone_run, Model(bad=range(1, 5), stops_at=4), to("stopped", tone_run)) == 75
    with pytest.raises(UserError, match=message):  # a cap that is lowered to what was done
        run(tone_run, Model(), "train.max_steps=2", to("stopped", tone_run), resume=True)
    models = iter([Model(), Model(bad=range(1, 7))])
    with pytest.raises(UserError, match=r"^stage b has learned nothing: all of its 3 steps were skipped"):
        run(tone_run, lambda: next(models), two_stages(), to("two", tone_run))


def test_one_applied_step_is_enough_for_a_stage(tone_run):
    assert run(tone_run, Model(bad=range(3, 17)), "train.max_bad_steps=100") == 0
    state = saved(tone_run).state
    assert (state["step"], state["updates"], state["bad"]) == (8, 1, 7)


def test_a_continued_run_ends_with_the_same_weights(tone_run):
    assert run(tone_run, Model(), to("whole", tone_run)) == 0
    opened = []
    with pytest.raises(UserError):
        run(tone_run, Model(bad=range(12, 100)), "train.max_bad_steps=1")
    assert saved(tone_run).state["step"] == 4
    assert run(tone_run, Model(), resume=True, opened=opened) == 0
    assert opened == [(0, {"n": 4})]
    same(everything(tone_run, "whole"), everything(tone_run))
    assert losses(tone_run) == losses(tone_run, "whole")


def test_a_signal_saves_the_step_that_was_done_and_leaves_with_75(tone_run):
    run(tone_run, Model(), to("whole", tone_run))
    assert run(tone_run, Model(stops_at=11)) == 75  # in step 6: it is done, step 7 is not begun
    assert saved(tone_run).state["step"] == 6
    assert [event["step"] for event in events(tone_run, "stopped")] == [6]
    assert run(tone_run, Model(), resume=True) == 0
    same(everything(tone_run, "whole"), everything(tone_run))
    assert losses(tone_run) == losses(tone_run, "whole")


def test_a_stop_right_after_a_checkpoint_does_not_write_it_again(tone_run):
    assert run(tone_run, Model(stops_at=11), "train.save_every=3") == 75  # in step 6
    assert [event["step"] for event in events(tone_run, "saved")] == [3, 6]


def test_metrics_tell_of_every_step_once_whatever_the_steps_between_rows(tone_run):
    """A step hears one second."""
    few = ("train.log_every=100", "train.save_every=3")
    assert run(tone_run, Model(stops_at=9), *few) == 75  # in step 5
    with pytest.raises(UserError):
        run(tone_run, Model(bad=(13,)), *few, "train.max_bad_steps=1", resume=True)  # in step 7
    assert run(tone_run, Model(), *few, resume=True) == 0
    logged = [row for row in rows(tone_run) if "loss" in row]
    assert [(row["step"], row["audio_seconds"]) for row in logged] == [(3, 3.0), (5, 2.0), (6, 1.0), (8, 2.0)]
    assert [len(row["ids"]) for row in logged] == [3, 2, 1, 2]


def test_a_stop_before_the_first_step_of_a_resume_writes_nothing_again(tone_run, monkeypatch):
    assert run(tone_run, Model(stops_at=11)) == 75  # in step 6
    monkeypatch.setattr(
        "uniaudio.train.loop.StageRun.announce", lambda self: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert run(tone_run, Model(), resume=True) == 75
    assert [event["step"] for event in events(tone_run, "saved")] == [4, 6]


def test_a_state_that_lacks_something_is_refused():
    with pytest.raises(UserError, match="does not hold bad; start a new run from its weights"):
        TrainState.from_state({name: 0 for name in vars(TrainState()) if name != "bad"})


def test_a_changed_learning_rate_holds_after_the_resume_too(tone_run):
    with pytest.raises(UserError):
        run(tone_run, Model(bad=range(12, 100)), "train.max_bad_steps=1")
    overrides = ["encoders.whisper.lr=5e-4", "stages.0.schedule=constant"]
    run(tone_run, Model(), *overrides, "train.weight_decay=0", to("no_decay", tone_run))
    run(tone_run, Model(), *overrides, "train.weight_decay=0.2", resume=True)
    last = [row for row in rows(tone_run) if "loss" in row][-1]
    assert last["lr"] == {"whisper": pytest.approx(5e-4), "adapter": pytest.approx(1e-3)}
    decayed, plain = everything(tone_run), everything(tone_run, "no_decay")
    assert not torch.equal(decayed["encoder.weight"], plain["encoder.weight"])


def test_the_start_of_an_adapter_is_fitted_once(tone_run, monkeypatch):
    fitted = []
    monkeypatch.setattr("uniaudio.train.stage_setup.cast_to_audio_lm", lambda model: model)
    monkeypatch.setattr(
        "uniaudio.train.stage_setup.start_adapter", lambda model, batches, count, encode: fitted.append(count)
    )
    ridge = ("adapter={kind: pool, start: ridge, start_examples: 7}", two_stages())
    run(tone_run, Model(stops_at=4), *ridge)
    assert saved(tone_run).state["step"] < 8
    run(tone_run, Model(), *ridge, resume=True)
    assert fitted == [7]


def test_stages_follow_each_other_and_max_steps_ends_inside_one(tone_run):
    opened = []
    run(tone_run, Model(), two_stages(), "train.max_steps=5", opened=opened)
    state = saved(tone_run).state
    assert opened == [(0, None), (1, None)]
    assert (state["step"], state["stage"], state["stage_step"], state["updates"]) == (5, 1, 2, 2)
    assert not state["stage_done"]
    opened.clear()
    run(tone_run, Model(), two_stages(), resume=True, opened=opened)
    assert opened == [(1, {"n": 2})]
    assert saved(tone_run).state["step"] == 6
    assert saved(tone_run).state["stage_done"]


def test_the_end_of_max_steps_is_not_the_end_of_a_stage(tone_run):
    run(tone_run, Model(), two_stages(), "train.max_steps=2")
    assert not saved(tone_run).state["stage_done"]
    opened = []
    run(tone_run, Model(), two_stages(), resume=True, opened=opened)
    assert opened == [(0, {"n": 2}), (1, None)]
    assert [saved(tone_run).state[key] for key in ("step", "stage", "stage_step")] == [6, 1, 3]


def builder(**how):
    return lambda: Model(**how)


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_two_stages_stopped_anywhere_and_continued_equal_the_uninterrupted_ones(tone_run, after, monkeypatch):
    stages = two_stages(second="steps: 3, merge_lora: false, layer_decay: 0.5")
    assert run(tone_run, builder(), stages, to("whole", tone_run)) == 0
    done = []
    real = StepFilter.account

    def account(self, norm, ids):
        applied = real(self, norm, ids)
        done.append(self.position.step)
        if len(done) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return applied

    monkeypatch.setattr(StepFilter, "account", account)
    opened = []
    assert run(tone_run, builder(), stages) == 75
    assert saved(tone_run).state["step"] == after
    assert run(tone_run, builder(), stages, resume=True, opened=opened) == 0
    same(everything(tone_run, "whole"), everything(tone_run))
    assert losses(tone_run) == losses(tone_run, "whole")
    whole = [saved(tone_run, folder).state for folder in ("whole", "out")]
    assert whole[0] == whole[1]


def test_a_run_killed_exactly_at_the_boundary_goes_on_in_the_next_stage(tone_run, monkeypatch):
    assert run(tone_run, builder(), two_stages(), to("whole", tone_run)) == 0
    real = TrainState.next_stage
    monkeypatch.setattr(TrainState, "next_stage", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tone_run, builder(), two_stages())
    state = saved(tone_run).state
    assert (state["step"], state["stage"], state["stage_done"]) == (3, 0, True)
    monkeypatch.setattr(TrainState, "next_stage", real)
    opened = []
    assert run(tone_run, builder(), two_stages(), resume=True, opened=opened) == 0
    assert opened == [(1, None)]
    same(everything(tone_run, "whole"), everything(tone_run))
    assert losses(tone_run) == losses(tone_run, "whole")


def test_a_stop_at_the_boundary_keeps_the_end_of_the_stage(tone_run):
    """What `continual` of the next stage measures from."""
    assert run(tone_run, Model(stops_at=6), two_stages()) == 75  # in the last step of the first stage
    assert find_stage_ends(tone_run.parent / "out")[0].keys() == {0}


def test_every_stage_has_a_fresh_optimizer(tone_run):
    run(tone_run, builder(), two_stages("steps: 3", "steps: 1"))
    state = saved(tone_run).state
    assert (state["stage"], state["updates"]) == (1, 1)
    tensors = everything(tone_run)
    squares = {n: t for n, t in tensors.items() if n.endswith("exp_avg_sq")}
    means = {n.replace("_sq", ""): tensors[n.replace("_sq", "")] for n in squares}
    beta1, beta2 = load_run(tone_run).train.betas
    for name, square in squares.items():  # after one update of a fresh AdamW both are of the one gradient
        mean = means[name.replace("_sq", "")]
        torch.testing.assert_close(square / (1 - beta2), (mean / (1 - beta1)) ** 2)


def test_hours_of_audio_end_a_stage_and_count_across_a_resume(tone_run):
    """A step hears one second: 6.5 s are over after seven steps."""
    stages = two_stages(f"hours: {6.5 / 3600}", "steps: 2")
    assert run(tone_run, builder(), stages, to("whole", tone_run)) == 0
    state = saved(tone_run, "whole").state
    assert (state["step"], state["stage"], state["stage_step"]) == (9, 1, 2)
    result = find_stage_ends(tone_run.parent / "whole")[0]
    ends = load_checkpoint(result[0]).state
    assert (ends["step"], ends["stage_seconds"], ends["stage_done"]) == (7, 7.0, True)
    opened = []
    assert run(tone_run, builder(stops_at=7), stages) == 75
    state = saved(tone_run).state
    assert (state["step"], state["stage_seconds"]) == (4, 4.0)
    assert run(tone_run, builder(), stages, resume=True, opened=opened) == 0
    assert opened == [(0, {"n": 4}), (1, None)]
    same(everything(tone_run, "whole"), everything(tone_run))
    lr = [row["lr"]["adapter"] for row in rows(tone_run, "whole") if "loss" in row][:7]
    assert lr == [row["lr"]["adapter"] for row in rows(tone_run) if "loss" in row][:7]
    expected = [0.5 * (1 + math.cos(math.pi * seen / 6.5)) * 1e-3 for seen in range(7)]
    assert lr == pytest.approx(expected)


def test_an_auxiliary_loss_is_a_function_of_the_mean_over_the_step_and_not_divided_by_tokens(
    tone_run, monkeypatch
):
    rows = []
    monkeypatch.setattr("uniaudio.train.loggers.Tracker.log", lambda self, row: rows.append(row))
    for auxiliary in (False, True):
        model = Model(auxiliary=auxiliary)
        nn.init.zeros_(model.adapter.weight)
        nn.init.zeros_(model.adapter.bias)  # the task loss is zero and flat
        run(tone_run, model, "train.max_steps=1", f"output_dir={tone_run.parent / str(auxiliary)}")
    assert rows[0]["grad_norm"] == 0.0
    assert "auxiliary" not in rows[0]
    mean = 1.5  # of the numbers 1 and 2 of the two micro-batches, before the square
    assert rows[1]["auxiliary"] == {"balance": pytest.approx((0.5 * mean) ** 2)}
    assert rows[1]["grad_norm"] == pytest.approx(2 * 0.5 * mean**2)


def test_auxiliary_losses_of_steps_that_are_left_out_do_not_count(tone_run):
    run(tone_run, Model(auxiliary=True, bad=(3,)), "train.max_steps=2", "train.log_every=2")
    [row] = [row for row in rows(tone_run) if "tasks" in row]
    assert row["auxiliary"] == {"balance": pytest.approx((0.5 * 1.5) ** 2)}  # of the batches 1 and 2


def test_any_seed_that_torch_takes_seeds_the_dropout(tone_run):
    run(tone_run, Model(), "train.max_steps=2", "seed=18446744073709551615", to("large", tone_run))
    run(tone_run, Model(), "train.max_steps=2", "seed=7", to("small", tone_run))
    assert not torch.equal(
        saved(tone_run, "large").model["encoder.weight"], saved(tone_run, "small").model["encoder.weight"]
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            r"accumulation_steps 4, but train.micro_batches is 2",
        ),
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"mixed_precision bf16, but train.precision is no"),
    ],
)
def test_the_launch_file_may_not_set_what_the_run_config_owns(
    tone_run, monkeypatch, variable, value, message
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        run(tone_run, Model())
