"""The audio side of CLAP: HTSAT, a Swin transformer over a folded spectrogram of ten seconds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ClapAudioConfig, ClapFeatureExtractor
from transformers.models.clap.modeling_clap import ClapAudioModel

from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.resampled import resample_to
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.model_files import RANDOM, find_model_folder, read_extractor_settings, use_stock_attention
from uniaudio.types import SAMPLE_RATE

PREFIXES = ("audio_model.", "")  # where a full and a part checkpoint keep the tensors


class ClapAudioEncoder(ChunkedAudioEncoder):
    """HTSAT (Chen et al. 2022) as in CLAP (Wu et al. 2023): a frame is the mean over frequency at one time.

    The stock extractor works at 48 kHz on windows of 10 s and repeats shorter clips to fill them; its frames beyond
    the clip are dropped. The spectrogram is folded into strips of time below each other; hidden states are unfolded
    again, and those of earlier stages, finer in time, averaged to the times of the last. 32 frames per 10 s.
    """

    calls_by_clip = False

    def __init__(self, model: ClapAudioModel, extractor: ClapFeatureExtractor) -> None:
        super().__init__(model, chunk=round(extractor.max_length_s * SAMPLE_RATE))
        config = model.config
        for name, parameter in model.named_parameters():
            # for windows longer than 10 s, which there are none of
            if "fusion_model" in name or "mel_conv2d" in name:
                parameter.requires_grad_(False)
        self.extractor = extractor
        self.stages = len(config.depths)
        self.strips = config.spec_size // config.num_mel_bins
        # times in a strip, at last
        width = config.spec_size // config.patch_stride[1] // 2 ** (self.stages - 1)
        self.times = self.strips * width
        first = config.patch_embeds_hidden_size
        self.dim = first * 2 ** (self.stages - 1)
        self.layer_dims = (first, *(first * 2**stage for stage in range(self.stages - 1)), self.dim)
        self.frame_rate = self.times / extractor.max_length_s
        self.train(model.training)  # a new module trains its batch norms until it is set not to

    def count_frames(self, samples: int) -> int:
        """Return the times that begin within the sound, at least one."""
        return max(1, math.ceil(samples * self.times / self.chunk))

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        rate = self.extractor.sampling_rate
        loud = [resample_to(wave, rate) for wave in waves]
        features = self.extractor(loud, sampling_rate=rate, return_tensors="pt").input_features
        output = self.model.audio_encoder(
            self.move_to_device(features),
            is_longer=torch.zeros(len(waves), 1, dtype=torch.bool),  # no chunk is longer than the window
            output_hidden_states=layers,
            output_hidden_states_before_downsampling=True,
        )
        before = output.hidden_states[: self.stages] if layers else ()
        states = [self.unfold_over_time(state) for state in before]
        last = output.last_hidden_state.mean(2).transpose(1, 2)  # [W, E, frequency, time]
        return [*states, list(last)]

    def unfold_over_time(self, hidden: Tensor) -> list[Tensor]:
        """Unfold ``[W, E, strips * frequency, time]`` to ``[W, strips * time, E]`` at the times of the last stage."""
        unfolded = hidden.unflatten(2, (self.strips, -1)).mean(3).flatten(2)
        coarse = unfolded.unflatten(2, (self.times, -1)).mean(3)
        return list(coarse.transpose(1, 2))


def load_clap(path: str, revision: str | None = None, seed: int = 0) -> ClapAudioEncoder:
    """Load the audio side of a CLAP in float32 by folder or Hub name; nothing else of a full one is read.

    Raises:
        UserError: when there is no such folder, or a tensor is missing or unknown.
    """
    folder = find_model_folder(path, revision)
    config = use_stock_attention(ClapAudioConfig.from_pretrained(folder))
    model = build_with_random_weights(lambda: ClapAudioModel(config), seed)
    if not path.startswith(RANDOM):
        fill(model, read_saved_tensors(folder, model), folder)
    return ClapAudioEncoder(model.float(), load_extractor(folder, config))


def read_saved_tensors(folder: Path, model: ClapAudioModel) -> dict[str, Tensor]:
    """Return the saved tensors; indices that the model computes itself are taken from it."""
    tensors = read_tensors(folder, PREFIXES)
    computed = {name: tensor for name, tensor in model.state_dict().items() if name not in tensors}
    return {**tensors, **{n: t for n, t in computed.items() if "relative_position_index" in n}}


def load_extractor(folder: Path, config: ClapAudioConfig) -> ClapFeatureExtractor:
    """Return the folder's feature extractor, or one that suits the config."""
    truncation = "fusion" if config.enable_fusion else "rand_trunc"  # they differ in their filters, too
    usual = {"feature_size": config.num_mel_bins, "truncation": truncation}
    return ClapFeatureExtractor.from_dict(read_extractor_settings(folder) or usual)
