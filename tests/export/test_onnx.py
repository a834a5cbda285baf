"""ONNX files in onnxruntime against the encoder that they were written from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_whisper
from helpers.checkpoints import save_miniature
from pydantic import TypeAdapter
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model
from transformers.models.audioflamingo3.configuration_audioflamingo3 import AudioFlamingo3EncoderConfig
from transformers.models.audioflamingo3.modeling_audioflamingo3 import AudioFlamingo3Encoder

from uniaudio.build.encoder_sketch import sketch_model
from uniaudio.build.fusion import fuse
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.fusion import FusionConfig
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.errors import UserError
from uniaudio.export.hf import make_noise
from uniaudio.export.onnx_file import FUSED, can_mask, compare_outputs, find_stock_module, write_onnx
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.chunking import convert_to_float
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged

onnxruntime = pytest.importorskip("onnxruntime")
WAVE = {  # two convolutions and one layer: the exporter's time goes by their number
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (20, 18),
    "conv_stride": (20, 16),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
FLAMINGO = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def masked_wave():
    return HubertModel(HubertConfig(**WAVE, **STABLE))


def normed_wave():
    return Wav2Vec2Model(Wav2Vec2Config(**WAVE))


def flamingo():
    return AudioFlamingo3Encoder(AudioFlamingo3EncoderConfig(**FLAMINGO, num_mel_bins=80))


def load(model, folder):
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return load_audio_encoder(EncoderConfig(path=str(folder)), "test").eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Encoder, session and inputs of a stock model by the function that makes it, exported once."""
    made = {}

    def export(make):
        if make not in made:
            folder = tmp_path_factory.mktemp(make.__name__)
            torch.manual_seed(0)
            encoder = load(make(), folder / "weights")
            stock = write_onnx(encoder, folder / "onnx", {"name": "test"})
            session = onnxruntime.InferenceSession(str(folder / "onnx" / "encoder.onnx"))
            made[make] = SimpleNamespace(
                encoder=encoder, stock=stock, session=session, folder=folder / "onnx"
            )
        return made[make]

    return export


def clips_of(*lengths):
    return [convert_to_float(clip) for clip in make_noise(lengths).rows()]


@torch.no_grad()
def assert_equal(exported, clips, **options):
    """Compare the frames of each clip with those of the encoder; ``options`` go to the extractor."""
    read = Wav2Vec2FeatureExtractor.from_pretrained(exported.folder)
    inputs = read([clip.numpy() for clip in clips], sampling_rate=16_000, return_tensors="np", **options)
    (frames,) = exported.session.run(None, dict(inputs))
    expected = exported.encoder(Ragged.from_rows(clips)).frames.rows()
    assert frames.shape[:2] == (len(clips), max(map(len, expected)))
    for row, clip in zip(frames, expected, strict=True):
        np.testing.assert_allclose(row[: len(clip)], clip.numpy(), atol=2e-5)


def test_waves_alone_and_padded_with_a_mask(exported):
    file = exported(masked_wave)
    assert [one.name for one in file.session.get_inputs()] == ["input_values", "attention_mask"]
    assert [one.name for one in file.session.get_outputs()] == ["last_hidden_state"]
    for lengths in ((9_000,), (360,), (16_001, 400, 30_000, 8_000)):
        assert_equal(file, clips_of(*lengths), padding=True, return_attention_mask=True)
    metadata = json.loads(file.session.get_modelmeta().custom_metadata_map["uniaudio"])
    assert metadata == {"sampling_rate": 16_000, "dim": 32, "frame_rate": 50.0, "name": "test"}


def test_waves_of_a_model_that_norms_over_time_have_no_mask(exported):
    file = exported(normed_wave)
    assert [one.name for one in file.session.get_inputs()] == ["input_values"]
    for lengths in ((9_000,), (12_345,) * 3):
        assert_equal(file, clips_of(*lengths), return_attention_mask=False)


@torch.no_grad()
def test_log_mels_of_a_tower_with_a_mask(exported):
    """At 30 s, and with the real length of a shorter clip as the stock module hears it."""
    file = exported(flamingo)
    assert [one.shape for one in file.session.get_inputs()] == [["batch", 80, 3000], ["batch", 3000]]
    whole, short = clips_of(480_000, 50_000)
    inputs = file.stock.prepare([whole, short])
    assert inputs["attention_mask"].sum(1).tolist() == [3000, 313]
    (frames,) = file.session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(
        frames[0], file.encoder(Ragged.from_rows([whole])).frames.values.numpy(), atol=2e-5
    )
    stock = file.encoder.whisper(*inputs.values()).last_hidden_state
    np.testing.assert_allclose(frames, stock.numpy(), atol=2e-5)


def test_a_file_that_differs_from_the_encoder_is_refused(exported):
    file = exported(normed_wave)
    path = file.folder / "encoder.onnx"
    assert compare_outputs(file.encoder, file.stock, path) < 1e-5
    bias = file.encoder.model.encoder.layers[0].feed_forward.output_dense.bias
    with torch.no_grad():
        bias[0] += 0.1
        with pytest.raises(RuntimeError, match="differs from torch"):
            compare_outputs(file.encoder, file.stock, path)
        bias[0] -= 0.1


def test_a_file_whose_frames_are_no_numbers_is_refused(exported, monkeypatch):
    class Broken:
        def __init__(self, path, providers):
            self.session = exported(normed_wave).session

        def run(self, names, inputs):
            (frames,) = self.session.run(names, inputs)
            frames[-1, 0, 0] = np.nan  # of the last clip of a batch alone
            return (frames,)

    file = exported(normed_wave)
    monkeypatch.setattr("uniaudio.export.onnx_file.onnxruntime.InferenceSession", Broken)
    with pytest.raises(RuntimeError, match="differs from torch by nan"):
        compare_outputs(file.encoder, file.stock, file.folder / "encoder.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wavlm", "w2v_bert"])
def test_the_other_families_agree_with_their_files(tmp_path, kind):
    save_miniature(kind, tmp_path / "weights")
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path / "weights")), "test")
    stock = write_onnx(encoder, tmp_path / "onnx", {})
    assert compare_outputs(encoder, stock, tmp_path / "onnx" / "encoder.onnx") < 1e-5
    assert stock.masked == (kind == "w2v_bert")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
def test_a_file_has_a_mask_where_padding_does_not_change_the_frames(tmp_path, kind):
    save_miniature(kind, tmp_path)
    encoder = load_audio_encoder(EncoderConfig(path=str(tmp_path)), "test").eval()
    short, long = clips_of(8_000, 16_000)
    padded, mask = Ragged.from_rows([short, long]).pad()
    alone = encoder.model(short[None]).last_hidden_state[0]
    frames = encoder.model(padded, mask.long()).last_hidden_state[0, : len(alone)]
    assert can_mask(encoder) == torch.allclose(frames, alone, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "ast", "clap", "mimi"])
def test_families_whose_frames_are_not_the_modules_output_are_refused_without_their_weights(tmp_path, kind):
    save_miniature(kind, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"encoders of the model type \S+ cannot be exported, because .*; use --to hf"
    ):
        find_stock_module(sketch_model(parse_model_spec(str(tmp_path))))


def test_frames_that_the_stock_module_does_not_average_are_refused():
    with pytest.raises(
        UserError, match=r"averages frames \(pool: 2\), which WhisperEncoder .* does not; use --to hf"
    ):
        find_stock_module(WhisperAudioEncoder(tiny_whisper(), pool=2))
    assert find_stock_module(WhisperAudioEncoder(flamingo(), pool=2)).masked


@pytest.mark.parametrize("settings", [{"kind": "concat", "start": "random"}, {"kind": "mowe"}])
def test_fused_encoders_are_refused(settings):
    parts: dict[str, AudioEncoder] = {name: WhisperAudioEncoder(tiny_whisper()) for name in ("a", "b")}
    encoder = fuse(TypeAdapter(FusionConfig).validate_python(settings), parts)
    with pytest.raises(UserError, match="a fused encoder cannot be exported") as refusal:
        find_stock_module(encoder)
    assert str(refusal.value) == FUSED
