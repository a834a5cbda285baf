"""Trained models in Python: encoder, adapter and decoder, to be asked about clips."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import torch

from uniaudio.build.encoders import open_device
from uniaudio.build.model import LoadedModel
from uniaudio.build.model import load_model as load_parts
from uniaudio.commands.ask import answer_questions
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import Trust
from uniaudio.data.clips_from_python import AudioInput, is_single_clip, iterate_clips
from uniaudio.errors import UserError, require_number
from uniaudio.model.audio_lm import AudioLM
from uniaudio.types import SAMPLE_RATE


class TrainedModel:
    """A trained encoder with its adapter and language model, from ``uniaudio.load_model``.

    Example:
        >>> model = uniaudio.load_model("runs/birds")
        >>> answer = model.ask("dog.flac", "Which bird is calling?", max_new_tokens=8)
        >>> answers = model.ask(["dog.flac", "rain.wav"], "Which bird is calling?", max_new_tokens=8)
        >>> len(answers)
        2

    Attributes:
        model: the module: encoder, adapter and decoder. config: of its run.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @property
    def model(self) -> AudioLM:
        """The module; ``model.encoder`` maps ragged waveforms to ragged frames."""
        return self._loaded.model

    @property
    def config(self) -> RunConfig:
        """The config of its run."""
        return self._loaded.config

    @overload
    def ask(  # type: ignore[overload-overlap]
        self,
        audio: AudioInput,
        text: str,
        *,
        sampling_rate: int = SAMPLE_RATE,
        max_new_tokens: int = 256,
        batch_seconds: float = 60.0,
    ) -> str: ...

    @overload
    def ask(
        self,
        audio: Iterable[AudioInput],
        text: str | Sequence[str],
        *,
        sampling_rate: int = SAMPLE_RATE,
        max_new_tokens: int = 256,
        batch_seconds: float = 60.0,
    ) -> list[str]: ...

    def ask(
        self,
        audio: AudioInput | Iterable[AudioInput],
        text: str | Sequence[str],
        *,
        sampling_rate: int = SAMPLE_RATE,
        max_new_tokens: int = 256,
        batch_seconds: float = 60.0,
    ) -> str | list[str]:
        """Answer a question about a clip, or one question about each of several clips.

        Args:
            audio: one clip or a list: paths, encoded bytes, waveforms, ``(waveform, rate)``, audio of ``datasets`` or
                decoders, see ``Embedder.embed``.
            text: the question; ``<audio>`` marks the position of the clip (default: first). For a list of clips one
                question, or one for each.
            sampling_rate: of waveforms that do not state theirs, in Hz. max_new_tokens: longest answer; an answer that
                is cut says so. batch_seconds: audio of the clips that are answered together.

        Raises:
            UserError: when a clip or the question cannot be used, naming it.
        """
        require_number("max_new_tokens", max_new_tokens)
        require_number("batch_seconds", batch_seconds, is_whole=False)
        if is_single_clip(audio):
            if not isinstance(text, str):
                raise UserError(f"text: one clip takes one question, not {type(text).__name__}")
            clips: list[AudioInput] = [audio]  # type: ignore[list-item]
        else:
            clips = [clip for _, clip in iterate_clips(audio)]  # type: ignore[arg-type]
        answers = answer_questions(self._loaded, clips, text, sampling_rate, max_new_tokens, batch_seconds)
        return answers[0] if is_single_clip(audio) else answers

    def __repr__(self) -> str:
        device = next(self.model.parameters()).device
        return f"TrainedModel(encoders {', '.join(self.config.encoders)}, on {device})"


def load_model(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> TrainedModel:
    """Load a trained model from a run folder, a checkpoint or an exported whole model, to ask it questions.

    Args:
        path: ``RUN:ema`` takes its moving averages. device: default CUDA where there is one, else the CPU.
        trust_remote_code: let Python code that comes with its parts run. allow_code: import encoder classes that its
            config names as ``module:Class``.

    Raises:
        UserError: when there is no whole checkpoint, its parts are not those it was trained with, or it needs code
            that was not allowed.

    Example:
        >>> model = uniaudio.load_model("runs/birds", device="cpu")
        >>> answer = model.ask("dog.flac", "Which bird is calling?", max_new_tokens=8)
    """
    spec = os.path.expanduser(str(path))
    return TrainedModel(load_parts(spec, open_device(device), Trust(trust_remote_code, allow_code)))
