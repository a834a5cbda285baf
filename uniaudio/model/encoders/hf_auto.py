"""Any other model with an extractor of its own, and models whose code lives in their repository, such as Dasheng."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel

from uniaudio.errors import UserError, escape_text, read_first_line
from uniaudio.model.encoders.base import NoFramesError
from uniaudio.model.encoders.feature_extractor import ChunkedAudioEncoder
from uniaudio.model.encoders.resampled import resample_to
from uniaudio.model.encoders.weights import build_with_random_weights, load_pretrained
from uniaudio.model.model_files import (
    CONFIGS,
    RANDOM,
    disable_random_skips,
    find_model_folder,
    read_extractor_settings,
    read_json_object,
    read_model_config,
    read_stock_config,
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

    Frames are ``last_hidden_state``, or ``hidden_states`` where that is one tensor (Dasheng), or the first other
    tensor of clips, frames and features that is no logits. Hidden states are those with the frames' rate, where the
    model gives them. A chunk gives ``ceil(samples * rate / 16000)`` frames: the last one is repeated, or frames at the
    end are dropped, where the model's own count differs by up to two.

    Args:
        frame_rate: frames per second; None measures it once on silence.

    Raises:
        NoFramesError: when the model does not read a clip alone, or its output has no frames.
        UserError: when their rate is no usual one.
    """

    def __init__(self, model: nn.Module, extractor: Any, frame_rate: float | None = None) -> None:
        super().__init__(model, round(CHUNK_SECONDS * SAMPLE_RATE), LEAST)
        self.extractor = extractor
        self.frame_rate = frame_rate or 0.0
        *before, frames = self.try_silence(TRIAL_SECONDS)
        shorter = self.try_silence(TRIAL_SECONDS // 2)[-1]
        if len(shorter) >= len(frames) or shorter.shape[-1] != frames.shape[-1]:
            raise NoFramesError(
                f"{type(model).__name__} gives no frames: its output has {len(frames)} rows of {frames.shape[-1]} "
                f"values for {TRIAL_SECONDS} s of sound and {len(shorter)} of {shorter.shape[-1]} for half of it"
            )
        # fixed here: in a very short chunk states of another rate have as many frames by chance
        self.used = [i for i, state in enumerate(before) if len(state) == len(frames)]
        self.layer_dims = (*(before[i].shape[-1] for i in self.used), frames.shape[-1])
        self.dim = frames.shape[-1]
        if frame_rate is None:
            self.frame_rate = round_rate(len(frames) / TRIAL_SECONDS, type(model).__name__)

    def count_frames(self, samples: int) -> int:
        """Return ``ceil(samples * rate / 16000)``, at least one."""
        return max(1, math.ceil(samples * self.frame_rate / SAMPLE_RATE))

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        by_chunk = []
        for wave in waves:
            *before, frames = self.run_model(wave)
            states = [*(before[i] for i in self.used if layers), frames]
            by_chunk.append(self.check_num_frames(states, len(wave)))
        return [list(states) for states in zip(*by_chunk, strict=True)]

    @torch.no_grad()
    def try_silence(self, seconds: int) -> list[Tensor]:
        """Return what ``run_model`` makes of silence.

        Raises:
            NoFramesError: in the place of whatever the model raises, such as for inputs that no extractor makes.
        """
        try:
            return self.run_model(np.zeros(seconds * SAMPLE_RATE, np.float32))
        except UserError:  # such as for a package that is missing
            raise
        except Exception as problem:
            reason = escape_text(read_first_line(problem))
            raise NoFramesError(
                f"{type(self.model).__name__} gives no frames of a clip alone ({reason})"
            ) from problem

    def run_model(self, wave: NDArray[np.float32]) -> list[Tensor]:
        """Return every hidden state ``[T, E]`` of one chunk, the frames last."""
        rate = getattr(self.extractor, "sampling_rate", SAMPLE_RATE)
        features = self.extractor(resample_to(wave, rate), sampling_rate=rate, return_tensors="pt")
        given = {
            name: self.move_to_device(value) for name, value in features.items() if isinstance(value, Tensor)
        }
        return find_hidden_states(self.model(**given), type(self.model).__name__)

    def check_num_frames(self, states: list[Tensor], samples: int) -> list[Tensor]:
        """Bring the frames of a chunk to their stated number.

        Raises:
            UserError: when the model has many more or fewer, or none.
        """
        wanted, given = self.count_frames(samples), len(states[-1])
        if abs(wanted - given) > SLACK or not given:
            raise UserError(
                f"{type(self.model).__name__} gave {given} frames for {samples / SAMPLE_RATE:.2f} "
                f"s, but {wanted} are expected at {self.frame_rate:g} per second; set frame_rate"
            )
        if given >= wanted:
            return [state[:wanted] for state in states]
        return [torch.cat([state, state[-1:].expand(wanted - given, -1)]) for state in states]


def find_hidden_states(output: Any, name: str) -> list[Tensor]:
    """Return the hidden states ``[T, E]`` in a model's output for one clip, the frames last.

    Raises:
        NoFramesError: when none of its tensors has clips, frames and features.
    """
    if isinstance(output, Mapping):
        named = dict(output)
    else:
        named = dict(enumerate(output)) if isinstance(output, tuple | list) else {0: output}
    states = named.pop("hidden_states", None)
    states = list(states) if isinstance(states, tuple | list) else [states]
    others = [value for key, value in named.items() if "logits" not in str(key)]
    frames = next(filter(is_frames, [named.get("last_hidden_state"), *states[-1:], *others]), None)
    if frames is None:
        raise NoFramesError(
            f"{name} gives no frames: neither last_hidden_state nor hidden_states "
            "is a tensor of clips, frames and features"
        )
    return [state[0] for state in (*filter(is_frames, states[:-1]), frames)]


def is_frames(value: Any) -> bool:
    """Return whether this is a tensor of clips, frames and features."""
    return isinstance(value, Tensor) and value.dim() == 3


def round_rate(measured: float, name: str) -> float:
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


def list_code_places(folder: Path) -> list[str]:
    """Return the places of Python code that the configs of a folder name; ``repository--`` before another's.

    Raises:
        UserError: when one of them cannot be read.
    """
    configs = [read_json_object(folder / name) for name in CONFIGS] + [read_extractor_settings(folder)]
    maps = [config.get("auto_map") for config in configs]
    places = (str(place) for auto_map in maps if isinstance(auto_map, dict) for place in auto_map.values())
    return list(dict.fromkeys(places))


def refuse_code(folder: Path, name: str) -> None:
    """Look for code before any of it could run.

    Raises:
        UserError: when the checkpoint wants to run code, naming whose.
    """
    places = list_code_places(folder)
    if not places:
        return
    others = sorted({place.split("--")[0] for place in places if "--" in place} - {name})
    whose = f" (that of {', '.join(others)})" if others else ""
    raise UserError(
        f"{name} comes with its own Python code{whose}; read it, and give --trust-remote-code to "
        "let it run (a run config also states trust_remote_code: true for it)"
    )


def load_remote(
    path: str,
    revision: str | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    frame_rate: float | None = None,
) -> RemoteAudioEncoder:
    """Load any model with ``AutoModel`` and ``AutoFeatureExtractor``, in float32.

    Raises:
        UserError: when it wants to run code of its own and that was not allowed, it cannot be loaded, or a tensor
            is missing.
    """
    name = path.removeprefix(RANDOM)
    folder = find_model_folder(path, revision, code=trust_remote_code)
    read_model_config(folder)
    if not trust_remote_code:
        refuse_code(folder, name)
    trust = {"trust_remote_code": trust_remote_code}
    # a sketch on the meta device needs values, too: the model's frames are counted in a trial
    wanted, here = torch.get_default_device(), torch.device("cpu")
    try:
        with here:
            extractor = AutoFeatureExtractor.from_pretrained(folder, **trust)
            config = disable_random_skips(read_stock_config(folder, trusted=trust_remote_code))
            config.output_hidden_states = True  # models that know no such setting leave it unread
            if path.startswith(RANDOM):
                model = build_with_random_weights(lambda: AutoModel.from_config(config, **trust), seed)
            else:
                model = load_pretrained(AutoModel, folder, None, config, **trust)
    except (OSError, ValueError, ImportError, AttributeError) as problem:
        raise UserError(
            f"{name} cannot be loaded with its feature extractor ({read_first_line(problem)})"
        ) from problem
    with here:
        encoder = RemoteAudioEncoder(model.float().eval(), extractor, frame_rate)
    return encoder.to(wanted) if wanted.type == "meta" else encoder
