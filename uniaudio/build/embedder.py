"""The encoder as Python users want it: files or arrays in, one vector or all frames per clip out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from uniaudio.build.encoders import choose_device, load_encoder
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.data.audio import QUANTA, decode
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import embed_clips, encode_clips
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.lora import merge_lora
from uniaudio.types import SAMPLE_RATE

ClipInput = str | Path | NDArray[Any] | torch.Tensor
LONGEST = 24 * 3600.0  # seconds of a file; encoders cut what is beyond their reach
LOUDEST = 2.0  # size of a float sample; beyond it the samples were never in [-1, 1]


class Embedder:
    """A trained encoder, frozen and ready.

    Several threads may call ``embed`` at once: files are read side by side, the encoder takes one batch at a time, and
    everyone gets the same numbers as alone.

    Example:
        >>> encoder = uniaudio.load_encoder("runs/joint")  # doctest: +SKIP
        >>> vectors = encoder.embed(["dog.flac", waveform], sampling_rate=44_100)  # doctest: +SKIP
        >>> frames = encoder.embed(["dog.flac"], pool="none")[0]  # doctest: +SKIP
        >>> frames.shape[1] == encoder.dim  # doctest: +SKIP
        True

    Attributes:
        encoder: the module itself, ragged waveforms in, ragged frames out.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        merge_lora(encoder)
        self.encoder = encoder.eval().requires_grad_(False)
        self._one_at_a_time = threading.Lock()

    @property
    def dim(self) -> int:
        """Width E of a vector and of a frame."""
        return self.encoder.dim

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.encoder.frame_rate

    @overload
    def embed(
        self,
        clips: Sequence[ClipInput],
        pool: Literal["mean"] = "mean",
        *,
        sampling_rate: int = SAMPLE_RATE,
        batch_seconds: float = 60.0,
    ) -> NDArray[np.float32]: ...

    @overload
    def embed(
        self,
        clips: Sequence[ClipInput],
        pool: Literal["none"],
        *,
        sampling_rate: int = SAMPLE_RATE,
        batch_seconds: float = 60.0,
    ) -> list[NDArray[np.float32]]: ...

    def embed(
        self,
        clips: Sequence[ClipInput],
        pool: Literal["mean", "none"] = "mean",
        *,
        sampling_rate: int = SAMPLE_RATE,
        batch_seconds: float = 60.0,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Encode clips of any length; a clip's result does not depend on the clips beside it, up to rounding.

        Args:
            clips: files by path, or mono waveforms ``[S]`` as numpy arrays or torch tensors: floats in [-1, 1] or
                int16.
            pool: ``mean``: the mean over each clip's real frames, ``[C, E]`` float32; ``none``: a list of ``[A_i, E]``.
            sampling_rate: of the waveforms, in Hz; they are resampled to 16 kHz. A file states its own.
            batch_seconds: audio that is encoded at a time; less needs less memory.

        Raises:
            UserError: when a clip cannot be used, naming it.
        """
        if isinstance(clips, str | Path):
            raise UserError(f"clips: give a list of clips, such as ['{clips}']")
        if pool not in ("mean", "none"):
            raise UserError(f"pool: '{pool}' is neither mean nor none")
        if not len(clips):
            return np.zeros((0, self.dim), np.float32) if pool == "mean" else []
        waves = [load_samples(clip, sampling_rate, f"clips[{i}]") for i, clip in enumerate(clips)]
        with self._one_at_a_time:
            if pool == "none":
                return encode_clips(self.encoder, waves, batch_seconds)
            return embed_clips(self.encoder, waves, batch_seconds)


def load_samples(clip: ClipInput, rate: int, name: str) -> NDArray[Any]:
    """Return float32 samples ``[S]`` in [-1, 1] at 16 kHz.

    Raises:
        UserError: when the clip cannot be used.
    """
    if isinstance(clip, str | Path):
        try:
            return decode(Path(clip), LONGEST, str(clip)).astype(np.float32) / np.float32(QUANTA)
        except RowError as problem:
            raise UserError(str(problem)) from problem
    samples = clip.detach().cpu().numpy() if isinstance(clip, torch.Tensor) else np.asarray(clip)
    if samples.ndim != 1 or not len(samples):
        raise UserError(
            f"{name}: a waveform has one axis and at least one sample, not the shape {samples.shape}"
        )
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / np.float32(QUANTA)
    elif np.issubdtype(samples.dtype, np.floating):
        samples = samples.astype(np.float32)
    else:
        raise UserError(f"{name}: samples are int16 or floats in [-1, 1], not {samples.dtype}")
    loudest = float(np.abs(samples).max())
    if not loudest <= LOUDEST:  # NaN, too
        raise UserError(f"{name}: float samples are finite and in [-1, 1], but the largest is {loudest:g}")
    if rate == SAMPLE_RATE:
        return samples
    if rate <= 0:
        raise UserError(f"sampling_rate: {rate} Hz is not above 0")
    samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    if not len(samples):
        raise UserError(f"{name}: nothing is left of the waveform at 16 kHz")
    return samples


def load_embedder(
    spec: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust: Trust = NO_TRUST,
) -> Embedder:
    """Load an encoder by run, checkpoint, exported folder, model folder or Hub name.

    Args:
        trust: code that the model may run.

    Raises:
        UserError: when it is none of them, needs code that was not allowed, or the device is not there.
    """
    try:
        place = choose_device() if device is None else torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as problem:
        raise UserError(f"device: {device} cannot be used ({str(problem).splitlines()[0]})") from problem
    encoder = load_encoder(spec, place, trust)
    return Embedder(encoder if dtype is None else encoder.to(dtype))
