"""The STFT residual of dual-encoder fusion (Interspeech 2026, paper 463): frequency features for fused frames."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from uniaudio.errors import UserError
from uniaudio.model.encoders.chunking import convert_to_float
from uniaudio.model.float32 import Float32Constants
from uniaudio.model.fusion.align import count_frames_at
from uniaudio.model.init_args import InitArgsModule
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

FLOOR = 1e-5  # of the mel magnitude, before the logarithm


class Bands(Float32Constants):
    """A Hann window ``[n_fft]`` and a Slaney filter bank ``[n_fft / 2 + 1, mels]``."""

    filters: Tensor
    window: Tensor

    def __init__(self, n_fft: int, mels: int) -> None:
        super().__init__()
        bank = mel_filter_bank(n_fft // 2 + 1, mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", "slaney")
        self.register_buffer("filters", torch.from_numpy(bank).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)


class StftBranch(InitArgsModule):
    """``z_t <- z_t + gamma W_s S_t`` (dual-encoder fusion, eq. 7-8), ``gamma`` learned.

    ``S`` is the log-magnitude spectrum in ``mels`` Slaney bands. The window of frame ``t`` lies around the middle of
    the frame's own time ``[t / rate, (t + 1) / rate)``, with silence beyond the clip; the paper states n_fft = window =
    1024, hop 640 (25 frames a second), 128 bands and gamma 1e-2, but not where windows begin.

    Args:
        dim: width of the fused frames. rate: their frames per second.

    Raises:
        UserError: when a frame is not a whole number of samples.
    """

    def __init__(
        self, dim: int, rate: float = 25.0, n_fft: int = 1024, mels: int = 128, gamma: float = 1e-2
    ) -> None:
        super().__init__()
        self.rate, self.n_fft = rate, n_fft
        self.hop = round(SAMPLE_RATE / rate)
        if abs(self.hop * rate - SAMPLE_RATE) > 1e-6:
            raise UserError(
                f"fusion.stft: at {rate:g} frames per second, a frame is not a whole number of "
                "samples; use 25"
            )
        self.bands = Bands(n_fft, mels)
        self.project = nn.Linear(mels, dim, bias=False)
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, frames: Ragged, audio: Ragged) -> Ragged:
        """Add the branch to fused frames ``[A, dim]`` of the clips ``audio``."""
        spectrum = self.log_magnitude(audio).to(self.project.weight.dtype)
        return frames.with_values(frames.values + self.gamma * self.project(spectrum))

    @torch.no_grad()
    def log_magnitude(self, audio: Ragged) -> Float[Tensor, "A M"]:
        """Return the log-magnitude mel bands of every frame, float32."""
        counts = audio.map_lengths(partial(count_frames_at, self.rate))
        filters, window = self.bands.filters, self.bands.window
        if not len(audio):
            return filters.new_zeros(0, filters.shape[1])
        before = (self.n_fft - self.hop) // 2  # a window reaches this far to the left of its frame
        sizes = counts * self.hop + self.n_fft
        starts = Ragged.find_row_starts(sizes)
        buffer = filters.new_zeros(int(sizes.sum()))
        place = Ragged.index_slices(starts + before, audio.lengths)
        buffer[place.to(buffer.device, non_blocking=True)] = convert_to_float(audio.values).to(buffer.dtype)
        step = Ragged.count_within_rows(counts)
        begins = (torch.repeat_interleave(starts, counts) + step * self.hop).to(
            buffer.device, non_blocking=True
        )
        with torch.autocast(buffer.device.type, enabled=False):
            windows = buffer.unfold(0, self.n_fft, 1)[begins] * window
            return (torch.fft.rfft(windows).abs() @ filters).clamp(min=FLOOR).log()
