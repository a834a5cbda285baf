"""A process of two: trains a MoWE and a mixture of experts whose ranks route differently, under named engines.

Usage: python uneven_ranks.py ddp|zero0|zero1|zero2|zero3|fsdp2 ... The main process prints its figures as JSON in the
last line. Under some engines it also trains a model that leaves parts out.
"""

import json
import sys

import torch
from broken_step import accelerator_for
from torch import nn

from uniaudio.distributed import gather_objects, is_main, rank, shutdown_process_group, world_size
from uniaudio.launched_processes import end_without_teardown
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.fusion.moe import MoeFusion
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.ragged import Ragged
from uniaudio.train.auxiliary_losses import AuxiliaryLosses
from uniaudio.train.engines.accelerator import make_engine
from uniaudio.types import Encoded

LEAVE_OUT = ("ddp", "fsdp2")  # engines under which a micro-batch may leave out parts of the model
MICRO = 2  # micro-batches of a rank in a step of such a model


class Little(AudioEncoder):
    """One frame per 640 samples: its level through a small network."""

    frame_rate, reach, dim, layer_dims = 25.0, None, 8, (8,)
    calls_by_clip = False

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))
        self.seen = []

    def num_frames(self, samples):
        return max(1, samples // 640)

    def forward(self, audio, layers=False, masks=None):
        self.seen.append(len(audio))
        counts = torch.tensor([self.num_frames(n) for n in audio.lengths.tolist()])
        rows = [
            nn.functional.pad(wave.float(), (0, 640))[: c * 640].view(c, 640)
            for wave, c in zip(audio.rows(), counts.tolist(), strict=True)
        ]
        frames = torch.cat(rows)
        levels = torch.stack([frames.mean(1), frames.abs().mean(1)], 1)
        return Encoded(Ragged(self.net(levels), counts))


class Routed(nn.Module):
    """The encoder, with routes set by rank."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, given):
        encoded = self.encoder(given)
        frames = encoded.frames
        return frames.values, dict(getattr(encoded, "losses", {}))


def steps(name, model, given, steps=3):
    """Three steps of the same batch towards zero frames, auxiliary losses included; return losses and weights."""
    accelerator, config = accelerator_for(name, clip=1e9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine = make_engine(accelerator, model, optimizer, config)
    assert engine.name == name
    model.train()
    losses = []
    for _ in range(steps):
        with engine.exchange(True):
            values, auxiliary = engine.forward(given)
            collected = AuxiliaryLosses()
            collected.add(auxiliary)
            extra, _ = collected.compute_objective()
            loss = values.square().mean()
            engine.backward(loss + extra)
        assert engine.step(config.train.clip) < 1e9
        losses.append(sum(gather_objects(loss.item())) / 2)
    weights = {whole.name: whole.weight.sum().item() for whole in engine.list_trained()}
    assert gather_objects(weights) == [weights] * 2  # the ranks agree
    engine.close()
    return losses, weights


class Experts(nn.Module):
    """A mixture of four experts whose first rank's frames go to the first one, and so on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.moe = MoeFusion(("a", "b"), (4, 4), 8, project=False, experts=4, top_k=1)
        self.moe.router.register_forward_hook(self.pull)

    def pull(self, module, inputs, output):
        favourite = torch.zeros(4)
        favourite[rank()] = 20.0
        return output + favourite

    def forward(self, given):
        fused = self.moe([[given], [given]])
        return fused.frames.values, dict(fused.losses)


class Parts(nn.Module):
    """Four linear maps, of which a micro-batch goes through one; the last is never reached."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, given, chosen):
        return self.maps[chosen](given).square().sum()


def part_batch(step, place):
    """Return a micro-batch and the map that it goes through: others on each rank, in each micro-batch and step."""
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * step + place))
    return rows, (step + place) % 3


def part_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def parts_alone(steps):
    """Return the weights after steps of one process by torch alone; what has no gradient counts as having one of 0."""
    model = Parts()
    optimizer = part_optimizer(model)
    for step in range(steps):
        places = range(MICRO * world_size())
        (sum(model(*part_batch(step, place)) for place in places) / len(places)).backward()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def parts_under(name, steps=4):
    """Return how far the weights of both ranks are from those of one process after steps of two micro-batches."""
    accelerator, config = accelerator_for(name, clip=1e9)
    model = Parts()
    engine = make_engine(accelerator, model, part_optimizer(model), config)
    for step in range(steps):
        for index in range(MICRO):
            with engine.exchange(index == MICRO - 1):
                loss = engine.forward(*part_batch(step, index * world_size() + rank()))
                engine.backward(loss / MICRO)  # ranks are averaged over
        engine.step(config.train.clip)
    expected = parts_alone(steps)
    off = [(whole.weight - expected[whole.name]).abs().max().item() for whole in engine.list_trained()]
    assert len(off) == len(expected)
    engine.close()
    return max(max(of_rank) for of_rank in gather_objects(off))


def mowe_by_rank():
    """Return a MoWE in which all clips of a rank go to one weak encoder."""
    torch.manual_seed(0)
    encoders = {"base": Little(), "first": Little(), "second": Little(), "third": Little()}
    mowe = MoweEncoder(encoders, 25.0, routers="dependent")

    def route(read, owner=None, prompts=None, weigh=mowe.dependent.weigh):
        pull = torch.zeros(3)
        pull[rank()] = 5.0
        return (weigh(read) + pull).softmax(-1)

    mowe.dependent.forward = route
    return mowe


def under(engine):
    """Train both under an engine; return losses, clips heard by each weak encoder on both ranks, and weights."""
    accelerator_for(engine)  # the ranks meet
    mowe = mowe_by_rank()
    generator = torch.Generator().manual_seed(rank())
    audio = Ragged(torch.randn(16_000, generator=generator), torch.tensor([6_000, 10_000]))
    routed, weights = steps(engine, Routed(mowe), audio)
    seen = gather_objects([mowe.encoders[name].seen[0] for name in ("first", "second", "third")])
    frames = Ragged(torch.randn(7, 4, generator=generator), torch.tensor([3, 4]))
    mixed, more = steps(engine, Experts(), frames)
    figures = {"mowe": routed, "moe": mixed, "clips_seen": seen, "weights": [weights, more]}
    return {**figures, "parts_off": parts_under(engine)} if engine in LEAVE_OUT else figures


def main():
    message = {engine: under(engine) for engine in sys.argv[1:]}
    if is_main():
        print(json.dumps(message), flush=True)
    shutdown_process_group()


if __name__ == "__main__":
    with end_without_teardown():
        main()
