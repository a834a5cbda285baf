"""The padded forward: one graph for all lengths, and the frames of the packed one."""

import pytest
import torch
from conftest import tiny_whisper
from helpers.checkpoints import save_miniature

from uniaudio.commands.check_encoder import list_support
from uniaudio.config.encoders import EncoderConfig
from uniaudio.export.hf import make_noise
from uniaudio.export.hub_model import PaddedModel
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

SETTINGS = [
    {},
    {"pool": 2},
    {"pad_to": 3.0},
    {"pool": 2, "masked_padding": True},
    {"masked_padding": True},
    {"pool": 4, "pad_to": 1.0},
    {"tail_frames": 3},
    {"tail_frames": 40, "keep_tail": True, "pool": 2},
    {"tail_frames": 1500, "keep_tail": True},
    {"pad_to": 30.0, "pad_stride": 16, "tail_frames": 2},
    {"pad_to": 3.0, "pad_stride": 7, "pool": 2},
    {"pad_to": 3.01, "pad_stride": 7},  # half a frame more
]
FAMILIES = ["wav2vec2", "hubert", "wavlm", "data2vec-audio", "qwen2_audio", "audioflamingo3", "voxtral"]
SHORT = (23_456, 16_000, 7_777, 333, 1)


def load(kind: str, folder: object) -> AudioEncoder:
    save_miniature(kind, folder)
    return load_audio_encoder(EncoderConfig(path=str(folder)), "test").eval()


@torch.no_grad()
def assert_equal_frames(encoder: AudioEncoder, lengths: tuple[int, ...], model: object = None) -> None:
    audio = make_noise(lengths)
    samples, real = audio.pad()
    frames, mask, pooled = (PaddedModel(encoder) if model is None else model)(samples / 32768.0, real.long())
    wanted = encoder(audio).frames
    padded, wanted_mask = wanted.pad()
    assert torch.equal(mask, wanted_mask)
    torch.testing.assert_close(frames, padded, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, wanted.mean(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("lengths", [SHORT, (480_000, 479_700, 479_680), (500_000, 480_000, 9_000)], ids=str)
def test_whisper_in_every_setting(settings, lengths):
    assert_equal_frames(WhisperAudioEncoder(tiny_whisper(), **settings).eval(), lengths)


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_families(kind, tmp_path):
    assert_equal_frames(load(kind, tmp_path), SHORT)


@pytest.fixture(params=["whisper", "shared silence", "wavlm"])
def encoder(request, tmp_path):
    if request.param == "shared silence":  # as the configs of real models have it
        return WhisperAudioEncoder(tiny_whisper(), pad_to=30.0, pad_stride=16, tail_frames=2).eval()
    return load(request.param, tmp_path)


def test_one_exported_graph_serves_all_lengths(encoder):
    samples = torch.zeros(2, 16_000)
    program = torch.export.export(PaddedModel(encoder), (samples, torch.ones(2, 16_000, dtype=torch.int64)))
    for lengths in ((16_000, 5_000), (16_000, 16_000), (16_000, 401)):
        assert_equal_frames(encoder, lengths, program.module())


def test_a_full_graph_is_compiled(encoder):
    compiled = torch.compile(PaddedModel(encoder), fullgraph=True, backend="aot_eager")
    for lengths in ((16_000, 5_000), (16_000, 401)):
        assert_equal_frames(encoder, lengths, compiled)


def test_what_has_no_padded_forward_says_so(tmp_path):
    samples, real = torch.zeros(1, 900), torch.ones(1, 900)
    for kind, name in (("ast", "AstAudioEncoder"), ("glmasr", "GlmAsrAudioEncoder")):
        encoder = load(kind, tmp_path / kind)
        assert dict(list_support(encoder))["one graph for padded clips (make_padded of an export)"] == "no"
        with pytest.raises(ValueError, match=f"{name} has no forward of padded clips"):
            PaddedModel(encoder)(samples, real)
    with pytest.raises(ValueError, match="clips have at most 480080 samples here"):
        PaddedModel(load("hubert", tmp_path / "hubert"))(torch.zeros(1, 500_000), torch.ones(1, 500_000))
