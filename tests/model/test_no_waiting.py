"""The step never waits for the device: on the meta device, where nothing has a value, whoever reads one fails."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper

from uniaudio.build.fusion import fuse
from uniaudio.config.fusion import GateConfig
from uniaudio.data.collate import collate
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import Example


class WrittenIds:
    """Stands for a chat format: texts are token ids, written as numbers."""

    def encode_prompt(self, pieces):
        return [[int(word) for word in piece.split()] for piece in pieces]

    def answer(self, text):
        return [int(word) for word in text.split()]


def single():
    return WhisperAudioEncoder(tiny_whisper())


def gated():
    parts = {"one": WhisperAudioEncoder(tiny_whisper(0)), "other": WhisperAudioEncoder(tiny_whisper(1))}
    return fuse(GateConfig(kind="gate"), parts, None)


def batch_for(model):
    lengths = (16000, 5000, 700, 33 * 16000)
    examples = [Example(str(n), "a", "d", (np.ones(n, np.int16),), ("1 2", "3"), "4 5 6") for n in lengths]
    return collate(examples, WrittenIds(), model.count_slots, ("a", "b"))


@pytest.fixture
def without_autocast(monkeypatch):
    """Leave out autocast on the meta device, which torch does not have."""
    real = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **given: nullcontext() if kind == "meta" else real(kind, **given)
    )


@pytest.mark.parametrize("encoder", [single, gated])
def test_forward_and_backward_read_no_value_of_the_device(encoder, without_autocast):
    encoder = encoder()
    model = AudioLM(encoder, StackAdapter(encoder.dim, encoder.frame_rate, 64), TextDecoder(tiny_qwen()))
    batch = batch_for(model)
    model.to("meta").train()
    loss = model(batch.to("meta"))
    loss.total.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in trained)
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    assert norm.is_meta


def test_reading_a_value_fails_there():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").sum().item()
