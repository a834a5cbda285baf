"""Encoders of neural codecs, before their quantisation: EnCodec and Mimi."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import EncodecModel, MimiModel, __version__

from uniaudio.errors import UserError
from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.resampled import resample_to
from uniaudio.model.encoders.weights import load_pretrained
from uniaudio.model.init_args import InitArgsModule
from uniaudio.model.model_files import RANDOM, find_model_folder, read_model_config, read_stock_config
from uniaudio.types import SAMPLE_RATE


class EncodecParts(InitArgsModule):
    """EnCodec's encoder (Défossez et al. 2022): convolutions and an LSTM, 75 frames per second at 24 kHz."""

    def __init__(self, model: EncodecModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.strides = tuple(reversed(model.config.upsampling_ratios))
        wide = model.config.num_filters * 2 ** len(self.strides)
        self.layer_dims: tuple[int, ...] = (wide, wide, model.config.hidden_size)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Map ``[1, 1, S]`` to ``[T, E]`` after the last stride, after the LSTM and after the last convolution."""
        *layers, lstm, activation, last = self.encoder.layers
        hidden = wave
        for layer in layers:
            hidden = layer(hidden)
        recurrent = lstm(hidden)
        return [state[0].t() for state in (hidden, recurrent, last(activation(recurrent)))]


class MimiParts(InitArgsModule):
    """Mimi's encoder (Défossez et al. 2024): convolutions, a causal transformer, a last stride; 12.5 frames a
    second.

    Raises:
        ValueError: under releases of transformers that keep transformer and last stride outside of the encoder.
    """

    def __init__(self, model: MimiModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        if not hasattr(self.encoder, "downsample"):
            raise ValueError(
                f"Mimi's encoder is not one module in transformers {__version__}; install a newer release"
            )
        config = model.encoder.config
        last = () if model.encoder.downsample is None else (config.latent_stride,)
        self.strides = (*reversed(config.upsampling_ratios), *last)
        self.layer_dims: tuple[int, ...] = (config.latent_dim,)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Map ``[1, 1, S]`` to ``[T, E]`` after the last stride, the one place with the frame rate."""
        return [self.encoder(wave).latents[0].t()]


class CodecAudioEncoder(ChunkedAudioEncoder):
    """A codec's encoder, one chunk of at most 30 s at a time; decoder and quantiser are left out.

    Hidden states are those that have the frame rate: EnCodec's last strided convolution, its LSTM and the frames;
    Mimi's frames alone, its transformer runs at twice their rate.
    """

    def __init__(self, parts: EncodecParts | MimiParts, rate: int) -> None:
        super().__init__(parts, round(CHUNK_SECONDS * SAMPLE_RATE))
        self.rate = rate
        self.layer_dims = parts.layer_dims
        self.dim = self.layer_dims[-1]
        self.frame_rate = rate / math.prod(parts.strides)

    def count_frames(self, samples: int) -> int:
        """Return the frames that every stride leaves, rounded up in turn."""
        length = max(1, round(samples * self.rate / SAMPLE_RATE))
        for stride in self.model.strides:
            length = -(-length // stride)
        return length

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        by_chunk = []
        for wave in waves:
            samples = torch.from_numpy(resample_to(wave, self.rate))
            wanted = max(1, round(len(wave) * self.rate / SAMPLE_RATE))
            samples = nn.functional.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
            states = self.model(self.move_to_device(samples)[None, None])
            by_chunk.append(states if layers else states[-1:])
        return [list(states) for states in zip(*by_chunk, strict=True)]


def load_codec(path: str, revision: str | None = None, seed: int = 0) -> CodecAudioEncoder:
    """Load the encoder of an EnCodec or a Mimi in float32 by folder or Hub name.

    Raises:
        UserError: when there is no such folder, a tensor is missing, or it hears more than one channel.
    """
    folder = find_model_folder(path, revision)
    mimi = read_model_config(folder)["model_type"] == "mimi"
    config = read_stock_config(folder)
    if config.audio_channels != 1:
        raise UserError(f"{folder} expects {config.audio_channels} channels, but clips are mono")
    kind = MimiModel if mimi else EncodecModel
    model = load_pretrained(kind, folder, seed if path.startswith(RANDOM) else None, config)
    return CodecAudioEncoder(MimiParts(model) if mimi else EncodecParts(model), config.sampling_rate)
