"""Silence after the clips of a batch, as a few frames that all clips attend to.

Whisper was trained on clips that silence fills up to 30 s, and its frames attend to that silence. Encoding it costs
more than encoding a short clip, and the states of its frames hardly depend on the clip. So every batch encodes it once,
at every k-th position only, as a row that attends to itself; the frames of every clip attend to their own row and to
the silence after it, where each of its frames counts for the k that it stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uniaudio.model.attention import Segments
from uniaudio.ragged import Ragged

# normalised log-mel of silence behind a clip whose loudest bin is 10 ** 0.8, as in recorded speech
SILENCE = -0.8
CONSTANT = 16  # mel frames of silence that are convolved; those in the middle see no edge


class SilenceGrid:
    """The positions of the silent frames and how many frames each of them stands for.

    Args:
        reach: encoder frames that a clip is filled up to. stride: frames that one frame stands for; 1 keeps all.
    """

    def __init__(self, reach: int, stride: int) -> None:
        self.begins, self.ends = list_silent_spans(reach, stride)
        self.positions = (self.begins + self.ends) // 2

    def __len__(self) -> int:
        return len(self.positions)

    def add_to(self, lengths: Tensor, device: torch.device) -> Segments:
        """Return what rows of such lengths attend to when the silent frames are appended as one more row.

        Args:
            lengths: ``[B]`` encoder frames of every clip, on the CPU.
        """
        count = len(self)
        # silent frames that stand for nothing behind a clip; the silent row has all of them as its own keys
        covered = (self.ends <= lengths[:, None]).sum(1)
        first = torch.cat([covered, torch.tensor([count])])
        second = count - first
        frames = torch.cat([lengths, torch.tensor([count])])
        begins = torch.stack([Ragged.find_row_starts(frames), int(lengths.sum()) + first], 1).flatten()
        places = Ragged.index_slices(begins, torch.stack([frames, second], 1).flatten())
        keys = Ragged(places, frames + second)
        behind = (self.ends - torch.maximum(self.begins, lengths[:, None])).flatten()  # [B * M]
        taken = Ragged.index_slices(torch.arange(len(frames)) * count + first, second)
        log_counts = torch.zeros(len(places))
        log_counts[Ragged.index_slices(Ragged.find_row_starts(keys.lengths) + frames, second)] = (
            behind[taken].float().log()
        )
        log_counts[len(places) - count :] = (self.ends - self.begins).float().log()
        return Segments.of(frames, device, keys=keys, log_counts=log_counts)


def list_silent_spans(reach: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return where the frames begin and end ``[M]`` for which each silent frame stands."""
    begins = torch.arange(0, reach, stride)
    return begins, (begins + stride).clamp(max=reach)


def encode_silent_frames(whisper: Any, positions: Tensor) -> Tensor:
    """Return what Whisper's convolutions make of silence ``[M, E]``, with the embeddings of ``positions`` added."""
    weight = whisper.conv1.weight
    silence = weight.new_full((1, weight.shape[1], CONSTANT), SILENCE)
    frames = F.gelu(whisper.conv2(F.gelu(whisper.conv1(silence))))[0].t()
    return frames[len(frames) // 2] + whisper.embed_positions.weight[positions.to(weight.device)]
