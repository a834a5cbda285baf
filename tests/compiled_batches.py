"""A process of its own: batches of ever other lengths through plain layers and through compiled ones.

Usage: python compiled_batches.py CASE ..., with cases such as "whisper dtype=float64 backend=aot_eager kernel=1
recompute=1 lora=1 frozen=1 fp8=1 deep=1 batches=12", where all but the encoder may be left out. Prints, as JSON in the
last line, for each case compiled graphs after every batch and how far losses and gradients are from the plain ones. The
checker of shapes is not active here: the compiler would look into it.
"""

import json
import sys

import torch
from helpers.checkpoints import MINIATURES
from plain_kernel import register
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForCausalLM

from uniaudio.model import attention
from uniaudio.model.compile import compile_layers
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.qwen_omni import OmniAudioEncoder
from uniaudio.model.encoders.wav2vec2 import WaveAudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fp8 import convert_to_float8
from uniaudio.model.lora import add_lora
from uniaudio.ragged import Ragged

ENCODERS = {"whisper": WhisperAudioEncoder, "qwen2_5_omni": OmniAudioEncoder, "qwen3_omni": OmniAudioEncoder}
WIDTH = 64
takes_kernel = attention.takes_kernel


class Reader(torch.nn.Module):
    """An encoder whose frames a frozen Qwen3 reads, and with ``deep`` features behind its first two layers."""

    def __init__(self, encoder, dtype, deep=False):
        super().__init__()
        config = Qwen3Config(
            vocab_size=100,
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        )
        self.encoder = encoder.to(dtype)
        self.map = torch.nn.Linear(encoder.dim, WIDTH * (3 if deep else 1), dtype=dtype)
        self.decoder = TextDecoder(Qwen3ForCausalLM(config).to(dtype))
        if deep:
            self.decoder.inject_after([1, 0])
        self.register_buffer("probe", torch.randn(WIDTH, dtype=dtype))

    def forward(self, audio):
        frames = self.encoder(audio).frames
        hidden = self.decoder.hidden(frames.with_values(self.map(frames.values)))
        return (hidden @ self.probe).square().mean()


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        rows = 1 + index * 5 % 7
        lengths = torch.randint(800, 24_000, (rows,), generator=generator)
        values = torch.randint(-9_000, 9_000, (int(lengths.sum()),), dtype=torch.int16, generator=generator)
        yield Ragged(values, lengths)


def results(model, count):
    """Return losses, gradients and the graphs compiled so far, for every batch."""
    result = []
    for index, batch in enumerate(batches(count)):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(index)
        loss = model(batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        result.append((loss.item(), gradients, counters["stats"]["unique_graphs"]))
    return result


def compared(kind, **given):
    """Run plain and compiled layers over the same batches; nothing is left of what was compiled before."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    dtype = getattr(torch, given.get("dtype", "float32"))
    stock = MINIATURES[kind]()
    encoder = ENCODERS.get(kind, WaveAudioEncoder)(stock)
    model = Reader(encoder, dtype, "deep" in given).train()
    attention.takes_kernel = (lambda query, dropout: dropout == 0) if "kernel" in given else takes_kernel
    if "lora" in given:
        add_lora(model.encoder, 4, 8, 0.0, "all")
        add_lora(model.decoder.lm.base_model, 4, 8, 0.0, "qkv")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    if "frozen" in given:
        model.encoder.requires_grad_(False).eval()
    if "fp8" in given:
        model.decoder.requires_grad_(False)
        convert_to_float8(model.decoder.lm.base_model)
    if "recompute" in given:
        model.encoder.recompute()
        model.decoder.recompute()
        model.train()
    names = [name for name, _ in model.named_parameters()]
    count = int(given.get("batches", 12))
    plain = results(model, count)
    stacks = compile_layers(model, given.get("backend", "aot_eager"))
    compiled = results(model, count)
    assert [name for name, _ in model.named_parameters()] == names
    apart = [
        float((ours[name] - single).norm() / single.norm().clamp(min=1e-30))
        for (_, single_gradients, _), (_, ours, _) in zip(plain, compiled, strict=True)
        for name, single in single_gradients.items()
        if single.norm() > 1e-7
    ]
    model.eval()
    with torch.no_grad():
        for batch in batches(3):
            model(batch)
    return {
        "stacks": stacks,
        "graphs": [graphs for _, _, graphs in compiled],
        "with_evaluation": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "loss": max(abs(a - b) / abs(a) for (a, _, _), (b, _, _) in zip(plain, compiled, strict=True)),
        "gradient": max(apart),
        "gradients": len(apart),
    }


def described(case):
    kind, *pairs = case.split()
    return kind, dict(pair.split("=") for pair in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    register()
    message = {}
    for case in sys.argv[1:]:
        kind, given = described(case)
        message[case] = compared(kind, **given)
    print(json.dumps(message))
