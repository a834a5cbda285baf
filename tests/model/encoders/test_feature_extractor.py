"""AST, CLAP, w2v-BERT and codecs against the stock models with the stock feature extractors."""

import json

import numpy as np
import pytest
import soxr
import torch
from helpers.checkpoints import save_miniature
from helpers.noise import clip, pack, wave
from safetensors.torch import load_file, save_file
from transformers import (
    ASTFeatureExtractor,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
)

from uniaudio.config.encoders import EncoderConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.ragged import Ragged

KINDS = ["ast", "clap", "clap, fused", "w2v_bert", "encodec", "mimi"]
LENGTHS = [16_000, 400, 1, 7_777, 40_000, 0]


def both(kind, tmp_path):
    model = save_miniature(kind, tmp_path / "model")
    return model, load(tmp_path / "model").eval()


def load(folder):
    return load_audio_encoder(EncoderConfig(path=str(folder)), "encoders.a")


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


def test_options_that_are_not_built_are_reported(tmp_path):
    both("w2v_bert", tmp_path)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_adapter": True}))
    with pytest.raises(UserError, match="add_adapter is set"):
        load_audio_encoder(EncoderConfig(path=str(tmp_path / "model")), "encoders.a")
    both("encodec", tmp_path / "e")
    file = tmp_path / "e" / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "audio_channels": 2}))
    with pytest.raises(UserError, match="expects 2 channels"):
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


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_alone_equals_the_clip_in_any_batch(kind, tmp_path):
    _, encoder = both(kind, tmp_path)
    together = encoder(pack(*LENGTHS), layers=True)
    assert together.frames.lengths.tolist() == [encoder.num_frames(n) for n in LENGTHS]
    assert min(together.frames.lengths) == 1
    assert tuple(state.values.shape[1] for state in together.layers) == encoder.layer_dims
    assert together.layers[-1] is together.frames
    for index, samples in enumerate(LENGTHS):
        alone = encoder(pack(samples), layers=True)
        for one, other in zip(alone.layers, together.layers, strict=True):
            torch.testing.assert_close(one.values, other.rows()[index], atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ast", "clap", "encodec"])
def test_chunks_beyond_the_reach_see_only_themselves(kind, tmp_path):
    _, encoder = both(kind, tmp_path)
    reach = round(encoder.reach * 16_000)
    samples = torch.from_numpy(clip(reach + 20_000))
    whole = encoder(Ragged.from_rows([samples])).frames.values
    first, rest = (
        encoder(Ragged.from_rows([part])).frames.values for part in (samples[:reach], samples[reach:])
    )
    assert len(whole) == encoder.num_frames(len(samples)) == len(first) + len(rest)
    torch.testing.assert_close(whole, torch.cat([first, rest]), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("ast", "layernorm.weight"),
        ("clap", "audio_encoder.norm.weight"),
        ("w2v_bert", "encoder.layers.0.self_attn.linear_q.weight"),
        ("encodec", "encoder.layers.0.conv.bias"),
    ],
)
def test_a_missing_tensor_is_named(kind, tensor, tmp_path):
    both(kind, tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith(tensor))]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"missing.*{tensor}"):
        load(tmp_path / "model")


@torch.no_grad()
def test_ast_layers_and_the_means_of_its_folder(tmp_path):
    model, _ = both("ast", tmp_path)
    extractor = ASTFeatureExtractor(mean=-5.0, std=3.0)
    extractor.save_pretrained(tmp_path / "model")
    encoder = load(tmp_path / "model").eval()
    features = extractor(wave(9_000), sampling_rate=16000, return_tensors="pt").input_values
    stock = model(features, output_hidden_states=True)
    layers = encoder(pack(9_000), layers=True).layers
    wanted = [*stock.hidden_states[:-1], stock.last_hidden_state]
    assert len(layers) == len(wanted) == 3
    for ours, theirs in zip(layers, wanted, strict=True):
        by_time = theirs[0, 2:].view(12, 101, -1).mean(0)[:6]
        torch.testing.assert_close(ours.values, by_time, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("clap", {"frequency_min": 50}),
        ("ast", {"mean": -5.0, "std": 3.0}),
        ("w2v_bert", {"padding_value": 0.5}),
    ],
)
def test_an_extractor_that_a_processor_has_saved_is_that_of_its_checkpoint(kind, settings, tmp_path):
    """A processor of transformers 5 writes no other file for it."""
    _, encoder = both(kind, tmp_path)
    assert all(getattr(encoder.extractor, name) != value for name, value in settings.items())
    stored = {**encoder.extractor.to_dict(), **settings}
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"feature_extractor": stored}))
    extractor = load(tmp_path / "model").extractor
    assert {name: getattr(extractor, name) for name in settings} == settings


@torch.no_grad()
def test_the_audio_side_of_a_full_clap_is_taken(tmp_path):
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "hidden_size": 64,
    }
    text = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    full = ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=8))
    full.save_pretrained(tmp_path)
    single, wanted = load(tmp_path).model.state_dict(), full.audio_model.state_dict()
    assert single.keys() == wanted.keys()
    assert all(torch.equal(single[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_batch_norms_rest_before_the_first_switch(tmp_path):
    both("clap", tmp_path)
    encoder = load(tmp_path / "model")
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(pack(16_000, 9_000))
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


@torch.no_grad()
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_w2v_bert_with_other_positions(positions, tmp_path):
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        position_embeddings_type=positions,
    )
    model = Wav2Vec2BertModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load(tmp_path).eval()
    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=2)
    features = extractor(wave(200_000), sampling_rate=16000, return_tensors="pt")
    stock = model(**features).last_hidden_state[0]
    exact = encoder(pack(7_777, 200_000)).frames.rows()[1]
    torch.testing.assert_close(exact, stock[: len(exact)], atol=5e-6, rtol=1e-5)
    rough = encoder.to(torch.bfloat16)(pack(7_777, 200_000)).frames.rows()[1]  # of the same length as before
    assert rough.dtype == torch.bfloat16
    assert (rough[-50:].float() - exact[-50:]).abs().mean() < 0.02 * exact.abs().mean()
    if positions == "rotary":  # rounded to bfloat16 they would be radians off after some seconds
        single, stated = (m.encoder.embed_positions.inv_freq for m in (encoder.model, model))
        torch.testing.assert_close(single, stated, atol=0, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_codecs_give_exactly_the_stated_number_of_frames(kind, tmp_path):
    _, encoder = both(kind, tmp_path)
    step = round(16_000 / encoder.frame_rate)
    edges = [times * step + off for times in (1, 2, 7) for off in (-1, 0, 1)]
    for samples in [*range(1, 20), *edges, *np.random.default_rng(0).integers(20, 60_000, 40).tolist()]:
        for state in encoder.encode_chunks([wave(samples)], layers=True):
            assert len(state[0]) == encoder.num_frames(samples), samples


@torch.no_grad()
def test_codecs_keep_their_encoders_alone_and_give_its_stages(tmp_path):
    model, encoder = both("encodec", tmp_path / "e")
    assert encoder.layer_dims == (64, 64, 16)
    assert [name for name, _ in encoder.model.named_children()] == ["encoder"]
    stages = {}
    for index in (-4, -3):  # the last strided convolution and the LSTM
        model.encoder.layers[index].register_forward_hook(
            lambda *a, index=index: stages.update({index: a[2]})
        )
    loud = torch.from_numpy(soxr.resample(wave(8_000), 16000, 24000))[None, None]
    stock = model.encoder(loud)
    layers = encoder(pack(8_000), layers=True).layers
    for ours, theirs in zip(layers, (stages[-4], stages[-3], stock), strict=True):
        torch.testing.assert_close(ours.values, theirs[0].t(), atol=2e-6, rtol=1e-5)
    _, encoder = both("mimi", tmp_path / "m")
    assert encoder.layer_dims == (32,)
    assert [name for name, _ in encoder.model.named_children()] == ["encoder"]
