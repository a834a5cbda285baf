"""AST, CLAP, w2v-BERT and codecs against the stock models with the stock feature extractors."""

import json

import numpy as np
import pytest
import soxr
import torch
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, SeamlessM4TFeatureExtractor

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.miniature.checkpoints import save_miniature
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.ragged import Ragged


def clip(samples):
    return (np.random.default_rng(samples).standard_normal(samples) * 3000).astype(np.int16)


def wave(samples):
    return clip(samples).astype(np.float32) / 32768


def pack(*lengths):
    return Ragged.from_rows([torch.from_numpy(clip(n)) for n in lengths])


def both(kind, tmp_path):
    model = save_miniature(kind, tmp_path / "model")
    return model, load_audio_encoder(EncoderConfig(path=str(tmp_path / "model")), "encoders.a").eval()


@torch.no_grad()
@pytest.mark.parametrize("samples", [16_000, 50_001, 161_600])
def test_ast_frames_are_the_mean_of_patches_at_one_time(samples, tmp_path):
    model, encoder = both("ast", tmp_path)
    assert (encoder.frame_rate, encoder.reach, encoder.num_frames(samples)) == (10, 10.1, -(-samples // 1600))
    features = ASTFeatureExtractor()(wave(samples), sampling_rate=16000, return_tensors="pt").input_values
    hidden = model(features).last_hidden_state[0, 2:]
    frames = encoder(pack(8_000, samples)).frames.rows()[1]
    for t in (0, len(frames) // 2, len(frames) - 1):
        wanted = sum(hidden[f * 101 + t] for f in range(12)) / 12
        torch.testing.assert_close(frames[t], wanted, atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clap", "clap, fused"])
def test_clap_frames_are_the_mean_over_frequency(kind, tmp_path):
    model, encoder = both(kind, tmp_path)
    assert (encoder.frame_rate, encoder.reach) == (3.2, 10)
    fused = kind == "clap, fused"
    extractor = ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc")
    samples = 50_000
    loud = soxr.resample(wave(samples), 16000, 48000)
    features = extractor(loud, sampling_rate=48000, return_tensors="pt").input_features
    stock = model(features, is_longer=torch.zeros(1, 1, dtype=torch.bool)).last_hidden_state[0]
    encoded = encoder(pack(8_000, samples), layers=True)
    frames = encoded.frames.rows()[1]
    assert len(frames) == 10
    for t, frame in enumerate(frames):
        torch.testing.assert_close(frame, stock[:, :, t].mean(1), atol=2e-6, rtol=1e-5)
    # the last stage before its norm, unfolded by ours, gives the frames after it
    assert [state.values.shape[1] for state in encoded.layers] == [8, 8, 16, 32, 64]


@torch.no_grad()
def test_clap_layers_follow_time(tmp_path):
    """A click late in the clip moves the early stages most at its own time."""
    _, encoder = both("clap", tmp_path)
    quiet = torch.zeros(160_000)
    click = quiet.clone()
    click[120_000:121_000] = torch.randn(1_000)
    quiet, click = (encoder(Ragged.from_rows([x]), layers=True).layers[0].values for x in (quiet, click))
    assert (click - quiet).abs().sum(1).argmax().item() == 120_000 // 5_000


@torch.no_grad()
@pytest.mark.parametrize("samples", [560, 9_000, 9_160, 40_000])
def test_w2v_bert_equals_the_stock_model_on_the_clip_alone(samples, tmp_path):
    model, encoder = both("w2v_bert", tmp_path)
    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=2)
    features = extractor(wave(samples), sampling_rate=16000, return_tensors="pt")
    stock = model(features.input_features, attention_mask=features.attention_mask).last_hidden_state[0]
    kept = int(features.attention_mask.sum())
    frames = encoder(pack(16_000, samples, 4_000)).frames.rows()[1]
    assert len(frames) == kept
    torch.testing.assert_close(frames, stock[:kept], atol=5e-6, rtol=1e-5)


@torch.no_grad()
def test_codecs_equal_the_stock_encoders_before_quantisation(tmp_path):
    samples = 9_001
    loud = torch.from_numpy(soxr.resample(wave(samples), 16000, 24000))[None, None]
    model, encoder = both("encodec", tmp_path / "e")
    frames = encoder(pack(2_000, samples)).frames.rows()[1]
    torch.testing.assert_close(frames, model.encoder(loud)[0].t()[: len(frames)], atol=1e-5, rtol=1e-4)
    assert encoder.frame_rate == 75
    model, encoder = both("mimi", tmp_path / "m")
    frames = encoder(pack(2_000, samples)).frames.rows()[1]
    torch.testing.assert_close(
        frames, model.encoder(loud).latents[0].t()[: len(frames)], atol=1e-5, rtol=1e-4
    )
    assert encoder.frame_rate == 12.5


def test_options_that_are_not_built_are_told(tmp_path):
    both("w2v_bert", tmp_path)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_adapter": True}))
    with pytest.raises(UserError, match="add_adapter is set"):
        load_audio_encoder(EncoderConfig(path=str(tmp_path / "model")), "encoders.a")
    both("encodec", tmp_path / "e")
    file = tmp_path / "e" / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "audio_channels": 2}))
    with pytest.raises(UserError, match="hears 2 channels"):
        load_audio_encoder(EncoderConfig(path=str(tmp_path / "e" / "model")), "encoders.a")


@pytest.mark.parametrize("kind", ["clap", "ast", "w2v_bert", "encodec", "mimi", "qwen2_audio"])
def test_random_weights_are_a_function_of_the_seed(kind, tmp_path):
    save_miniature(kind, tmp_path / "model")
    one, same, other = (
        load_audio_encoder(EncoderConfig(path=f"random:{tmp_path / 'model'}"), "encoders.a", seed)
        for seed in (1, 1, 2)
    )
    values = [torch.cat([p.flatten() for p in encoder.parameters()]) for encoder in (one, same, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_training_leaves_batch_norms_alone(tmp_path):
    _, encoder = both("clap", tmp_path)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.train()
    encoder(pack(16_000, 9_000)).frames.values.sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())
