"""ONNX files against torch, and padded twins against the packed encoders."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.fusion import FusionConfig
from uniaudio.errors import UserError
from uniaudio.export.trial import padded_noise
from uniaudio.export.twins import padded_twin
from uniaudio.miniature.checkpoints import save_miniature
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.fusion.choose import fuse
from uniaudio.ragged import Ragged

FUSED = {
    "concat": {"kind": "concat", "start": "random", "rate": 20.0},
    "sum": {"kind": "sum", "start": "random", "align": "linear"},
    "mix": {"kind": "mix", "start": "random", "align": "linear", "rate": 30.0},
    "gate": {"kind": "gate", "stft": {"mels": 16, "gamma": 0.5}},
    "explicit": {"kind": "explicit"},
}
WAVES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
TWINS = ("whisper", "whisper, 128 mels", "qwen2_audio", "audioflamingo3", *WAVES, *FUSED)
REFUSED = ("qwen2_5_omni", "ast", "clap", "mimi", "w2v_bert")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Encoders of a family, made once."""
    folder, made = tmp_path_factory.mktemp("miniatures"), {}

    def loaded(kind, **how):
        key = (kind, *how.items())
        if key not in made and kind in FUSED:
            made[key] = fused(FUSED[kind], {name: single(name) for name in ("whisper", "wavlm")})
        elif key not in made:
            made[key] = single(kind, **how)
        return made[key]

    def single(kind, **how):
        save_miniature(kind, folder / kind)
        return load_audio_encoder(EncoderConfig(path=str(folder / kind), **how), "test").eval()

    def fused(how, parts):
        torch.manual_seed(0)
        encoder = fuse(TypeAdapter(FusionConfig).validate_python(how), parts)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return encoder.eval()

    return loaded


@torch.no_grad()
def assert_twin_is_equal(encoder, lengths):
    samples, counts = padded_noise(lengths)
    samples = samples + 0.3 * (
        torch.arange(samples.shape[1])[None] >= counts[:, None]
    )  # padding is not heard
    frames, found = padded_twin(encoder)(samples, counts)
    wanted = encoder(Ragged.from_padded(samples, counts)).frames
    assert found.tolist() == wanted.lengths.tolist()
    assert frames.shape[1] == encoder.num_frames(samples.shape[1])
    for row, own in enumerate(wanted.rows()):
        torch.testing.assert_close(frames[row, : len(own)], own, atol=2e-5, rtol=1e-4)
        assert not frames[row, len(own) :].any()


@pytest.mark.parametrize("kind", TWINS)
@settings(max_examples=5)
@given(lengths=st.lists(st.integers(1, 20_000), min_size=1, max_size=3))
def test_twins_give_the_encoders_frames_at_any_lengths(load, kind, lengths):
    assert_twin_is_equal(load(kind), lengths)


@pytest.mark.parametrize("kind", TWINS)
def test_twins_at_the_longest_clip(load, kind):
    """A clip that fills 30 s is mirrored at the end of its log-mel."""
    longest = padded_twin(load(kind)).longest
    assert_twin_is_equal(load(kind), (longest, longest - 1, 100))


def test_a_twin_with_silence_up_to_a_length(load):
    encoder = load("whisper", pad_to=2.0)
    assert_twin_is_equal(encoder, (5_000, 100))
    assert_twin_is_equal(encoder, (50_000, 100))


@pytest.mark.parametrize("kind", REFUSED)
def test_families_without_a_twin_say_so(load, kind):
    with pytest.raises(UserError, match="cannot be exported so, only Whisper"):
        padded_twin(load(kind))


def test_operators_and_settings_without_a_twin_say_so(load):
    parts = {"whisper": load("whisper"), "wavlm": load("wavlm")}
    for how, name in (
        ({"kind": "wq", "heads": 2, "head_dim": 8}, "WqFusion"),
        ({"kind": "mowe"}, "MoweEncoder"),
    ):
        encoder = fuse(TypeAdapter(FusionConfig).validate_python(how), parts)
        with pytest.raises(UserError, match=f"{name} cannot be exported so"):
            padded_twin(encoder)
    with pytest.raises(UserError, match="tail_frames"):
        padded_twin(load("whisper", tail_frames=5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whisper", "wavlm", "gate"])
def test_the_file_runs_at_other_lengths_and_batches_than_it_was_made_with(load, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    from uniaudio.export.onnx_file import write_onnx

    encoder = load(kind)
    path = write_onnx(encoder, tmp_path, {"name": "test"})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["uniaudio"])
    assert (told["dim"], told["frame_rate"]) == (encoder.dim, encoder.frame_rate)
    assert told["longest_samples"] >= 480_000
    assert told["name"] == "test"
    for lengths in ((1, 2, 3, 4, 5, 6), (100_000,), (641, 640, 639)):
        samples, counts = padded_noise(lengths)
        frames, found = session.run(None, {"samples": samples.numpy(), "lengths": counts.numpy()})
        with torch.no_grad():
            wanted = encoder(Ragged.from_padded(samples, counts)).frames
        assert found.tolist() == wanted.lengths.tolist()
        for row, own in enumerate(wanted.rows()):
            np.testing.assert_allclose(frames[row, : len(own)], own.numpy(), atol=1e-4)
            assert not frames[row, len(own) :].any()


@pytest.mark.slow
def test_a_file_that_differs_from_the_encoder_is_not_given_away(load, tmp_path):
    pytest.importorskip("onnxruntime")
    from uniaudio.export.onnx_file import compare, write_onnx

    encoder = load("whisper")
    path = write_onnx(encoder, tmp_path, {})
    with torch.no_grad():
        encoder.whisper.layers[1].fc2.bias[0] += 0.1
    try:
        with pytest.raises(RuntimeError, match="differs from torch"):
            compare(encoder, padded_twin(encoder), path)
    finally:
        with torch.no_grad():
            encoder.whisper.layers[1].fc2.bias[0] -= 0.1
