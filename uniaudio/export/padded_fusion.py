"""The padded twin of encoders that are fused frame by frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn

from uniaudio.export.padded import PaddedTwin, ceil_div, inside
from uniaudio.model.fusion.base import FusionOperator
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.explicit import ExplicitInjection
from uniaudio.model.fusion.gate import GateFusion
from uniaudio.model.fusion.linear import ConcatFusion, SumFusion
from uniaudio.model.fusion.mix import ScalarMix
from uniaudio.model.fusion.stft import FLOOR, StftBranch
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

FRAME_BY_FRAME: tuple[type[FusionOperator], ...] = (
    ConcatFusion,
    SumFusion,
    ScalarMix,
    GateFusion,
    ExplicitInjection,
)


class Flat(Ragged):
    """Frames of nobody in particular, for operators that treat each frame alone.

    No length enters the graph; the statistics per clip, which an exported encoder does not give, are those of a frame.
    """

    def __post_init__(self) -> None:
        """Take the frames as they are."""

    def __len__(self) -> int:
        return 1

    def with_values(self, values: Tensor) -> Flat:
        return Flat(values, self.lengths)

    def mean(self) -> Tensor:
        return self.values[:1]


class PaddedFusion(PaddedTwin):
    """``FusedEncoder`` over the twins of its encoders."""

    def __init__(self, encoder: FusedEncoder, twins: Mapping[str, PaddedTwin]) -> None:
        super().__init__()
        self.twins = nn.ModuleDict(twins)
        self.rates = {name: float(part.frame_rate) for name, part in encoder.encoders.items()}  # type: ignore[arg-type]
        self.operator = encoder.operator
        self.rate, self.method = encoder.meeting_rate, encoder.method
        self.stft = None if encoder.stft is None else PaddedStft(encoder.stft)
        self.longest = min(twin.longest for twin in twins.values())

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; the clips' samples stand at the beginning of their rows."""
        per_second = Fraction(self.rate).limit_denominator(10_000)
        unit = SAMPLE_RATE * per_second.denominator
        counts = ceil_div(lengths * per_second.numerator, unit).clamp(min=1)
        size = (samples.shape[1] * per_second.numerator + unit - 1) // unit
        streams = []
        for name, twin in self.twins.items():
            frames, own = twin(samples, lengths)
            resample = resampled_area if self.method == "area" else resampled_linear
            streams.append(resample(frames, own, self.rates[name], self.rate, size))
        shape = streams[0].shape[:2]
        none = torch.zeros(1, dtype=torch.int64)
        fused = self.operator([[Flat(stream.flatten(0, 1), none)] for stream in streams]).frames.values
        fused = fused.unflatten(0, shape)
        if self.stft is not None:
            fused = fused + self.stft(samples, lengths, size)
        mask = inside(counts, size)[..., None]
        return torch.where(mask, fused, torch.zeros_like(fused)), counts


class PaddedStft(nn.Module):
    """``StftBranch``: what it adds to the fused frames."""

    basis: Tensor
    filters: Tensor

    def __init__(self, branch: StftBranch) -> None:
        super().__init__()
        self.hop, self.n_fft = branch.hop, branch.n_fft
        self.before = (self.n_fft - self.hop) // 2
        time = torch.arange(self.n_fft, dtype=torch.float64)
        angles = 2 * math.pi / self.n_fft * time[:, None] * torch.arange(self.n_fft // 2 + 1)
        basis = torch.cat([angles.cos(), angles.sin()], 1) * branch.bands.window.double()[:, None]
        self.register_buffer("basis", basis)
        self.register_buffer("filters", branch.bands.filters.double())
        self.project, self.gamma = branch.project, branch.gamma

    def forward(self, samples: Tensor, lengths: Tensor, size: int) -> Tensor:
        """Return ``[B, size, E]``."""
        silent = torch.zeros_like(samples)
        samples = torch.where(inside(lengths, samples.shape[1]), samples, silent)
        pieces = -(-self.n_fft // self.hop)  # hops that a window touches
        room = (size + pieces - 1) * self.hop
        samples = nn.functional.pad(samples, (self.before, room - self.before - samples.shape[1]))
        hops = samples.unflatten(1, (-1, self.hop))
        windows = torch.cat([hops[:, i : i + size] for i in range(pieces)], 2)[..., : self.n_fft]
        real, imaginary = (windows.double() @ self.basis).chunk(2, -1)
        magnitude = (real.square() + imaginary.square()).sqrt() @ self.filters
        return self.gamma * self.project(magnitude.clamp(min=FLOOR).log().float())


def resampled_area(frames: Tensor, counts: Tensor, rate: float, to_rate: float, size: int) -> Tensor:
    """Resample ``[B, A, E]`` to ``[B, size, E]`` as ``align`` does by area; the last real frame is held."""
    ratio = Fraction(rate).limit_denominator(10_000) / Fraction(to_rate).limit_denominator(10_000)
    begin = torch.arange(size) * ratio.numerator
    end = begin + ratio.numerator
    first = torch.div(begin, ratio.denominator, rounding_mode="floor")
    widest = 1 + -(-ratio.numerator // ratio.denominator)
    total: Tensor | None = None
    for offset in range(widest):
        left = (first + offset) * ratio.denominator
        shared = (torch.minimum(end, left + ratio.denominator) - torch.maximum(begin, left)).clamp(min=0)
        weight = (shared.double() / ratio.numerator).to(frames.dtype)[None, :, None]
        part = taken(frames, first + offset, counts) * weight
        total = part if total is None else total + part
    assert total is not None
    return total


def resampled_linear(frames: Tensor, counts: Tensor, rate: float, to_rate: float, size: int) -> Tensor:
    """Resample ``[B, A, E]`` to ``[B, size, E]`` as ``align`` does linearly."""
    place = ((torch.arange(size).double() + 0.5) * (rate / to_rate) - 0.5).clamp(min=0)[None]
    place = torch.minimum(place, (counts - 1).double()[:, None])
    low = place.floor()
    share = (place - low).to(frames.dtype)[..., None]
    left, right = (taken(frames, low.long() + step, counts) for step in (0, 1))
    return left + (right - left) * share


def taken(frames: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    """Return the frames at ``index``, ``[T]`` or ``[B, T]``, each clip's last frame standing for later ones."""
    rows = torch.minimum(index if index.dim() == 2 else index[None], (counts - 1)[:, None])
    return frames.gather(1, rows[..., None].expand(-1, -1, frames.shape[2]))
