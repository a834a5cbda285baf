"""Any other model with an extractor of its own, and models whose code lives in their repository, such as Dasheng."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from uniaudio.errors import UserError
from uniaudio.model.encoders.chunked import ChunkedAudioEncoder, resampled
from uniaudio.model.encoders.weights import (
    FILES,
    RANDOM,
    checkpoint_folder,
    read_model_config,
    with_random_weights,
)
from uniaudio.types import SAMPLE_RATE

RATES = (10.0, 12.5, 20.0, 25.0, 40.0, 50.0, 62.5, 75.0, 80.0, 100.0)  # frames per second that models have
NEAR = 0.04  # relative distance to one of them
TRIAL_SECONDS = 4
SLACK = 2  # frames by which a model's count may differ from the rate's
CHUNK_SECONDS = 10.0
LEAST = 1600  # samples


class RemoteAudioEncoder(ChunkedAudioEncoder):
    """One chunk of 10 s at a time through the checkpoint's own extractor and model.

    Frames are ``last_hidden_state``, or ``hidden_states`` where that is one tensor (Dasheng). A chunk gives
    ``ceil(samples * rate / 16000)`` frames: the last one is repeated, or frames at the end are dropped, where the
    model's own count differs by up to two.

    Args:
        frame_rate: frames per second; None measures it once on silence.

    Raises:
        UserError: when no frames are found, or their rate is no usual one.
    """

    def __init__(self, model: nn.Module, extractor: Any, frame_rate: float | None = None) -> None:
        super().__init__(model, round(CHUNK_SECONDS * SAMPLE_RATE), LEAST)
        self.extractor = extractor
        self.frame_rate = frame_rate or 0.0
        with torch.no_grad():
            found = self.run_model(np.zeros(TRIAL_SECONDS * SAMPLE_RATE, np.float32))
        self.dim = found[-1].shape[-1]
        self.layer_dims = tuple(state.shape[-1] for state in found)
        if frame_rate is None:
            self.frame_rate = usual_rate(len(found[-1]) / TRIAL_SECONDS, type(model).__name__)

    def frames_of(self, samples: int) -> int:
        """Return ``ceil(samples * rate / 16000)``, at least one."""
        return max(1, math.ceil(samples * self.frame_rate / SAMPLE_RATE))

    def encode_chunks(self, waves: list[NDArray[np.float32]]) -> list[list[Tensor]]:
        by_chunk = [self.counted(self.run_model(wave), len(wave)) for wave in waves]
        return [list(states) for states in zip(*by_chunk, strict=True)]

    def run_model(self, wave: NDArray[np.float32]) -> list[Tensor]:
        """Return the hidden states ``[T, E]`` of one chunk that have as many frames as the last one."""
        rate = getattr(self.extractor, "sampling_rate", SAMPLE_RATE)
        features = self.extractor(resampled(wave, rate), sampling_rate=rate, return_tensors="pt")
        given = {
            name: self.on_device(value) if value.is_floating_point() else value
            for name, value in features.items()
            if isinstance(value, Tensor)
        }
        output = self.model(**given)
        states = getattr(output, "hidden_states", None)
        last = getattr(output, "last_hidden_state", None)
        if isinstance(states, tuple | list):
            last, states = (states[-1] if last is None else last), list(states)
        else:
            last, states = (states if last is None else last), []
        if not isinstance(last, Tensor) or last.dim() != 3:
            raise UserError(
                f"{type(self.model).__name__} gives no frames: neither last_hidden_state nor hidden_states "
                "is a tensor of clips, frames and features"
            )
        return [*[s[0] for s in states[:-1] if s.shape[1] == last.shape[1]], last[0]]

    def counted(self, states: list[Tensor], samples: int) -> list[Tensor]:
        """Bring the frames of a chunk to their stated number.

        Raises:
            UserError: when the model has many more or fewer.
        """
        wanted, own = self.frames_of(samples), len(states[-1])
        if abs(wanted - own) > SLACK:
            raise UserError(
                f"{type(self.model).__name__} gave {own} frames for {samples / SAMPLE_RATE:.2f} s, but at "
                f"{self.frame_rate:g} per second there must be {wanted}; set frame_rate"
            )
        if own >= wanted:
            return [state[:wanted] for state in states]
        return [torch.cat([state, state[-1:].expand(wanted - own, -1)]) for state in states]


def usual_rate(measured: float, name: str) -> float:
    """Return the usual frame rate next to a measured one.

    Raises:
        UserError: when none is near.
    """
    nearest = min(RATES, key=lambda rate: abs(rate - measured))
    if abs(nearest - measured) > NEAR * measured:
        raise UserError(
            f"{name} gives {measured:g} frames per second; if that is right, set frame_rate to it"
        )
    return nearest


def load_remote(
    path: str,
    revision: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    frame_rate: float | None = None,
) -> RemoteAudioEncoder:
    """Load any model with ``AutoModel`` and ``AutoFeatureExtractor``, in float32.

    Raises:
        UserError: when it wants to run code of its own and that was not allowed, or it cannot be loaded.
    """
    name = path.removeprefix(RANDOM)
    folder = checkpoint_folder(name, revision, [*FILES, "*.py"] if trust_remote_code else FILES)
    if "auto_map" in read_model_config(folder) and not trust_remote_code:
        raise UserError(
            f"{name} brings its own Python code; read it, and set trust_remote_code: true to let it run"
        )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if path.startswith(RANDOM):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            model = with_random_weights(
                lambda: AutoModel.from_config(config, trust_remote_code=trust_remote_code), seed
            )
        else:
            with torch.random.fork_rng(devices=[]):
                model = AutoModel.from_pretrained(
                    folder, trust_remote_code=trust_remote_code, use_safetensors=True, dtype=torch.float32
                )
    except (OSError, ValueError, ImportError, AttributeError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{name} cannot be loaded with its feature extractor ({reason})") from problem
    return RemoteAudioEncoder(model.float().eval(), extractor, frame_rate)
