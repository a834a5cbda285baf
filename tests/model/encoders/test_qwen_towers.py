"""Audio towers of Qwen2-Audio, Audio Flamingo 3, Qwen2.5-Omni and Qwen3-Omni against the stock modules."""

import numpy as np
import pytest
import torch
from helpers.noise import clip, pack
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor
from transformers.models.audioflamingo3.configuration_audioflamingo3 import AudioFlamingo3EncoderConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder

SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 80,
}


def mel(samples):
    """Whisper's features, cut to whole frames of 20 ms."""
    wave = clip(samples).astype(np.float32) / 32768
    features = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features
    return features


def pooled_tower(kind):
    torch.manual_seed(0)
    if kind == "qwen2_audio":
        return AutoModel.from_config(Qwen2AudioEncoderConfig(**SMALL)).eval()
    config = AudioFlamingo3EncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_mel_bins=80
    )
    return AutoModel.from_config(config).eval()


def omni_tower(kind):
    torch.manual_seed(0)
    if kind == "qwen2_5_omni":
        return Qwen2_5OmniAudioEncoder(
            Qwen2_5OmniAudioEncoderConfig(**SMALL, n_window=50, output_dim=24)
        ).eval()
    config = Qwen3OmniMoeAudioEncoderConfig(
        **SMALL, n_window=50, n_window_infer=200, output_dim=24, downsample_hidden_size=8
    )
    return Qwen3OmniMoeAudioEncoder(config).eval()


TOWERS = {
    "qwen2_audio": pooled_tower,
    "audioflamingo3": pooled_tower,
    "qwen2_5_omni": omni_tower,
    "qwen3_omni": omni_tower,
}


def loaded(kind, tmp_path):
    tower = TOWERS[kind](kind)
    tower.save_pretrained(tmp_path / kind)
    return tower, load_audio_encoder(EncoderConfig(path=str(tmp_path / kind)), "encoders.a").eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2_audio", "audioflamingo3"])
def test_pooled_towers_equal_the_stock_one_at_30_s(kind, tmp_path):
    tower, encoder = loaded(kind, tmp_path)
    settings = {"output_hidden_states": True} if kind == "qwen2_audio" else {}
    if kind == "qwen2_audio":
        stock = tower(mel(480_000), **settings).last_hidden_state[0]
    else:
        stock = tower(mel(480_000), torch.ones(1, 3000, dtype=torch.long)).last_hidden_state[0]
    frames = encoder(pack(16_000, 480_000)).frames.rows()[1]
    assert (len(frames), encoder.frame_rate, encoder.dim) == (750, 25, 32)
    torch.testing.assert_close(frames, stock, atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni"])
@pytest.mark.parametrize("samples", [16_000, 19_200, 40_960, 81_920, 157_440])
def test_omni_towers_equal_the_stock_one_on_the_clip_alone(kind, samples, tmp_path):
    tower, encoder = loaded(kind, tmp_path)
    frames = samples // 160
    features = mel(samples)[0, :, :frames]
    stock = tower(features, feature_lens=torch.tensor([frames]))
    single = encoder(pack(samples), layers=True)
    last = single.frames.values
    third = kind == "qwen3_omni"
    mapped = tower.proj2(tower.act(tower.proj1(last))) if third else tower.proj(last)
    torch.testing.assert_close(mapped, stock.last_hidden_state, atol=3e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", TOWERS)
def test_a_clip_alone_equals_the_clip_in_a_batch_and_the_number_of_frames_is_right(kind, tmp_path):
    _, encoder = loaded(kind, tmp_path)
    lengths = [16_000, 1, 7_777, 40_001, 320, 500_000]
    together = encoder(pack(*lengths), layers=True)
    assert together.frames.lengths.tolist() == [encoder.num_frames(n) for n in lengths]
    assert len(together.layers) == len(encoder.layer_dims) == 3
    assert together.layers[-1].values is together.frames.values
    for samples, frames in zip(lengths, together.frames.rows(), strict=True):
        torch.testing.assert_close(frames, encoder(pack(samples)).frames.values, atol=3e-6, rtol=0)
    assert encoder.num_frames(480_000) == pytest.approx(30 * encoder.frame_rate, abs=1)
    for samples in range(1, 40_000, 913):
        assert len(encoder(pack(samples)).frames.values) == encoder.num_frames(samples)


@pytest.mark.parametrize("kind", TOWERS)
def test_every_trained_parameter_gets_a_gradient(kind, tmp_path):
    _, encoder = loaded(kind, tmp_path)
    frames = encoder.train()(pack(16_000, 8_000)).frames.values
    (frames * torch.randn_like(frames)).sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@torch.no_grad()
@pytest.mark.parametrize("kind", TOWERS)
def test_it_runs_in_bfloat16(kind, tmp_path):
    _, encoder = loaded(kind, tmp_path)
    exact = encoder(pack(16_000)).frames.values
    rough = encoder.to(torch.bfloat16)(pack(16_000)).frames.values
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05


def test_a_full_checkpoint_gives_its_tower_alone(tmp_path):
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2AudioConfig(
        audio_config={**SMALL, "model_type": "qwen2_audio_encoder"},
        text_config={**text, "num_key_value_heads": 2, "vocab_size": 32, "model_type": "qwen2"},
        audio_token_index=31,
    )
    torch.manual_seed(0)
    full = Qwen2AudioForConditionalGeneration(config).eval()
    full.save_pretrained(tmp_path / "full")
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path / "full")), "encoders.a")
    single = full.model.audio_tower.state_dict()
    for name, tensor in encoder.whisper.state_dict().items():
        assert torch.equal(tensor, single[name])
    assert AutoConfig.from_pretrained(tmp_path / "full").model_type == "qwen2_audio"


def test_random_weights_are_a_function_of_the_seed_and_wrong_bins_are_reported(tmp_path):
    tower, _ = loaded("qwen3_omni", tmp_path)
    path = f"random:{tmp_path / 'qwen3_omni'}"
    one, same, other = (
        load_audio_encoder(EncoderConfig(path=path), "encoders.a", seed).tower.conv2d1.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    tower.config.num_mel_bins = 128
    tower.config.save_pretrained(tmp_path / "qwen3_omni")
    with pytest.raises(
        UserError, match=r"encoders\.a: .*conv_out\.weight is \(32, 80\), but .* says \(32, 128\)"
    ):
        load_audio_encoder(EncoderConfig(path=str(tmp_path / "qwen3_omni")), "encoders.a")
