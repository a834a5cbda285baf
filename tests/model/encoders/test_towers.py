"""Stock towers of larger models: every clip of a batch against the stock module and extractor on it alone."""

import json

import numpy as np
import pytest
import soxr
import torch
from helpers.checkpoints import save_miniature
from helpers.noise import pack, wave
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3nAudioFeatureExtractor,
    LasrFeatureExtractor,
    ParakeetFeatureExtractor,
    PeAudioFeatureExtractor,
    Phi4MultimodalFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.qwen3_asr.feature_extraction_qwen3_asr import Qwen3ASRFeatureExtractor

from uniaudio.config.encoders import EncoderConfig
from uniaudio.model.encoders.registry import load_audio_encoder

LENGTHS = (4_800, 16_000, 80_123, 496_000)  # samples: 0.3, 1, 5 and 31 s


def load(folder, **settings):
    return load_audio_encoder(EncoderConfig(path=str(folder), **settings), "encoders.a")


def extract(extractor, x, **options):
    return extractor(x, sampling_rate=16_000, return_tensors="pt", **options)


def parakeet(model, x):
    given = extract(ParakeetFeatureExtractor(), x)
    output = model(**given)
    return output.last_hidden_state[0, : int(output.attention_mask.sum())]


def granite_speech(model, x):
    """The spectrogram by the functions of transformers; the stock extractor needs torchaudio."""
    filters = mel_filter_bank(257, 80, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
    window = window_function(400, "hann", periodic=True, frame_length=512)
    mel = spectrogram(
        x, window, 512, 160, 512, power=2.0, mel_filters=filters, log_mel="log10", mel_floor=1e-10
    )
    mel = torch.from_numpy(mel.T.astype(np.float32))
    mel = torch.maximum(mel, mel.max() - 8) / 4 + 1
    return model(mel[: len(mel) // 2 * 2].reshape(1, -1, 160)).last_hidden_state[0]


def seamless(model, x):
    given = extract(SeamlessM4TFeatureExtractor(), x)
    pairs = int(given.attention_mask.sum())
    return model(**given).last_hidden_state[0, : pairs // 8 + 1]


def gemma3n(model, x):
    given = extract(Gemma3nAudioFeatureExtractor(), x, truncation=False)
    output = model(given.input_features, ~given.input_features_mask)
    assert not output.audio_mel_mask.any()
    return output.last_hidden_state[0]


def gemma4(model, x):
    given = extract(Gemma4AudioFeatureExtractor(), [x], truncation=False)
    output = model(given.input_features, given.input_features_mask)
    return output.last_hidden_state[0][output.attention_mask[0]]


def phi4(model, x):
    return model(extract(Phi4MultimodalFeatureExtractor(), x).audio_input_features, None)[0]


def lasr(model, x):
    return model(extract(LasrFeatureExtractor(), x).input_features).last_hidden_state[0]


def raw(model, x):
    return model(torch.from_numpy(x)[None]).last_hidden_state[0]


def moonshine_streaming(model, x):
    filled = torch.nn.functional.pad(torch.from_numpy(x), (0, -len(x) % 80))[None]
    mask = (torch.arange(filled.shape[1]) < len(x)).long()[None]
    whole = -(-(len(x) // 80) // 4)
    return model(filled, attention_mask=mask).last_hidden_state[0, :whole]


def pe_audio(model, x):
    loud = soxr.resample(x, 16_000, 48_000).astype(np.float32)
    given = PeAudioFeatureExtractor()(loud, sampling_rate=48_000, return_tensors="pt")
    return model(given["input_values"]).last_hidden_state[0]


STOCK = {
    "parakeet": parakeet,
    "granite_speech": granite_speech,
    "granite_speech_plus": granite_speech,
    "seamless_m4t": seamless,
    "seamless_m4t_v2": seamless,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "phi4": phi4,
    "lasr": lasr,
    "moonshine": raw,
    "moonshine_streaming": moonshine_streaming,
    "wav2vec2-conformer": raw,
    "sew": raw,
    "sew-d": raw,
    "speecht5": raw,
    "pe_audio": pe_audio,
}
RATES = {
    "parakeet": 12.5,
    "granite_speech": 50,
    "seamless_m4t_v2": 6.25,
    "gemma3n": 6.25,
    "gemma4": 25,
    "phi4": 12.5,
    "lasr": 25,
    "moonshine": 16_000 / 384,
    "moonshine_streaming": 50,
    "wav2vec2-conformer": 50,
    "pe_audio": 25,
}


@torch.no_grad()
@pytest.mark.parametrize("kind", STOCK)
def test_every_clip_in_a_batch_equals_the_stock_module_on_it_alone(kind, tmp_path):
    model = save_miniature(kind, tmp_path)
    encoder = load(tmp_path, chunk_seconds=40).eval()
    assert encoder.frame_rate == RATES.get(kind, encoder.frame_rate)
    together = encoder(pack(*LENGTHS)).frames
    worst = 0.0
    for samples, frames in zip(LENGTHS, together.rows(), strict=True):
        expected = STOCK[kind](model, wave(samples))
        assert len(frames) == len(expected) == encoder.num_frames(samples)
        worst = max(worst, float((frames - expected).abs().max()))
    print(f"{kind}: {worst:.1e}")
    assert worst <= 1e-5


@torch.no_grad()
def test_long_clips_are_cut(tmp_path):
    model = save_miniature("parakeet", tmp_path)
    encoder = load(tmp_path).eval()
    assert encoder.reach == 30
    samples = 496_000
    whole = encoder(pack(samples)).frames.values
    parts = [parakeet(model, part) for part in (wave(samples)[:480_000], wave(samples)[480_000:])]
    torch.testing.assert_close(whole, torch.cat(parts), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["voxtral", "glmasr"])
@pytest.mark.parametrize("samples", [*LENGTHS[:3], 480_000])
def test_padded_to_30_s_they_are_the_stock_towers(samples, kind, tmp_path):
    model = save_miniature(kind, tmp_path)
    encoder = load(tmp_path, pad_to=30.0).eval()
    features = extract(WhisperFeatureExtractor(), wave(samples)).input_features
    frames = encoder(pack(7_000, samples)).frames.rows()[1]
    assert len(frames) == -(-samples // 320)
    expected = model(features).last_hidden_state[0, : len(frames)]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("samples", [4_800, 16_000, 80_320, 480_000])
def test_qwen3_asr_equals_the_stock_tower_with_nothing_behind_the_clip(samples, tmp_path):
    model = save_miniature("qwen3_asr", tmp_path)
    encoder = load(tmp_path).eval()
    given = extract(Qwen3ASRFeatureExtractor(feature_size=80), wave(samples))
    audible = max(samples, 8_000) // 160  # of a clip below 0.5 s the stock tower hears silence behind it
    mask = torch.arange(given.input_features.shape[2])[None] < audible
    expected = model(given.input_features * mask[:, None], mask).last_hidden_state
    frames = encoder(pack(16_000, samples, 4_000)).frames.rows()[1]
    assert (
        len(frames) == encoder.num_frames(samples) == samples // 16_000 * 13 + -(-(samples % 16_000) // 1280)
    )
    torch.testing.assert_close(frames, expected[: len(frames)], atol=1e-5, rtol=0)


FULL = {  # the model type and place of the tower in a full model
    "parakeet": ("parakeet_ctc", "encoder_config", "encoder."),
    "voxtral": ("voxtral", "audio_config", "model.audio_tower."),
    "glmasr": ("glmasr", "audio_config", "model.audio_tower."),
    "qwen3_asr": ("qwen3_asr", "audio_config", "model.audio_tower."),
    "granite_speech": ("granite_speech", "encoder_config", "model.encoder."),
    "seamless_m4t_v2": ("seamless_m4t_v2", None, "speech_encoder."),
    "gemma3n": ("gemma3n", "audio_config", "model.audio_tower."),
    "gemma4": ("gemma4", "audio_config", "model.audio_tower."),
    "phi4": ("phi4_multimodal", "audio_config", "model.embed_tokens_extend.audio_embed.encoder."),
    "lasr": ("lasr_ctc", "encoder_config", "encoder."),
    "moonshine": ("moonshine", None, "model.encoder."),
    "moonshine_streaming": ("moonshine_streaming", "encoder_config", "model.encoder."),
    "speecht5": ("speecht5", None, "speecht5.encoder."),
    "pe_audio": ("pe_audio", "audio_config", "audio_encoder."),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_checkpoint_gives_its_tower_alone(kind, tmp_path):
    save_miniature(kind, tmp_path)
    expected = load(tmp_path).state_dict()
    model_type, section, prefix = FULL[kind]
    file = tmp_path / "config.json"
    tower = json.loads(file.read_text())
    file.write_text(
        json.dumps({**(tower if section is None else {section: tower}), "model_type": model_type})
    )
    tensors = load_file(tmp_path / "model.safetensors")
    full = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    save_file({**full, "language_model.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    state = load(tmp_path).state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_features_are_those_of_the_extractor_in_the_folder_without_its_dither(tmp_path):
    save_miniature("gemma4", tmp_path)
    settings = Gemma4AudioFeatureExtractor(dither=0.5, mel_floor=0.01).to_dict()
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"feature_extractor": {**settings, "mel_floor": 0.01}})
    )
    extractor = load(tmp_path).extractor
    assert extractor.dither == 0
    assert extractor.mel_floor == 0.01
