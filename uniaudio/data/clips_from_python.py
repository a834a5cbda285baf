"""Clips as Python users have them: files, encoded bytes, waveforms, audio of ``datasets``, decoders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from uniaudio.data.audio import decode, mix_channels, scale_to_floats
from uniaudio.errors import RowError, UserError, convert_to_user_error, require_number
from uniaudio.types import SAMPLE_RATE

LOUDEST = 2.0  # size of a float sample; beyond it the samples were never in [-1, 1]
KINDS = "a path, encoded bytes, an open file, a waveform, (waveform, rate), the `audio` of a datasets row, or a decoder"
Waveform = NDArray[Any] | torch.Tensor


class AudioDecoder(Protocol):
    """A decoder as of ``torchcodec``, which ``datasets`` gives for the audio of a row."""

    def get_all_samples(self) -> Any:
        """Return an object with ``data [C, S]`` and ``sample_rate``."""
        ...


AudioInput = (
    str
    | Path
    | bytes
    | bytearray
    | memoryview
    | Waveform
    | tuple[Any, int]
    | Mapping[str, Any]
    | AudioDecoder
)


def is_single_clip(clips: object) -> bool:
    """Return whether a value stands for one clip rather than for a list of clips.

    Raises:
        UserError: for an array of two axes, which may be the channels of one clip or many clips.
    """
    if isinstance(clips, np.ndarray | torch.Tensor):
        if isinstance(clips, np.ndarray) and clips.dtype.kind not in "iufb":
            return False  # an array of paths
        if clips.ndim == 2:
            raise UserError(
                f"clips: an array of the shape {tuple(clips.shape)} may be channels of one clip or many clips; give "
                "[array] for one clip, list(array) for many"
            )
        return clips.ndim <= 1
    if isinstance(clips, tuple) and is_waveform_with_rate(clips):
        return True
    return isinstance(clips, str | Path | bytes | bytearray | memoryview | Mapping) or is_decoder(clips)


def is_waveform_with_rate(clip: tuple[Any, ...]) -> bool:
    """Return whether a tuple is ``(waveform, rate)``, as torchaudio, librosa and soundfile return it."""
    return len(clip) == 2 and isinstance(clip[1], Real) and isinstance(clip[0], np.ndarray | torch.Tensor)


def is_decoder(clip: object) -> bool:
    """Return whether a value decodes to samples, holds them with their rate, or is an open file."""
    return any(hasattr(clip, name) for name in ("get_all_samples", "sample_rate", "read"))


def iterate_clips(clips: Iterable[AudioInput]) -> Iterator[tuple[str, AudioInput]]:
    """Yield every clip of a list with a name for messages.

    Raises:
        UserError: for what is no list of clips.
    """
    with convert_to_user_error("clips: not a list of clips", f"give {KINDS}, or a list of them"):
        iterator = iter(clips)
    for number, clip in enumerate(iterator):
        yield f"clips[{number}]", clip


def read_samples(clip: AudioInput, rate: int, max_seconds: float, name: str) -> NDArray[np.float32]:
    """Return float32 samples ``[S]`` in [-1, 1] at 16 kHz: the mean of the channels, resampled.

    Args:
        clip: what ``KINDS`` says, or a row of ``datasets`` with an ``audio`` column. Waveforms are ``[S]``,
            ``[S, C]`` or ``[C, S]``, int16 or floats in [-1, 1].
        rate: of a waveform that does not state its own, in Hz. max_seconds: of a file or of bytes.

    Raises:
        UserError: when the clip cannot be used, naming it.
    """
    if isinstance(clip, Mapping):
        return read_mapping(clip, rate, max_seconds, name)
    if isinstance(clip, str) and "://" in clip:
        raise UserError(f"{name}: {clip} is a URL, not a file; download it first")
    if isinstance(clip, str | Path):
        return decode_samples(Path(clip).expanduser(), max_seconds, str(clip))
    value: Any = clip
    with convert_to_user_error(f"{name}: cannot be read"):
        if hasattr(value, "read"):
            value = value.read()
        if hasattr(value, "get_all_samples"):
            value = value.get_all_samples()
    if isinstance(value, bytes | bytearray | memoryview):
        return decode_samples(bytes(value), max_seconds, name)
    if isinstance(value, tuple) and is_waveform_with_rate(value):
        value, rate = value
    elif hasattr(value, "sample_rate") and hasattr(value, "data"):
        value, rate = value.data, value.sample_rate
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise UserError(f"{name}: {type(value).__name__} is not audio; give {KINDS}")
    return resample(scale_samples(value, name), rate, name)


def read_mapping(clip: Mapping[str, Any], rate: int, max_seconds: float, name: str) -> NDArray[np.float32]:
    """Return the samples of an ``audio`` value of ``datasets``, decoded or not, or of a row that has one."""
    if clip.get("array") is not None:
        if "sampling_rate" not in clip:
            raise UserError(f"{name}: an `array` without a `sampling_rate`")
        array = clip["array"]
        if not isinstance(array, np.ndarray | torch.Tensor):
            with convert_to_user_error(f"{name}: its `array` has no samples"):
                array = np.asarray(array, np.float64)
        return resample(scale_samples(array, name), clip["sampling_rate"], name)
    if clip.get("bytes") is not None:
        place = str(clip.get("path") or "")
        return decode_samples(clip["bytes"], max_seconds, place or name, Path(place).suffix)
    if clip.get("path") is not None:
        return read_samples(clip["path"], rate, max_seconds, name)
    if clip.get("audio") is not None:
        return read_samples(clip["audio"], rate, max_seconds, f"{name}['audio']")
    raise UserError(
        f"{name}: a mapping with the keys {', '.join(map(str, clip)) or 'none'} is not audio; it "
        "needs `array` and `sampling_rate`, `bytes`, `path` or `audio`"
    )


def decode_samples(
    source: Path | bytes, max_seconds: float, name: str, suffix: str = ""
) -> NDArray[np.float32]:
    """Return the samples of a file or of encoded bytes."""
    try:
        return scale_to_floats(decode(source, max_seconds, name, suffix=suffix))
    except RowError as problem:
        raise UserError(str(problem)) from problem


def scale_samples(waveform: Waveform, name: str) -> NDArray[np.float32]:
    """Return a waveform as float32 ``[S]`` in [-1, 1]; the shorter of two axes holds the channels."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    samples = np.asarray(waveform)
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError(
            f"{name}: a waveform must have one axis, or two with channels, and at least one sample, "
            f"not the shape {samples.shape}"
        )
    if samples.dtype == np.int16:
        samples = scale_to_floats(samples)
    elif np.issubdtype(samples.dtype, np.floating):
        samples = samples.astype(np.float32)
    else:
        raise UserError(f"{name}: samples must be int16 or floats in [-1, 1], not {samples.dtype}")
    loudest = float(np.abs(samples).max())
    if not loudest <= LOUDEST:  # NaN, too
        raise UserError(
            f"{name}: float samples must be finite and in [-1, 1], but the largest is {loudest:g}"
        )
    if samples.ndim == 2:
        samples = mix_channels(samples.T if samples.shape[0] < samples.shape[1] else samples, None)
    return np.ascontiguousarray(samples)


def resample(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    """Return samples at 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    require_number(f"{name}: the sampling rate", rate, is_whole=False)
    samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    if not len(samples):
        raise UserError(f"{name}: nothing is left of the waveform at 16 kHz")
    return samples
