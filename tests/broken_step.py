"""A process of two: three steps of a small model under named engines, with a NaN on one rank in the second step.

Usage: python broken_step.py ddp|fsdp2|zero0|zero1|zero2|zero3 ... The main process prints its figures as JSON in the
last line.
"""

import json
import math
import os
import sys
from itertools import chain
from types import SimpleNamespace

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from uniaudio.config.training import TrainConfig
from uniaudio.distributed import gather_objects, is_main, rank, shutdown_process_group, world_size
from uniaudio.launched_processes import end_without_teardown
from uniaudio.train.engines.accelerator import make_accelerator, make_engine
from uniaudio.train.skipped_steps import find_nonfinite_parameter

MICRO = 2  # micro-batches of a rank in a step
SWITCHES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_USE_FSDP",
    "FSDP_VERSION",
)


def accelerator_for(engine, **settings):
    """Return an accelerator as the launch file of an engine asks for it, and the config it was made with."""
    for switch in SWITCHES:
        os.environ.pop(switch, None)
    if engine.startswith("zero"):
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": engine[-1]}
    elif engine == "fsdp2":
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    AcceleratorState._reset_state(False)  # an accelerator drives one DeepSpeed engine
    GradientState._reset_state()
    config = SimpleNamespace(train=TrainConfig(**{"precision": "no", **settings}))
    accelerator = make_accelerator(config)
    if engine == "zero3":  # else weights as small as these would not be spread at all
        zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    return accelerator, config


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, hidden):
        return hidden + torch.tanh(self.inner(hidden))


class Body(nn.Module):
    _no_split_modules = ("Layer",)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Tiny(nn.Module):
    """Encoder, adapter and a frozen decoder of two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.adapter = nn.Linear(7, 6)
        self.decoder = nn.Module()
        self.decoder.lm = Body().requires_grad_(False)

    def forward(self, given):
        return self.decoder.lm(self.adapter(self.encoder(given))).square().sum()


def optimizer_of(model):
    groups = [{"params": list(part.parameters()), "lr": 1e-2} for part in (model.encoder, model.adapter)]
    return torch.optim.AdamW(groups, weight_decay=0.1)


def batch(step, place):
    """Return a micro-batch: a function of the step and its place among those of all ranks."""
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(100 * step + place))


def one_step(engine, config, step, poisoned):
    for index in range(MICRO):
        with engine.exchange(index == MICRO - 1):
            loss = engine.forward(batch(step, index * world_size() + rank()))
            objective = loss / (3 * MICRO)  # the mean over all rows, for ranks are averaged over
            if poisoned and rank() == 1 and index == 0:
                objective = objective * math.nan
            engine.backward(objective)
    return engine.step(config.train.clip)


def state(engine):
    """Return copies of all trained weights and moments."""
    result = {}
    for whole in engine.list_trained():
        result[whole.name] = whole.weight.clone()
        result |= {f"{whole.name}|{kind}": moment.clone() for kind, moment in whole.moments.items()}
    return result


def changed(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def through(name, steps, poisoned):
    """Go through steps; return norms, states after each, and the engine's name."""
    accelerator, config = accelerator_for(name, clip=0.05)
    model = Tiny()
    engine = make_engine(accelerator, model, optimizer_of(model), config)
    model.train()
    states, norms = [state(engine)], []
    for step in steps:
        norms.append(one_step(engine, config, step, step == poisoned))
        states.append(state(engine))
    message = engine.name
    engine.close()
    return norms, states, message


def alone(steps, clip):
    """Return the weights after the same steps of one process, by torch alone."""
    model = Tiny()
    optimizer = optimizer_of(model)
    for step in steps:
        places = range(MICRO * world_size())
        (sum(model(batch(step, place)) for place in places) / (3 * len(places))).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        assert norm > clip  # so that clipping is tested too
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def name_damage(name):
    """Return the parameter with NaN that is found in the shards of an engine."""
    accelerator, config = accelerator_for(name)
    model = Tiny()
    with torch.no_grad():
        model.adapter.weight[-1] = math.nan
    engine = make_engine(accelerator, model, optimizer_of(model), config)
    damaged = find_nonfinite_parameter(engine.plain)
    engine.close()
    return damaged


def main():
    message = {}
    for name in sys.argv[1:]:
        norms, states, engine = through(name, (1, 2, 3), poisoned=2)
        _, without, _ = through(name, (1, 3), poisoned=None)
        expected = alone((1, 3), 0.05)
        weights = states[-1]
        message[name] = {
            "engine": engine,
            "finite": gather_objects([math.isfinite(norm) for norm in norms]),
            "first step changed": not any(torch.equal(states[0][n], states[1][n]) for n in expected),
            "broken step changed": [*chain(*gather_objects(changed(states[1], states[2])))],
            "other than without it": [*chain(*gather_objects(changed(states[3], without[2])))],
            "off from one process": max(float((weights[n] - expected[n]).abs().max()) for n in expected),
            "damaged": gather_objects(name_damage(name)),
        }
    if is_main():
        print(json.dumps(message), flush=True)
    shutdown_process_group()


if __name__ == "__main__":
    with end_without_teardown():
        main()
