"""Several encoders behind one operator: a fused encoder is an encoder; streams brought to one mean and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder, is_trained
from uniaudio.model.fusion.align import align, count_frames_at
from uniaudio.model.fusion.base import FusionOperator
from uniaudio.model.fusion.stft_residual import StftBranch
from uniaudio.ragged import Ragged
from uniaudio.types import Encoded

SMALLEST_SPREAD = 0.05  # of a feature, as a share of the median: what hardly varies is not blown up
ROUNDING = 1e-6  # by which equal features may differ from their mean, relative to it


class FeatureScale(nn.Module):
    """``w * h + b`` for every feature of a stream; the stream itself until it is fitted."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, frames: Float[Tensor, "A E"]) -> Float[Tensor, "A E"]:
        return torch.addcmul(self.bias, frames, self.weight)


def fit_scale(
    frames: Float[Tensor, "A E"], shares: Float[Tensor, " A"]
) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Return the weight and the bias that give features mean 0 and variance 1 over some frames.

    Args:
        shares: weight of every frame; they add up to 1.

    Raises:
        UserError: when most features do not vary, as in a single frame.
    """
    mean = shares @ frames
    spread = (shares @ (frames - mean).square()).sqrt()
    usual = float(spread.median())
    if not usual > ROUNDING * float(mean.abs().mean()):
        raise UserError(
            f"start: the {len(frames)} frames that it is fitted to do not differ, or are not finite; raise "
            "start_examples, or use `start: random`"
        )
    weight = 1 / spread.clamp(min=SMALLEST_SPREAD * usual)
    return weight, -mean * weight


class CompositeEncoder(AudioEncoder):
    """What fused and routed encoders share: parts that may be frozen, and one frame rate for all of them.

    Frozen parts run without gradient and stay in eval mode.

    Args:
        encoders: by name, the base first. rate: frames per second at which the streams meet. method: see ``align``.
        reads_layers: whether all hidden states are fused. scales: whether each of them is scaled before.

    Raises:
        UserError: when no encoder gives as many frames as ``rate``.
    """

    calls_by_clip = False  # beyond what its parts do

    def __init__(
        self,
        encoders: Mapping[str, AudioEncoder],
        rate: float,
        method: str,
        reads_layers: bool = False,
        scales: bool = False,
    ) -> None:
        super().__init__()
        rates = {name: encoder.frame_rate for name, encoder in encoders.items()}
        if rate <= 0 or rate > max(rates.values()) + 1e-6:
            listing = ", ".join(f"{name} {rate_of:g}" for name, rate_of in rates.items())
            raise UserError(
                f"fusion.rate: no encoder gives {rate:g} frames per second ({listing}); use at most "
                f"{max(rates.values()):g}"
            )
        self.encoders = nn.ModuleDict(encoders)
        self.meeting_rate, self.method, self.reads_layers = rate, method, reads_layers
        self.scales = self.make_scales() if scales else None
        self.takes_masks = all(encoder.takes_masks for encoder in encoders.values())
        reaches = [encoder.reach for encoder in encoders.values()]
        self.reach = None if None in reaches else max(r for r in reaches if r is not None)

    def train(self, mode: bool = True) -> CompositeEncoder:
        """Switch the trained parts; frozen ones stay in eval mode."""
        super().train(mode)
        for encoder in self.encoders.values():
            if not is_trained(encoder):
                encoder.eval()
        return self

    def can_recompute(self) -> bool:
        parts: Any = self.encoders.values()
        return any(encoder.can_recompute() for encoder in parts)

    def recompute(self) -> None:
        parts: Any = self.encoders.values()
        for encoder in parts:
            if encoder.can_recompute():
                encoder.recompute()

    def count_meeting_frames(self, audio: Ragged) -> Tensor:
        """Return the frames ``[C]`` of every clip at the meeting rate."""
        return audio.map_lengths(partial(count_frames_at, self.meeting_rate))

    def run(self, name: str, audio: Ragged, layers: bool, masks: Tensor | None) -> Encoded:
        """Run one encoder, without a graph when it is frozen."""
        encoder = self.encoders[name]
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(encoder)):
            encoded: Encoded = encoder(audio, layers=layers, masks=masks)
        return encoded

    def make_scales(self) -> nn.ModuleList:
        """Return a scale for every hidden state that is fused, by encoder and layer."""
        parts: Any = self.encoders.values()
        states = [part.layer_dims if self.reads_layers else (part.dim,) for part in parts]
        return nn.ModuleList(nn.ModuleList(FeatureScale(dim) for dim in dims) for dims in states)

    def encode_streams(self, audio: Ragged, masks: Tensor | None = None) -> list[tuple[Ragged, ...]]:
        """Return of each encoder the hidden states that are fused, at the meeting rate, before their scales."""
        lengths = self.count_meeting_frames(audio)
        streams = []
        for name in self.encoders:
            encoded = self.run(name, audio, self.reads_layers, masks)
            states = encoded.layers if self.reads_layers else (encoded.frames,)
            assert states is not None
            streams.append(self.align_states(name, states, lengths))
        return streams

    def start_from_streams(
        self, streams: Sequence[Tensor], shares: Tensor, whitening: Tensor | None = None
    ) -> None:
        """Set what fuses the streams so that as little as possible of them is lost.

        Args:
            streams: ``[A, E_m]`` scaled frames of each encoder, or their means over clips; where hidden states are
                fused, the mean of them.
            shares: ``[A]`` weight of every frame; they add up to 1.
            whitening: ``[E, E]`` what the concatenated frames are multiplied with first; None: nothing.
        """
        raise NotImplementedError

    def align_states(self, name: str, states: Sequence[Ragged], lengths: Tensor) -> tuple[Ragged, ...]:
        """Bring hidden states of an encoder to the meeting rate."""
        rate = float(self.encoders[name].frame_rate)  # type: ignore[arg-type]
        return tuple(align(state, rate, self.meeting_rate, lengths, self.method) for state in states)


def scale_streams(scales: nn.ModuleList, streams: Sequence[Sequence[Ragged]]) -> list[list[Ragged]]:
    """Return hidden states ``[A, E]``, each of them scaled."""
    parts: Any = scales
    return [
        [state.with_values(scale(state.values)) for scale, state in zip(row, states, strict=True)]
        for row, states in zip(parts, streams, strict=True)
    ]


class FusedEncoder(CompositeEncoder):
    """Runs all encoders on every clip, brings their frames to one rate and fuses them.

    Args:
        encoders: by name, the base first. operator: for these streams, in this order.
        rate: frames per second at which they meet (25 in the dual-encoder paper). method: see ``align``.
        stft: a spectral branch added to the fused frames.
        scales: see ``CompositeEncoder``.
    """

    def __init__(
        self,
        encoders: Mapping[str, AudioEncoder],
        operator: FusionOperator,
        rate: float,
        method: str = "area",
        stft: StftBranch | None = None,
        scales: bool = False,
    ) -> None:
        super().__init__(encoders, rate, method, operator.uses_layers, scales)
        self.operator, self.stft = operator, stft
        self.dim = operator.dim
        self.auxiliary = operator.auxiliary
        self.frame_rate = rate * operator.frames_per_frame
        self.follows_time = operator.frames_per_frame == 1
        widths = [encoder.dim for encoder in encoders.values()]
        self.layer_dims = (self.dim,) if operator.frames_per_frame > 1 else (*widths, self.dim)

    def num_frames(self, samples: int) -> int:
        """Return ``ceil(seconds * rate)``, at least one, for each frame of the operator."""
        return count_frames_at(self.meeting_rate, samples) * self.operator.frames_per_frame

    def forward(self, audio: Ragged, layers: bool = False, masks: Tensor | None = None) -> Encoded:
        """Encode C clips; ``layers`` are the aligned streams and the fused frames."""
        streams = self.encode_streams(audio, masks)
        fused = self.operator(streams if self.scales is None else scale_streams(self.scales, streams))
        frames = fused.frames if self.stft is None else self.stft(fused.frames, audio)
        hidden_states = None
        if layers:
            alone = self.operator.frames_per_frame > 1
            hidden_states = (frames,) if alone else (*(stream[-1] for stream in streams), frames)
        return Encoded(frames, hidden_states, fused.losses, fused.stats)

    @torch.no_grad()
    def start_from_streams(
        self, streams: Sequence[Tensor], shares: Tensor, whitening: Tensor | None = None
    ) -> None:
        """Let the operator begin with the principal components of all streams, as large in all as they are."""
        frames = torch.cat(list(streams), 1)
        if whitening is None:
            maps = find_components(frames, shares, self.dim)
        else:
            white = frames @ whitening
            size = (shares @ frames.square()).sum() / (shares @ white.square()).sum()
            maps = size.sqrt() * find_components(white, shares, self.dim) @ whitening.T
        self.operator.start_from(maps.split([stream.shape[1] for stream in streams], 1))


def find_components(
    frames: Float[Tensor, "A E"], shares: Float[Tensor, " A"], dim: int
) -> Float[Tensor, "dim E"]:
    """Return the first principal components of frames around 0 as rows, the largest first; zeros beyond ``E`` rows."""
    square = (frames * shares[:, None]).T.double() @ frames.double()
    vectors = torch.linalg.eigh(square).eigenvectors.flip(1).T[:dim]
    return nn.functional.pad(vectors, (0, 0, 0, dim - len(vectors))).to(frames.dtype)


def list_named_encoders(config: RunConfig, encoder: AudioEncoder) -> dict[str, AudioEncoder]:
    """Return the encoders of a whole one by their names in the config."""
    if config.fusion is None:
        return {next(iter(config.encoders)): encoder}
    parts: Any = encoder.encoders
    return dict(parts.items())
