"""Conformer towers: Granite Speech, SeamlessM4T, Gemma 3n and 4, Phi-4 and LASR."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.towers import TowerAudioEncoder, count_convolved, load_tower
from uniaudio.types import SAMPLE_RATE

HOP, WINDOW = 160, 400  # samples of a spectrogram frame; Gemma and Granite have windows of their own
GRANITE_FFT = 512
GEMMA_BLOCK = 128  # samples: clips are filled up to whole blocks


class GraniteSpeechAudioEncoder(TowerAudioEncoder):
    """Granite Speech's conformer (Saon et al. 2025), 50 frames per second, with attention in blocks of 4 s.

    The spectrogram is computed here: the stock extractor needs torchaudio. It is that of ``MelSpectrogram`` with its
    defaults, its logarithm bounded to 8 below the clip's maximum, two neighbours side by side.
    """

    shortest = WINDOW

    def find_width(self) -> int:
        config = self.model.config
        return int(config.hidden_dim * (1 + len(getattr(config, "cat_hidden_layers", None) or ())))

    def list_layer_widths(self) -> list[int]:
        return [int(self.model.config.hidden_dim)] * len(self.model.layers)

    def count_stride(self) -> int:
        return 2 * HOP

    def count_frames(self, samples: int) -> int:
        """Return the pairs among ``floor(samples / 160) + 1`` frames of the spectrogram."""
        return (max(samples, self.least) // HOP + 1) // 2

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        bands = self.model.config.input_dim // 2
        pairs = compute_granite_features(torch.from_numpy(waves[0]), bands)
        return self.model(self.move_to_device(pairs[None])).last_hidden_state


def compute_granite_features(wave: Tensor, bands: int) -> Tensor:
    """Return pairs ``[T, 2 * bands]`` of log-mel frames of one clip."""
    filters = mel_filter_bank(
        GRANITE_FFT // 2 + 1, bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm=None, mel_scale="htk"
    )
    window = torch.hann_window(WINDOW, device=wave.device)
    spectrum = torch.stft(
        wave, GRANITE_FFT, HOP, WINDOW, window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.abs().square().t() @ torch.from_numpy(filters).float()
    log_mel = power.clamp(min=1e-10).log10()
    scaled = torch.maximum(log_mel, log_mel.amax() - 8.0) / 4 + 1
    return scaled[: len(scaled) // 2 * 2].reshape(-1, 2 * bands)


class SeamlessAudioEncoder(TowerAudioEncoder):
    """The speech encoder of SeamlessM4T, version 1 and 2 (Seamless, 2023), at 6.25 frames per second.

    The convolutions of its length adapter, which the published models have, make one frame of eight; before them there
    are 50 per second, so there are no hidden states of the frames' rate.
    """

    reads_mask = True

    def __init__(self, model: Any, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        self.shortest = WINDOW + HOP  # a band's variance needs two filter-bank frames
        super().__init__(model, extractor, chunk_seconds)
        config = model.config
        self.adapters = config.num_adapter_layers if config.add_adapter else 0

    def list_layers(self) -> list[nn.Module]:
        return [] if self.model.config.add_adapter else list(self.model.encoder.layers)

    def count_stride(self) -> int:
        config = self.model.config
        adapted = config.adaptor_stride**config.num_adapter_layers if config.add_adapter else 1
        return int(HOP * self.extractor.stride * adapted)

    def count_frames(self, samples: int) -> int:
        """Return what every adapter layer leaves of the pairs of filter-bank frames."""
        config = self.model.config
        frames = ((max(samples, self.least) - WINDOW) // HOP + 1) // self.extractor.stride
        for _ in range(self.adapters):
            kernel = config.adaptor_kernel_size
            frames = count_convolved(frames, kernel, config.adaptor_stride, kernel // 2 * 2)
        return max(1, int(frames))


class Gemma3nTowerEncoder(TowerAudioEncoder):
    """Gemma 3n's audio tower (Universal Speech Model), at 6.25 frames per second: every fourth of its conformer's.

    There are no hidden states of the frames' rate.
    """

    shortest = 2 * 513

    def list_layers(self) -> list[nn.Module]:
        return [] if self.model.config.conf_reduction_factor > 1 else list(self.model.conformer)

    def count_stride(self) -> int:
        config = self.model.config
        strides = [int(time) for time, _ in config.sscp_conv_stride_size]
        return int(self.extractor.hop_length * np.prod(strides) * config.conf_reduction_factor)

    def count_frames(self, samples: int) -> int:
        """Return the frames that the convolutions and the reduction leave of the spectrogram."""
        config = self.model.config
        filled = -(-max(samples, self.least) // GEMMA_BLOCK) * GEMMA_BLOCK
        frames = (filled - self.extractor.frame_length - 1) // self.extractor.hop_length + 1
        for (kernel, _), (stride, _) in zip(
            config.sscp_conv_kernel_size, config.sscp_conv_stride_size, strict=True
        ):
            frames = count_convolved(frames, kernel, stride, kernel - 1)
        return int(-(-frames // config.conf_reduction_factor))

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        given = self.extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", truncation=False)
        hidden_frames = ~self.move_to_device(given.input_features_mask).bool()
        return self.model(self.move_to_device(given.input_features), hidden_frames).last_hidden_state


class Gemma4TowerEncoder(TowerAudioEncoder):
    """Gemma 4's audio tower, 25 frames per second; clips are padded to the longest and masked in the module."""

    shortest = 3 * HOP
    calls_by_clip = False

    def find_width(self) -> int:
        return int(self.model.config.output_proj_dims)

    def count_stride(self) -> int:
        return int(4 * self.extractor.hop_length)

    def count_frames(self, samples: int) -> int:
        """Return a quarter of the spectrogram's frames whose windows are whole, rounded up."""
        whole = (max(samples, self.least) - 1) // self.extractor.hop_length
        return -(-int(whole) // 4)

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        given = self.extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", truncation=False)
        mask = self.move_to_device(given.input_features_mask).bool()
        return self.model(self.move_to_device(given.input_features), mask).last_hidden_state


class Phi4AudioEncoder(TowerAudioEncoder):
    """The conformer of Phi-4 multimodal (Microsoft, 2025), 12.5 frames per second, before its projections."""

    shortest = WINDOW

    def list_layers(self) -> list[nn.Module]:
        return list(self.model.encoders)

    def count_stride(self) -> int:
        return int(self.extractor.hop_length * self.model.config.time_reduction)

    def count_frames(self, samples: int) -> int:
        """Return a part of the whole windows of the spectrogram, rounded up."""
        windows = (max(samples, self.least) - self.extractor.win_length) // self.extractor.hop_length + 1
        return int(-(-windows // self.model.config.time_reduction))

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        given = self.extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return self.model(self.move_to_device(given.audio_input_features), None)


class LasrAudioEncoder(TowerAudioEncoder):
    """LASR's conformer (Google's MedASR), 25 frames per second."""

    shortest = WINDOW + 12 * HOP  # of one frame behind both convolutions

    def count_stride(self) -> int:
        return int(self.extractor.hop_length * self.model.config.subsampling_conv_stride**2)

    def count_frames(self, samples: int) -> int:
        """Return the frames that both convolutions leave of the whole windows of the spectrogram."""
        config = self.model.config
        frames = (max(samples, self.least) - self.extractor.win_length) // self.extractor.hop_length + 1
        for _ in range(2):
            frames = count_convolved(
                frames, config.subsampling_conv_kernel_size, config.subsampling_conv_stride, 0
            )
        return int(frames)


load_from_encoder = partial(load_tower, prefixes=("model.encoder.", "encoder."), sections=("encoder_config",))
load_granite_speech = partial(
    load_from_encoder, GraniteSpeechAudioEncoder, "granite_speech:GraniteSpeechCTCEncoder", None
)
load_granite_speech_plus = partial(
    load_from_encoder, GraniteSpeechAudioEncoder, "granite_speech_plus:GraniteSpeechPlusCTCEncoder", None
)
load_lasr = partial(load_from_encoder, LasrAudioEncoder, "lasr:LasrEncoder", "lasr:LasrFeatureExtractor")

SEAMLESS = "seamless_m4t:SeamlessM4TFeatureExtractor"
load_from_speech_encoder = partial(load_tower, SeamlessAudioEncoder, prefixes=("speech_encoder.",))
load_seamless = partial(load_from_speech_encoder, "seamless_m4t:SeamlessM4TSpeechEncoder", SEAMLESS)
load_seamless_v2 = partial(load_from_speech_encoder, "seamless_m4t_v2:SeamlessM4Tv2SpeechEncoder", SEAMLESS)

load_from_audio_tower = partial(
    load_tower, prefixes=("model.audio_tower.", "audio_tower."), sections=("audio_config",)
)
load_gemma3n = partial(
    load_from_audio_tower,
    Gemma3nTowerEncoder,
    "gemma3n:Gemma3nAudioEncoder",
    "gemma3n:Gemma3nAudioFeatureExtractor",
)
load_gemma4 = partial(
    load_from_audio_tower, Gemma4TowerEncoder, "gemma4:Gemma4AudioModel", "gemma4:Gemma4AudioFeatureExtractor"
)
load_phi4 = partial(
    load_tower,
    Phi4AudioEncoder,
    "phi4_multimodal:Phi4MultimodalAudioModel",
    "phi4_multimodal:Phi4MultimodalFeatureExtractor",
    prefixes=("model.embed_tokens_extend.audio_embed.encoder.",),
    sections=("audio_config",),
)
