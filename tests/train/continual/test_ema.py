"""The moving average against its recursion."""

import pytest
import torch
from torch import nn

from uniaudio.train.continual.ema import MovingAverage


def model():
    torch.manual_seed(0)
    built = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    built[1].bias.requires_grad_(False)
    return built


def test_it_equals_the_recursion_for_what_is_trained():
    built = model()
    average = MovingAverage(built, decay=0.9)
    assert set(average.tensors) == {"0.weight", "0.bias", "1.weight"}
    history = []
    for _ in range(5):
        with torch.no_grad():
            for parameter in built.parameters():
                parameter += torch.randn_like(parameter)
        history.append({name: p.detach().clone().flatten().tolist() for name, p in built.named_parameters()})
        average.update(built)
    for name, tensor in average.tensors.items():
        for place, result in enumerate(tensor.flatten().tolist()):
            wanted = dict(model().named_parameters())[name].flatten()[place].item()
            for values in history:
                wanted = 0.9 * wanted + (1 - 0.9) * values[name][place]
            assert result == pytest.approx(wanted, rel=1e-12)


def test_it_is_apart_from_the_parameters_and_takes_no_gradient():
    built = model()
    average = MovingAverage(built, decay=0.5)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    built(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    average.update(built)
    with torch.no_grad():
        built[0].weight += 4
    average.update(built)
    torch.testing.assert_close(average.tensors["0.weight"], before["0.weight"] + 2)
    torch.testing.assert_close(built[0].weight.detach(), before["0.weight"] + 4)
    assert not any(tensor.requires_grad for tensor in average.tensors.values())


def test_it_continues_from_what_was_stored():
    built = model()
    whole, first = MovingAverage(built, 0.7), MovingAverage(built, 0.7)
    with torch.no_grad():
        built[0].weight *= 3
    whole.update(built)
    first.update(built)
    stored = {name: tensor.clone() for name, tensor in first.tensors.items()}
    resumed = MovingAverage(built, 0.7)
    resumed.load(stored)
    with torch.no_grad():
        built[0].weight -= 1
    whole.update(built)
    resumed.update(built)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name])
        assert stored[name] is not resumed.tensors[name]
    with pytest.raises(KeyError):
        resumed.load({"0.weight": stored["0.weight"]})
