"""Log-mel spectrograms of a packed batch, equal to transformers' ``WhisperFeatureExtractor``."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import WhisperFeatureExtractor

from uniaudio.model.encoders.chunking import convert_to_float
from uniaudio.model.float32 import Float32Constants
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
REACH = 30 * SAMPLE_RATE  # samples of one Whisper window
FRAME = 2 * HOP  # samples of one encoder frame: the second convolution has stride 2
EDGE = WINDOW // 2  # samples that the first and the last window reach beyond the clip
ROOM = 3 * HOP  # buffer beyond a clip: two edges, rounded up so that every clip starts on a hop


def count_encoder_frames(samples: int) -> int:
    """Return the number of encoder frames of a clip: whole frames of 20 ms, at least one."""
    return max(-(-samples // FRAME), 1)


class LogMel(Float32Constants):
    """Whisper's log-mel spectrogram over ragged waveforms, on the device the waveforms are on.

    The stock extractor appends silence up to 30 s and reflects the waveform at both ends. Silence of 200 samples gives
    the same values for the frames that are kept; only a clip that fills the 30 s meets the reflection at its end.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        filters = WhisperFeatureExtractor(feature_size=num_mel_bins).mel_filters
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # [201, M]
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @torch.no_grad()
    def forward(self, audio: Ragged) -> Ragged:
        """Turn int16 or float samples into float32 mel frames ``[F, M]``, an even number for every clip.

        Raises:
            ValueError: when a clip is longer than 30 s (cut it into chunks first).
        """
        if len(audio) and int(audio.lengths.max()) > REACH:
            raise ValueError(
                "a clip is longer than 30 s: cut it into chunks before computing the mel spectrogram"
            )
        frames_per_clip = 2 * audio.map_lengths(count_encoder_frames)
        mel = Ragged(
            self.filters.new_zeros(int(frames_per_clip.sum()), self.filters.shape[1]), frames_per_clip
        )
        if not len(audio):
            return mel
        buffer, starts = lay_out(audio, frames_per_clip)
        windows = buffer.unfold(0, WINDOW, HOP)  # [all hops of the buffer, 400]
        positions = Ragged.index_slices(starts // HOP, frames_per_clip)
        with torch.autocast(buffer.device.type, enabled=False):
            windows = windows[positions.to(buffer.device, non_blocking=True)] * self.window
            power = torch.fft.rfft(windows).abs().square()
            log_mel = (power @ self.filters).clamp(min=1e-10).log10()
            return mel.with_values(normalize(mel.with_values(log_mel)))


def lay_out(audio: Ragged, mel_frames: Tensor) -> tuple[Float[Tensor, " samples"], Tensor]:
    """Lay the clips into one float32 buffer, each with its edges, and return the buffer and where each clip begins.

    A clip of ``n`` samples takes ``[200 reflected | n samples, silence up to whole frames | 200 of edge | 80 unused]``.
    """
    padded = mel_frames * HOP
    sizes = padded + ROOM
    starts = Ragged.find_row_starts(sizes)
    samples = convert_to_float(audio.values)
    buffer = samples.new_zeros(int(sizes.sum()))
    target = Ragged.index_slices(starts + EDGE, audio.lengths)
    buffer[target.to(buffer.device, non_blocking=True)] = samples
    begins = starts + EDGE
    reach = torch.arange(1, EDGE + 1)
    left = begins[:, None] - reach  # the sample k before the clip equals the sample k after its first one
    mirrored = begins[:, None] + reach
    full = (padded == REACH).nonzero()[:, 0]
    last = begins[full, None] + REACH - 1
    left = torch.cat([left.flatten(), (last + reach).flatten()]).to(buffer.device, non_blocking=True)
    mirrored = torch.cat([mirrored.flatten(), (last - reach).flatten()]).to(buffer.device, non_blocking=True)
    buffer[left] = buffer[mirrored]
    return buffer, starts


def normalize(log_mel: Ragged) -> Float[Tensor, "F M"]:
    """Clip every spectrogram to 8 below its own maximum and scale it as Whisper does."""
    index = log_mel.row_index()
    highest = log_mel.values.new_full((len(log_mel),), -torch.inf)
    highest = highest.scatter_reduce(0, index, log_mel.values.amax(1), "amax")
    return (torch.maximum(log_mel.values, highest[index, None] - 8.0) + 4.0) / 4.0
