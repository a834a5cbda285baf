"""Penalties and Fisher information against their written equations, and the file that keeps the latter."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.lora import add_lora
from uniaudio.ragged import Ragged
from uniaudio.train.continual.l2_sp_ewc import (
    Anchor,
    copy_parameters,
    estimate_fisher,
    find_anchored_parameters,
    iterate_answers,
    load_or_estimate_fisher,
)
from uniaudio.types import Batch


@dataclass(frozen=True)
class Row:
    """One example: features and its answer tokens."""

    x: Tensor
    answers: tuple[int, ...]

    @property
    def answer_tokens(self):
        return len(self.answers)

    def to(self, device):
        return self


@dataclass(frozen=True)
class Total:
    total: Tensor


class Model(nn.Module):
    """A softmax over 4 answers; ``unused`` takes part in nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.adapter, self.unused = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)
        self.double()

    def forward(self, row):
        logits = self.adapter(self.dropout(self.encoder(row.x).tanh())).log_softmax(-1)
        return Total(-sum(logits[answer] for answer in row.answers))


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Row(torch.randn(3, generator=generator, dtype=torch.float64), tuple(range(i % 3 + 1)))
        for i in range(count)
    ]


def moved(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@given(st.floats(0.01, 100), st.integers(0, 1000), st.booleans())
def test_penalty_and_gradient_equal_the_equation(weight, seed, weighed):
    model = Model()
    start = copy_parameters({n: p for n, p in model.named_parameters() if n.startswith("encoder")})
    fisher = {n: torch.rand_like(t) for n, t in start.items()} if weighed else None
    anchor = Anchor(start, weight, fisher)
    assert anchor.compute_penalty(model).item() == 0
    moved(model, seed)
    penalty = anchor.compute_penalty(model)
    penalty.backward()
    wanted = 0.0
    for name, parameter in model.named_parameters():
        if name not in start:
            assert parameter.grad is None
            continue
        for place in range(parameter.numel()):
            information = fisher[name].flatten()[place].item() if weighed else 1.0
            apart = parameter.flatten()[place].item() - start[name].flatten()[place].item()
            wanted += weight / 2 * information * apart**2
            slope = parameter.grad.flatten()[place].item()
            assert slope == pytest.approx(weight * information * apart, rel=1e-9, abs=1e-12)
    assert penalty.item() == pytest.approx(wanted, rel=1e-9)


def test_the_penalty_pulls_back_to_the_start():
    model = Model()
    anchor = Anchor(copy_parameters(dict(model.encoder.named_parameters(prefix="encoder"))), 1.0)
    moved(model)
    first = anchor.compute_penalty(model).item()
    for _ in range(50):
        model.zero_grad()
        anchor.compute_penalty(model).backward()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter -= 0.3 * parameter.grad
    assert anchor.compute_penalty(model).item() < 1e-9 * first


def manual_fisher(model, examples):
    """Squares of every example's own gradient, each derivative by central differences."""
    result = {}
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        squares = torch.zeros_like(flat)
        for row in examples:
            for place in range(len(flat)):
                old, step, sides = flat[place].item(), 1e-6, []
                for side in (step, -step):
                    flat[place] = old + side
                    with torch.no_grad():
                        sides.append(model(row).total.item())
                flat[place] = old
                squares[place] += ((sides[0] - sides[1]) / (2 * step)) ** 2
        result[name] = (squares / len(examples)).view_as(parameter)
    return result


def test_fisher_is_the_mean_of_squared_gradients_example_by_example():
    model = Model()
    model.train()
    examples = rows(6)
    parameters = dict(model.named_parameters())
    result = estimate_fisher(model, parameters, iter(examples), 4)
    assert model.training
    model.eval()  # it was measured without dropout
    wanted = manual_fisher(model, examples[:4])
    for name, value in result.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-9)
        assert not value.requires_grad
    assert result["encoder.weight"].min() > 0
    assert not result["unused.weight"].any()
    assert all(p.grad is None for p in model.parameters())
    # the square of the mean gradient would be something else
    mean = torch.autograd.grad(sum(model(r).total for r in examples[:4]) / 4, [model.encoder.weight])[0]
    assert (mean.square() - result["encoder.weight"]).abs().max() > 1e-2


def test_examples_without_answers_count_for_nothing():
    model = Model().eval()
    parameters = dict(model.named_parameters())
    with_empty = [rows(2)[0], Row(torch.zeros(3, dtype=torch.float64), ()), rows(2)[1]]
    result = estimate_fisher(model, parameters, with_empty, 3)
    wanted = estimate_fisher(model, parameters, rows(2), 2)
    for name in result:
        torch.testing.assert_close(result[name], wanted[name])


def test_every_answer_about_a_clip_is_one_example():
    none, labels = torch.zeros(0, dtype=torch.long), torch.tensor([7, 8, 9])
    batch = Batch(
        audio=Ragged(torch.zeros(4, dtype=torch.int16), torch.tensor([4])),
        tokens=Ragged(torch.arange(7), torch.tensor([3, 4])),
        audio_positions=none,
        audio_index=none,
        label_positions=torch.tensor([1, 4, 5]),
        labels=labels,
        label_task=torch.tensor([1, 0, 0]),
        masks=torch.zeros(0, 4, dtype=torch.long),
        example_clips=Ragged(torch.tensor([0, 0]), torch.tensor([1, 1])),
        example_task=torch.tensor([1, 0]),
        prompt_lengths=torch.tensor([2, 2]),
        tasks=("a", "b"),
        ids=("x?b", "x?a"),
        audio_tokens=0,
        audio_seconds=0.1,
    )
    parts = list(iterate_answers([batch]))
    assert [part.labels.tolist() for part in parts] == [[7], [8, 9]]
    assert [part.label_positions.tolist() for part in parts] == [[1], [4, 5]]
    assert [part.label_task.tolist() for part in parts] == [[1], [0, 0]]
    assert all(part.tokens is batch.tokens for part in parts)


def test_fisher_is_read_back_and_not_measured_again(tmp_path):
    model = Model()
    parameters = {"encoder.weight": model.encoder.weight, "encoder.bias": model.encoder.bias}
    path = tmp_path / "fisher" / "one.safetensors"
    first = load_or_estimate_fisher(path, model, parameters, rows(3), 3, is_resumed=False)
    assert sorted(file.name for file in path.parent.iterdir()) == ["one.safetensors", "one.sha256"]
    wanted = estimate_fisher(model, parameters, rows(3), 3)
    moved(model)

    def never():
        raise AssertionError("measured again")
        yield

    again = load_or_estimate_fisher(path, model, parameters, never(), 3, is_resumed=True)
    for name in parameters:
        assert torch.equal(again[name], first[name])
        torch.testing.assert_close(first[name], wanted[name])


def test_a_file_about_other_parameters_is_not_taken(tmp_path):
    """It is of an earlier try with another ``on``: what is kept must be of what is held."""
    model = Model()
    path = tmp_path / "one.safetensors"
    load_or_estimate_fisher(
        path, model, {"encoder.weight": model.encoder.weight}, rows(3), 3, is_resumed=True
    )
    more = {"encoder.weight": model.encoder.weight, "encoder.bias": model.encoder.bias}
    result = load_or_estimate_fisher(path, model, more, rows(3), 3, is_resumed=True)
    wanted = estimate_fisher(model, more, rows(3), 3)
    assert result.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(result[name], wanted[name])


def test_what_is_there_when_a_stage_begins_is_not_taken(tmp_path):
    """It is of a try that was given up, with other weights or other examples."""
    model = Model()
    path, parameters = tmp_path / "one.safetensors", {"encoder.weight": model.encoder.weight}
    load_or_estimate_fisher(path, model, parameters, rows(3), 3, is_resumed=False)
    moved(model)
    result = load_or_estimate_fisher(path, model, parameters, rows(3), 3, is_resumed=False)
    wanted = estimate_fisher(model, parameters, rows(3), 3)
    torch.testing.assert_close(result["encoder.weight"], wanted["encoder.weight"])
    again = load_or_estimate_fisher(path, model, parameters, (), 3, is_resumed=True)
    assert torch.equal(again["encoder.weight"], result["encoder.weight"])


def test_what_can_be_held_is_trained_in_full_and_matches():
    model = Model()
    assert list(find_anchored_parameters(model, "^encoder", "w")) == ["encoder.weight", "encoder.bias"]
    model.encoder.bias.requires_grad_(False)
    assert list(find_anchored_parameters(model, "^encoder|^adapter", "w")) == [
        "encoder.weight",
        "adapter.weight",
        "adapter.bias",
    ]
    assert find_anchored_parameters(model, "weight$", "w")["encoder.weight"] is model.encoder.weight


@pytest.mark.parametrize("why", ["no match", "frozen", "low-rank"])
def test_nothing_to_hold_is_refused(why):
    model = Model()
    if why == "frozen":
        model.encoder.requires_grad_(False)
    if why == "low-rank":
        add_lora(model, 2, 4, 0.0, ["^encoder"])
    with pytest.raises(UserError, match=r"stages\.a\.continual\.ewc\.on: '.*' matches no parameter that"):
        find_anchored_parameters(
            model, "^encodre" if why == "no match" else "^encoder", "stages.a.continual.ewc"
        )


def test_copies_stay_where_they_were():
    model = Model()
    kept = copy_parameters(dict(model.named_parameters()))
    before = model.encoder.weight.detach().clone()
    moved(model)
    assert torch.equal(kept["encoder.weight"], before)
    assert not kept["encoder.weight"].requires_grad
