"""The miniature Whisper is stored and loaded like a real one."""

import torch
from transformers import WhisperConfig

from uniaudio.model.encoders.whisper import load_whisper
from uniaudio.ragged import Ragged
from uniaudio.tiny.checkpoints import save_miniature_whisper


def test_it_loads_as_any_whisper_folder(tmp_path):
    encoder = load_whisper(str(save_miniature_whisper(tmp_path / "w", d_model=32, layers=1)))
    assert (encoder.dim, encoder.frame_rate) == (32, 50.0)
    clip = torch.randint(-3000, 3000, (16_000,), dtype=torch.int16)
    frames = encoder(Ragged.from_rows([clip])).frames
    assert frames.values.shape == (50, 32)
    assert frames.values.isfinite().all()


def test_sizes_are_what_was_requested(tmp_path):
    config = WhisperConfig.from_pretrained(save_miniature_whisper(tmp_path / "w", 48, 3, 4, mels=128))
    assert (config.d_model, config.encoder_layers, config.encoder_attention_heads) == (48, 3, 4)
    assert config.num_mel_bins == 128


def test_the_seed_decides_and_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = save_miniature_whisper(tmp_path / "a", seed=1)
    assert torch.rand(1) == expected
    second = save_miniature_whisper(tmp_path / "b", seed=1)
    other = save_miniature_whisper(tmp_path / "c", seed=2)
    one, two, three = ((folder / "model.safetensors").read_bytes() for folder in (first, second, other))
    assert one == two
    assert one != three
