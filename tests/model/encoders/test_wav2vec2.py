"""The wav2vec 2.0 family packed, against the stock models on every clip alone."""

import json

import pytest
import torch
from helpers.noise import clip, pack
from transformers import (
    Data2VecAudioConfig,
    HubertConfig,
    HubertForCTC,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)
from transformers.models.auto.modeling_auto import AutoModel

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.wav2vec2 import load_wave
from uniaudio.model.lora import add_lora, merge_lora
from uniaudio.ragged import Ragged
from uniaudio.tiny.checkpoints import STABLE, WAVE

CASES = {
    "wav2vec2": (Wav2Vec2Config, {"num_conv_pos_embeddings": 16}),
    "wav2vec2, large": (Wav2Vec2Config, {"num_conv_pos_embeddings": 15, **STABLE}),
    "wav2vec2, adapters": (Wav2Vec2Config, {"num_conv_pos_embeddings": 16, "adapter_attn_dim": 8, **STABLE}),
    "hubert": (HubertConfig, {"num_conv_pos_embeddings": 16}),
    "hubert, large": (HubertConfig, {"num_conv_pos_embeddings": 16, "feat_proj_layer_norm": False, **STABLE}),
    "wavlm": (WavLMConfig, {"num_conv_pos_embeddings": 16, "num_buckets": 20, "max_bucket_distance": 40}),
    "wavlm, large": (
        WavLMConfig,
        {"num_conv_pos_embeddings": 16, "num_buckets": 20, "max_bucket_distance": 40, **STABLE},
    ),
    "data2vec-audio": (Data2VecAudioConfig, {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
    "unispeech": (UniSpeechConfig, {"num_conv_pos_embeddings": 16}),
    "unispeech, large": (UniSpeechConfig, {"num_conv_pos_embeddings": 16, **STABLE}),
    "unispeech-sat": (UniSpeechSatConfig, {"num_conv_pos_embeddings": 16}),
    "unispeech-sat, large": (UniSpeechSatConfig, {"num_conv_pos_embeddings": 16, **STABLE}),
}
LENGTHS = [16_000, 400, 719, 1, 7_777, 40_003, 0]


def saved(case, tmp_path):
    kind, settings = CASES[case]
    torch.manual_seed(0)
    model = AutoModel.from_config(kind(**WAVE, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gru_rel_pos_const" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "model")
    return model


def load(tmp_path, **settings):
    return load_audio_encoder(EncoderConfig(path=str(tmp_path / "model"), **settings), "encoders.a").eval()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_clip_in_a_batch_equals_the_stock_model_on_it_alone(case, tmp_path):
    model, encoder = saved(case, tmp_path).double(), load(tmp_path).double()
    together = encoder(pack(*LENGTHS), layers=True)
    assert together.frames.lengths.tolist() == [encoder.num_frames(n) for n in LENGTHS]
    assert encoder.frame_rate == 50
    assert len(together.layers) == len(encoder.layer_dims) == 3
    for i, samples in enumerate(LENGTHS):
        wave = torch.from_numpy(clip(samples)).double()[None] / 32768
        wave = torch.nn.functional.pad(wave, (0, max(0, 400 - samples)))
        stock = model(wave, output_hidden_states=True)
        states = [*stock.hidden_states[:-1], stock.last_hidden_state]
        for ours, theirs in zip(together.layers, states, strict=True):
            torch.testing.assert_close(ours.rows()[i], theirs[0], atol=1e-10, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_clip_alone_equals_the_clip_in_a_batch(case, tmp_path):
    saved(case, tmp_path)
    encoder = load(tmp_path)
    for samples, frames in zip(LENGTHS, encoder(pack(*LENGTHS)).frames.rows(), strict=True):
        alone = encoder(pack(samples)).frames.values
        # convolutions round by the length of the buffer and by processor, so the tolerance is one of the largest value
        assert (frames - alone).abs().max() < 5e-6 * alone.abs().max().clamp(min=1)


@pytest.mark.parametrize("case", CASES)
def test_frames_have_no_gradient_to_other_clips(case, tmp_path):
    saved(case, tmp_path)
    encoder = load(tmp_path)
    lengths = [719, 1_600, 400, 2_003]
    rows = [torch.from_numpy(clip(n)).float() / 32768 for n in lengths]
    audio = Ragged.from_rows([row.requires_grad_() for row in rows])
    for i, frames in enumerate(encoder(audio).frames.rows()):
        weights = torch.randn_like(frames)
        gradients = torch.autograd.grad((frames * weights).sum(), rows, retain_graph=True)
        assert [bool(g.any()) for g in gradients] == [i == j for j in range(len(rows))]


@torch.no_grad()
@pytest.mark.parametrize("case", ["wav2vec2", "wavlm"])
def test_statistics_over_30_s_are_those_of_the_stock_model_in_float32(case, tmp_path):
    model, encoder = saved(case, tmp_path), load(tmp_path)
    frames = encoder(pack(400, 480_000)).frames.rows()[1]
    stock = model(torch.from_numpy(clip(480_000)).float()[None] / 32768).last_hidden_state[0]
    torch.testing.assert_close(frames, stock, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_num_frames_is_the_real_count(tmp_path):
    saved("wav2vec2", tmp_path)
    encoder = load(tmp_path)
    lengths = [*range(1, 3000, 97), 399, 400, 719, 720]
    assert encoder(pack(*lengths)).frames.lengths.tolist() == [encoder.num_frames(n) for n in lengths]
    assert encoder.num_frames(480_000) == 1499


@torch.no_grad()
def test_long_clips_are_cut_without_losing_a_frame(tmp_path):
    model = saved("hubert, large", tmp_path)
    encoder = load(tmp_path, chunk_seconds=1.0)
    assert encoder.reach == 1.0
    samples = 40_003
    whole = encoder(pack(samples, 500)).frames.rows()[0]
    wave = torch.from_numpy(clip(samples)).float() / 32768
    parts = [
        wave[:16_080],
        wave[16_000:32_080],
        wave[32_000:],
    ]  # a second, and what its last frame reaches beyond
    stock = torch.cat([model(part[None]).last_hidden_state[0] for part in parts])
    assert len(whole) == encoder.num_frames(samples) == 124
    torch.testing.assert_close(whole, stock, atol=5e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("preprocessor_config.json", {"do_normalize": True}),
        ("preprocessor_config.json", {"sampling_rate": 16_000}),  # what the stock extractor does then
        (
            "processor_config.json",  # where transformers 5 saves it
            {"feature_extractor": {"do_normalize": True}},
        ),
    ],
)
def test_clips_are_normalised_where_the_feature_extractor_says_so(file, settings, tmp_path):
    model = saved("wavlm, large", tmp_path)
    (tmp_path / "model" / file).write_text(json.dumps(settings))
    encoder = load(tmp_path)
    wave = torch.from_numpy(clip(90_000)).float() / 32768 + 0.1
    got = encoder(Ragged.from_rows([torch.zeros(800), wave, torch.zeros(0)])).frames.rows()[1]
    stock = Wav2Vec2FeatureExtractor(do_normalize=True)(
        wave.numpy(), sampling_rate=16000, return_tensors="pt"
    )
    expected = model(stock.input_values).last_hidden_state[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    plain = model(wave[None]).last_hidden_state[0]
    assert (got - plain).abs().max() > 1e-3


def test_the_processor_s_settings_count_before_those_of_an_older_file(tmp_path):
    saved("hubert", tmp_path)
    assert not load(tmp_path).normalize
    for file, settings in (
        ("preprocessor_config.json", {"do_normalize": True}),
        ("processor_config.json", {"feature_extractor": {"do_normalize": False}}),
    ):
        (tmp_path / "model" / file).write_text(json.dumps(settings))
    assert not load(tmp_path).normalize
    (tmp_path / "model" / "processor_config.json").write_text("[")
    with pytest.raises(UserError, match=r"^encoders\.a: .*processor_config\.json cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_stock_model(case, tmp_path):
    model, encoder = saved(case, tmp_path).double(), load(tmp_path).double()
    lengths = [9_000, 3_000]
    frames = encoder(pack(*lengths)).frames
    direction = torch.randn_like(frames.values)
    (frames.values * direction).sum().backward()
    model.zero_grad()
    rows = frames.with_values(direction).rows()
    for samples, row in zip(lengths, rows, strict=True):
        wave = torch.from_numpy(clip(samples)).double()[None] / 32768
        (model(wave).last_hidden_state[0] * row).sum().backward()
    stock = dict(model.named_parameters())
    for name, parameter in encoder.model.named_parameters():
        if not parameter.requires_grad:
            assert name == "masked_spec_embed"
            continue
        torch.testing.assert_close(parameter.grad, stock[name].grad, atol=1e-8, rtol=1e-7)
        # one number added to all scores of a query changes nothing
        assert name.endswith("k_proj.bias") or parameter.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("case", ["wavlm", "hubert, large"])
def test_it_runs_in_bfloat16_and_on_no_clips(case, tmp_path):
    saved(case, tmp_path)
    encoder = load(tmp_path)
    exact = encoder(pack(16_000)).frames.values
    encoder.to(torch.bfloat16)
    rough = encoder(pack(16_000)).frames.values
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.1
    none = Ragged(torch.zeros(0, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))
    assert encoder(none).frames.values.shape == (0, 32)


def test_low_rank_updates_train_and_merge_to_the_same_function(tmp_path):
    saved("wavlm", tmp_path)
    encoder = load(tmp_path)
    add_lora(encoder, 4, 8, 0.0, "qkv")
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 * 2
    assert all(".q_proj." in n or ".k_proj." in n or ".v_proj." in n for n in trained)
    before = encoder(pack(16_000)).frames.values
    torch.testing.assert_close(before, load(tmp_path)(pack(16_000)).frames.values)  # B starts at 0
    for name, parameter in encoder.named_parameters():
        if name in trained:
            torch.nn.init.normal_(parameter, std=0.2)
    unmerged = encoder(pack(16_000)).frames.values
    assert (unmerged - before).abs().max() > 1e-3
    unmerged.square().sum().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters() if n in trained)
    merge_lora(encoder)
    assert {n for n, _ in encoder.named_parameters()} == {n for n, _ in load(tmp_path).named_parameters()}
    torch.testing.assert_close(encoder(pack(16_000)).frames.values, unmerged, atol=2e-6, rtol=1e-5)


def test_heads_are_left_out_and_missing_tensors_reported(tmp_path):
    torch.manual_seed(0)
    full = HubertForCTC(HubertConfig(**WAVE, num_conv_pos_embeddings=16))
    full.save_pretrained(tmp_path / "model")
    single = full.hubert.state_dict()
    for name, tensor in load(tmp_path).model.state_dict().items():
        assert torch.equal(tensor, single[name])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"tensors of HubertModel are missing: .*encoder\.layers\.2"):
        load(tmp_path)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "conv_pos_batch_norm": True}))
    with pytest.raises(UserError, match="conv_pos_batch_norm is set"):
        load(tmp_path)


def test_random_weights_are_drawn_from_the_seed(tmp_path):
    saved("wavlm", tmp_path)
    folder = f"random:{tmp_path / 'model'}"
    one, again, other = (load_wave(folder, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = "encoder.layers.0.attention.q_proj.weight"
    assert not torch.equal(one[name], other[name])


def test_what_cannot_be_loaded_is_named(tmp_path, qwen):
    with pytest.raises(UserError, match="there is no folder"):
        load_wave(str(tmp_path / "nothing"))
    qwen.save_pretrained(tmp_path / "qwen")
    with pytest.raises(UserError, match=r"holds a qwen.* model, not one of wav2vec2, hubert"):
        load_wave(str(tmp_path / "qwen"))
    saved("hubert", tmp_path)
    with pytest.raises(UserError, match="chunk_seconds: 0 is not above 0"):
        load_wave(str(tmp_path / "model"), chunk_seconds=0)


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 79, 80, 319, 320, 400])
def test_a_rest_too_short_for_a_frame_belongs_to_the_chunk_before(extra, tmp_path):
    saved("wav2vec2", tmp_path)
    encoder = load(tmp_path, chunk_seconds=0.5)
    samples = 16_000 + extra
    assert len(encoder(pack(samples)).frames.values) == (samples - 400) // 320 + 1
