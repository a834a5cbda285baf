"""A process of two: trains a MoWE and a mixture of experts whose ranks route differently, under a named engine.

Usage: python uneven_ranks.py ddp|zero1|zero2|zero3. The main process prints its figures as JSON in the last line.
"""

import json
import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import nn

from uniaudio.distributed import gather_objects, is_main, rank
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.fusion.moe import MoeFusion
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.ragged import Ragged
from uniaudio.train.auxiliary import AuxiliaryLosses
from uniaudio.types import Encoded


class Little(AudioEncoder):
    """One frame per 640 samples: its level through a small network."""

    frame_rate, reach, dim, layer_dims = 25.0, None, 8, (8,)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))
        self.heard = []

    def num_frames(self, samples):
        return max(1, samples // 640)

    def forward(self, audio, layers=False, masks=None):
        self.heard.append(len(audio))
        counts = torch.tensor([self.num_frames(n) for n in audio.lengths.tolist()])
        rows = [
            nn.functional.pad(wave.float(), (0, 640))[: c * 640].view(c, 640)
            for wave, c in zip(audio.rows(), counts.tolist(), strict=True)
        ]
        frames = torch.cat(rows)
        levels = torch.stack([frames.mean(1), frames.abs().mean(1)], 1)
        return Encoded(Ragged(self.net(levels), counts))


def make_accelerator(engine):
    gloo = [InitProcessGroupKwargs(backend="gloo")]
    if engine == "ddp":
        return Accelerator(cpu=True, kwargs_handlers=gloo)
    plugin = DeepSpeedPlugin(zero_stage=int(engine[-1]), gradient_accumulation_steps=1)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    return Accelerator(cpu=True, deepspeed_plugin=plugin, kwargs_handlers=gloo)


class Routed(nn.Module):
    """The encoder, with routes set by rank."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, given):
        encoded = self.encoder(given)
        frames = encoded.frames
        return frames.values, dict(getattr(encoded, "losses", {}))


def steps(accelerator, model, given, steps=3):
    """Three steps of the same batch towards zero frames, auxiliary losses included."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    losses = []
    for _ in range(steps):
        values, auxiliary = model(given)
        collected = AuxiliaryLosses()
        collected.add(auxiliary)
        extra, _ = collected.objective()
        loss = values.square().mean()
        accelerator.backward(loss + extra)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(gather_objects(loss.item())) / 2)
    return losses, model


def main():
    engine = sys.argv[1]
    accelerator = make_accelerator(engine)
    torch.manual_seed(0)
    encoders = {"base": Little(), "first": Little(), "second": Little(), "third": Little()}
    mowe = MoweEncoder(encoders, 25.0, routers="dependent")
    own = rank()

    def route(read, owner=None, prompts=None, weigh=mowe.dependent.weigh):
        pull = torch.zeros(3)
        pull[own] = 5.0  # this rank's clips all go to one weak encoder
        return (weigh(read) + pull).softmax(-1)

    mowe.dependent.forward = route
    generator = torch.Generator().manual_seed(rank())
    audio = Ragged(torch.randn(16_000, generator=generator), torch.tensor([6_000, 10_000]))
    routed, model = steps(accelerator, Routed(mowe), audio)
    inner = accelerator.unwrap_model(model).encoder
    heard = gather_objects([inner.encoders[name].heard[0] for name in ("first", "second", "third")])

    class Experts(nn.Module):
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

    if engine != "ddp":  # an accelerator drives one DeepSpeed engine
        accelerator.state._reset_state(True)
        accelerator = make_accelerator(engine)
    frames = Ragged(torch.randn(7, 4, generator=generator), torch.tensor([3, 4]))
    mixed, _ = steps(accelerator, Experts(), frames)
    if is_main():
        print(json.dumps({"engine": engine, "mowe": routed, "moe": mixed, "heard": heard}), flush=True)
    accelerator.wait_for_everyone()
    os._exit(0)  # gloo's threads may outlive the interpreter's own clean-up and abort it


main()
