"""Both benchmark suites' contracts, as their public descriptions and checkers state them, on exported encoders."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import tiny_whisper
from torch import Tensor, nn

from uniaudio.commands.export import SUITE_FOLDER, write_suite_file
from uniaudio.export.hf import make_noise, write_hf
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged


def import_entry(suite, folder, seed=0):
    """The written file as a module."""
    write_hf(WhisperAudioEncoder(tiny_whisper(seed)).eval(), folder / SUITE_FOLDER, {})
    file = write_suite_file(folder, suite)
    spec = importlib.util.spec_from_file_location(f"entry_{suite.replace('-', '_')}_{seed}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def suite_class(suite, folder, seed=0):
    """The one class of the written file whose name ends in Encoder: how both suites find it."""
    module = import_entry(suite, folder, seed)
    named = [name for name in dir(module) if name.endswith("Encoder")]
    assert len(named) == 1
    return getattr(module, named[0])


def test_x_ares(tmp_path):
    encoder = suite_class("xares", tmp_path)()
    assert isinstance(encoder, nn.Module)
    assert encoder.sampling_rate == 16_000
    assert encoder.hop_size_in_ms == 20
    assert encoder.output_dim == 64
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)) / 10
    frames = encoder(audio)
    assert isinstance(frames, Tensor)
    assert frames.shape == (2, 157, 64)  # ceil(50000 / 320)
    assert abs(50_000 / 16 / frames.shape[1] - encoder.hop_size_in_ms) < 0.2
    expected = WhisperAudioEncoder(tiny_whisper()).eval()(Ragged.from_rows([audio[1]])).frames.values
    torch.testing.assert_close(frames[1], expected, atol=1e-5, rtol=1e-5)


def test_x_ares_takes_ten_minutes_and_one_clip_without_a_batch(tmp_path):
    encoder = suite_class("xares", tmp_path)()
    assert encoder(torch.zeros(1, 65 * 16_000)).shape == (1, 3250, 64)  # beyond one reach, cut inside
    assert encoder(torch.zeros(800)).shape == (1, 3, 64)


def test_xares_llm_keeps_every_real_frame_and_masks_the_others(tmp_path):
    encoder = suite_class("xares-llm", tmp_path)()
    lengths = (160_000, 16_000, 8_001)
    audio, mask = make_noise(lengths).pad()
    audio = audio.float() / 32768
    frames, frame_mask = encoder(audio, mask.long())
    assert encoder.output_dim == 64
    assert frames.shape == (3, 500, 64)  # 10 s at 50 per second: not one half of it
    assert frame_mask.dtype == torch.int64  # it is joined to the mask of the text
    assert frame_mask.sum(1).tolist() == [500, 50, 26]
    assert (frame_mask.diff(dim=1) <= 0).all()  # ones, then zeros
    alone = WhisperAudioEncoder(tiny_whisper()).eval()
    for row, n in enumerate(lengths):
        wanted = alone(Ragged.from_rows([audio[row, :n]])).frames.values
        torch.testing.assert_close(frames[row, : len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    assert not frames[frame_mask == 0].any()


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3_200, dtype=torch.int64)])
def test_xares_llm_without_padding(tmp_path, mask):
    frames, frame_mask = suite_class("xares-llm", tmp_path)()(torch.zeros(2, 3_200), mask)
    assert frames.shape == (2, 10, 64)
    assert frame_mask.all()


def test_the_encoder_stays_frozen_when_a_trainer_says_otherwise(tmp_path):
    encoder = suite_class("xares-llm", tmp_path)()
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_mteb_mixes_channels_and_moves_clips_to_the_model(tmp_path, monkeypatch):
    """mteb itself is not installed; what is taken from it is stood in for."""
    modules = {"mteb": ModuleType("mteb"), "mteb.models": ModuleType("mteb.models")}
    modules["mteb.models"].ModelMeta = SimpleNamespace(create_empty=lambda facts: facts)
    for name, kind in (("abs_encoder", "AbsEncoder"), ("modality_collators", "AudioCollator")):
        modules[f"mteb.models.{name}"] = ModuleType(f"mteb.models.{name}")
        setattr(modules[f"mteb.models.{name}"], kind, type(kind, (), {"__init__": lambda self, **_: None}))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    entry = vars(import_entry("mteb", tmp_path))
    encoder = next(kind for name, kind in entry.items() if name.startswith("Uniaudio"))()
    stereo = torch.stack([torch.full((900,), 0.5), torch.full((900,), -0.25)])

    class Batches(list):
        """A loader; the encoder sets how it makes batches."""

    batches = Batches([{"audio": [{"array": stereo.numpy()}, {"array": stereo[0]}, {"array": stereo[:1]}]}])
    mixed, *alone = torch.from_numpy(encoder.encode(batches))
    model = encoder.model
    with torch.no_grad():
        torch.testing.assert_close(mixed, model(torch.full((900,), 0.125)).pooler_output[0])
        for row in alone:
            torch.testing.assert_close(row, model(stereo[0]).pooler_output[0])
    places = []

    def encode(clips):
        places.extend(clip.device.type for clip in clips)
        return SimpleNamespace(pooler_output=torch.zeros(len(clips), 64))

    encode.config = model.config
    encoder.model, encoder.device = encode, "meta"
    encoder.encode(batches)
    assert places == ["meta"] * 3


def test_classes_of_other_weights_have_other_names(tmp_path):
    """X-ARES finds what it stored by the name of the class: the same name would give another encoder's scores."""
    names = {suite_class("xares", tmp_path / str(seed), seed).__name__ for seed in (0, 1)}
    assert len(names) == 2
