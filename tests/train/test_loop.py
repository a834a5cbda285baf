"""The loop in one process with a stand-in for the model: what it does with bad numbers, stages and a continued run."""

from dataclasses import dataclass, field

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from uniaudio.config.run import load_run
from uniaudio.errors import UserError
from uniaudio.ragged import Ragged
from uniaudio.train.checkpoint import latest_checkpoint, load_checkpoint
from uniaudio.train.engine import make_accelerator
from uniaudio.train.loop import TrainParts, train
from uniaudio.types import Auxiliary, Batch, LossSum


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
    cost: float = 1.0
    drawn: dict = field(default_factory=dict)


def batch(n):
    """Two answer tokens; the samples hold the number of the batch."""
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
        1.0,
    )


class Model(nn.Module):
    """A line through the number of the batch; batches from ``breaks_at`` on have no finite loss."""

    def __init__(self, breaks_at=10**6, auxiliary=False):
        super().__init__()
        self.encoder, self.adapter = nn.Linear(1, 1), nn.Linear(1, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)
        self.dropout, self.breaks_at, self.auxiliary = nn.Dropout(0.5), breaks_at, auxiliary

    def forward(self, batch):
        n = batch.audio.values[:1].float()
        loss = self.adapter(self.dropout(self.encoder((n / 8)[:, None]).expand(16, 1))).square().mean()
        if int(n) >= self.breaks_at:
            loss = loss / 0
        sums = self.encoder.weight[0] * n
        extra = {"balance": Auxiliary(sums, 1.0, lambda mean: mean[0] ** 2)} if self.auxiliary else {}
        return LossSum(2 * loss, 2, torch.tensor([[2 * loss.item(), 2, 1]]), extra)

    def trainable_state(self):
        return {name: p.detach().clone() for name, p in self.named_parameters()}

    def load_trainable_state(self, state):
        self.load_state_dict(state)


def parts(model, opened=None):
    def open_steps(stage, state):
        if opened is not None:
            opened.append((stage, state))
        n = state["n"] if state else 0
        while True:
            n += 1
            yield Step((batch(2 * n - 1), batch(2 * n)), Place(n))

    return TrainParts(
        model, open_steps, lambda states: states[0], ("tone",), {"decoder": {"path": "none"}}, model.auxiliary
    )


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def run(config_path, model, *overrides, resume=False, opened=None):
    config = load_run(config_path, ["train.precision=no", *overrides])
    return train(parts(model, opened), config, make_accelerator(config), resume)


def saved(config_path, *overrides):
    return load_checkpoint(latest_checkpoint(config_path.parent / "out"))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_and_names_the_examples(tone_run):
    model = Model(breaks_at=10)
    with pytest.raises(UserError, match=r"gradient of step 5 is not finite; .*: tones/9, tones/10$"):
        run(tone_run, model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert saved(tone_run).state["step"] == 4


def test_a_continued_run_ends_with_the_same_weights(tone_run, tmp_path):
    whole = Model()
    assert run(tone_run, whole, f"output_dir={tmp_path / 'whole'}") == 0
    opened = []
    with pytest.raises(UserError):
        run(tone_run, Model(breaks_at=12))
    continued = Model()
    assert run(tone_run, continued, resume=True, opened=opened) == 0
    assert opened == [(0, {"n": 4})]
    for name, value in whole.trainable_state().items():
        assert torch.equal(continued.trainable_state()[name], value), name


def test_a_changed_learning_rate_holds_after_the_resume_too(tone_run):
    with pytest.raises(UserError):
        run(tone_run, Model(breaks_at=12))
    run(tone_run, Model(), "encoders.whisper.lr=5e-4", "train.weight_decay=0.2", resume=True)
    groups = saved(tone_run).optimizer["param_groups"]
    assert {(g["component"], g["peak_lr"]) for g in groups} == {("whisper", 5e-4), ("adapter", 1e-3)}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.2}


def test_stages_follow_each_other_and_max_steps_ends_inside_one(tone_run, tmp_path):
    stage = "{name: %s, recipe: tone_recipe, steps: 3, budget: {audio_seconds: 6}}"
    stages = f"stages=[{stage % 'a'}, {stage % 'b'}]"
    opened = []
    run(tone_run, Model(), stages, "train.max_steps=5", opened=opened)
    state = saved(tone_run).state
    assert opened == [(0, None), (1, None)]
    assert (state["step"], state["stage"], state["stage_step"]) == (5, 1, 2)
    opened.clear()
    run(tone_run, Model(), stages, resume=True, opened=opened)
    assert opened == [(1, {"n": 2})]
    assert saved(tone_run).state["step"] == 6


def test_an_auxiliary_loss_is_a_function_of_the_mean_over_the_step_and_not_divided_by_tokens(
    tone_run, monkeypatch
):
    rows = []
    monkeypatch.setattr("uniaudio.train.track.Tracker.log", lambda self, row: rows.append(row))
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
