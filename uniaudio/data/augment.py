"""Augmentation of the clips of a source: steps that each apply a transform with some probability, and SpecAugment."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from uniaudio.config.records import Strict
from uniaudio.data.audio import quantize_samples, scale_to_floats
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.waveform_augmentations import (
    Band,
    Clip,
    Codec,
    Gain,
    Noise,
    Resample,
    Reverb,
    Speed,
    Transform,
    find_audio_files,
)
from uniaudio.errors import UserError
from uniaudio.types import PER_MILLE, SAMPLE_RATE

HOP = 160  # samples of a mel frame


class SpecAugment(Strict):
    """SpecAugment (Park et al. 2019, without time warping) on the encoder's log-mel spectrogram.

    Read by: train.
    """

    p: float = Field(default=1.0, gt=0, le=1)
    """Probability with which a clip is masked."""
    time_masks: int = Field(default=2, ge=0)
    """Masks along the time axis."""
    time_seconds: float = Field(default=0.4, gt=0)
    """Longest of them in seconds; together they take at most half of a clip."""
    freq_masks: int = Field(default=2, ge=0)
    """Masks along the frequency axis."""
    freq_share: float = Field(default=0.2, gt=0, lt=1)
    """Widest of them as a share of the mel axis."""

    def draw(self, samples: int, rng: random.Random) -> list[tuple[int, int, int]]:
        """Return (axis, begin, width) of the bands of a clip; those along time take at most half of it together."""
        frames = samples // HOP
        most = min(round(self.time_seconds * SAMPLE_RATE / HOP), frames // (2 * max(self.time_masks, 1)))
        bands = []
        for axis, count, size, longest in (
            (0, self.time_masks, frames, most),
            (1, self.freq_masks, PER_MILLE, round(self.freq_share * PER_MILLE)),
        ):
            for _ in range(count):
                width = rng.randint(0, longest)
                if width:
                    bands.append((axis, rng.randint(0, size - width), width))
        return bands


class AugmentStep(Strict):
    """One step of augmentation: exactly one transform.

    Read by: train.
    """

    gain: Gain | None = None
    """Change the level."""
    noise: Noise | None = None
    """Add noise."""
    reverb: Reverb | None = None
    """Add reverberation."""
    speed: Speed | None = None
    """Change speed and pitch."""
    resample: Resample | None = None
    """Lower the sampling rate."""
    band: Band | None = None
    """Filter a band."""
    codec: Codec | None = None
    """Compress and decompress."""
    clip: Clip | None = None
    """Clip the waveform."""
    spec_augment: SpecAugment | None = None
    """Mask bands of the spectrogram."""

    @model_validator(mode="after")
    def check_one_transform(self) -> AugmentStep:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one transform per step, found {', '.join(named) or 'none'}")
        return self

    @property
    def transform(self) -> Transform | SpecAugment:
        return next(t for name in type(self).model_fields if (t := getattr(self, name)) is not None)


@dataclass(frozen=True)
class Augmenter:
    """The steps of one source, in order.

    Args:
        where: how messages call the place in the recipe.

    Raises:
        UserError: when a folder of noises or responses holds no audio.
    """

    steps: tuple[AugmentStep, ...]
    where: str

    def __post_init__(self) -> None:
        for folder, described in self.folders.items():
            if not find_audio_files(folder)[0]:
                beside = f"; skipped: {described}" if described else ""
                raise UserError(f"{self.where}: files: there is no audio in {folder}{beside}")

    @property
    def folders(self) -> dict[str, str]:
        """Return the folders of noises and responses, and what is skipped in each."""
        named = [getattr(step.transform, "files", None) for step in self.steps]
        return {
            folder: describe_left_out(find_audio_files(folder)[1]) for folder in named if folder is not None
        }

    def list_notes(self) -> list[str]:
        """Return a line for each folder of noises or responses in which something is skipped."""
        return [
            f"{self.where}: files: of {folder}, skipped: {described}"
            for folder, described in self.folders.items()
            if described
        ]

    @cached_property
    def transforms(self) -> tuple[Transform, ...]:
        return tuple(step.transform for step in self.steps if isinstance(step.transform, Transform))

    @cached_property
    def longest_stretch(self) -> float:
        """The largest ratio of a clip's length after all steps to that before; 1 without ``speed``."""
        return math.prod(transform.longest_stretch for transform in self.transforms)

    @cached_property
    def mean_stretch(self) -> float:
        """The expected ratio of a clip's length after all steps to that before; 1 without ``speed``."""
        return math.prod(transform.mean_stretch for transform in self.transforms)

    def draw_masks(
        self, clips: Sequence[NDArray[np.int16]], rng: random.Random
    ) -> tuple[tuple[int, int, int, int], ...]:
        """Draw what the encoder is not to see of the clips of an example: (clip, axis, begin, width)."""
        bands: list[tuple[int, int, int, int]] = []
        for step in self.steps:
            hiding = step.transform
            if isinstance(hiding, SpecAugment) and rng.random() < hiding.p:
                bands += [(i, *band) for i, clip in enumerate(clips) for band in hiding.draw(len(clip), rng)]
        return tuple(bands)

    def augment(self, samples: NDArray[np.int16], rng: random.Random) -> NDArray[np.int16]:
        """Return int16 ``[S']`` from int16 ``[S]``; only ``speed`` changes the length. The same generator, the same
        clip.

        Raises:
            RowError: when a noise or response that was drawn cannot be read.
        """
        wave = scale_to_floats(samples)
        for transform in self.transforms:
            if rng.random() < transform.p and len(wave) > 1:
                wave = transform.apply(wave, rng)
        return quantize_samples(wave)
