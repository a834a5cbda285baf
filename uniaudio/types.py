"""The values that pass between the parts, and the one legend of axes.

Axes, the same letter everywhere in the package:
    B examples   C clips   S waveform samples   M mel bins   F mel frames   A encoder frames   T text positions
    N audio tokens of the whole batch, in order   P their places in the text (more than N where a clip is asked twice)
    E encoder width   D decoder width   V vocabulary   L labelled positions of the whole batch   K tasks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniaudio.ragged import Ragged

SAMPLE_RATE = 16_000  # samples per second, everywhere
PER_MILLE = 1000  # masks along frequency are written so: encoders differ in their number of mel bins


@dataclass(frozen=True)
class Example:
    """One question about one or more clips, before tokenization.

    Args:
        id: stable name of the row: ``dataset/split/row``, unique within a run.
        task, dataset: names of the template and of the dataset card.
        clips: int16 mono waveforms at 16 kHz, each ``[S]``, in the order of the ``<audio>`` marks.
        prompt: the rendered user text, cut at the ``<audio>`` marks: ``len(clips) + 1`` pieces, in which
            clip ``i`` stands between piece ``i`` and piece ``i + 1``.
        answer: the rendered answer. Never empty.
        shares_clips: the clips are those of the example before it in the batch, and are encoded once for both.
        masks: (clip, axis, begin, width) of what the encoder is not to see, see ``model/mel_masks.py``.
        window: (start, end) in seconds of the longer clip that the clip is a window of.
    """

    id: str
    task: str
    dataset: str
    clips: tuple[NDArray[np.int16], ...]
    prompt: tuple[str, ...]
    answer: str
    shares_clips: bool = False
    masks: tuple[tuple[int, int, int, int], ...] = ()
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class SharedPrefixes:
    """Rows that go on where the beginning of an earlier row ends, so that it stands once for several questions.

    With ``d e`` and ``f`` asked about a clip whose prompts begin with ``a b c``, the second row is ``f`` alone::

        tokens      a b c d e | f
        positions   0 1 2 3 4 | 3
        f sees      a b c       f

    Args:
        leaders: ``[B]`` int64, always on the CPU: the row that holds the beginning, itself for a whole row. It may go
            on where the beginning of a whole row ends, as all rows of a batch do behind the same system prompt.
        lengths: ``[B]`` int64, always on the CPU: tokens of the beginning, 0 for a whole row.
    """

    leaders: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """Examples packed one after another; no padding anywhere.

    Args:
        audio: int16 samples of the C different clips of all examples, in order.
        tokens: token ids ``[T_total]`` int64 of the B examples, audio positions hold 0.
        audio_positions: ``[P]`` int64, increasing: the places in ``tokens.values`` that hold audio tokens.
        audio_index: ``[P]`` int64: which of the N audio tokens of the clips stands there. ``P = N``, unless several
            questions are asked about one clip.
        label_positions: ``[L]`` int64: positions whose hidden state predicts a label (one before the answer token).
        labels: ``[L]`` int64 token ids.
        label_task: ``[L]`` int64 index into ``tasks``.
        tasks: the K task names of the run, the same list in every batch.
        masks: ``[R, 4]`` int64, always on the CPU: (clip of the batch, axis, begin, width), for SpecAugment.
        example_clips: int64, always on the CPU: the clips of every example; a row for each of the B examples.
        example_task: ``[B]`` int64, always on the CPU: index into ``tasks``.
        prompt_lengths: ``[B]`` int64, always on the CPU: tokens of every row before its answer.
        ids: B example ids. audio_tokens: N. audio_seconds: real audio in the batch, in seconds.
        prefixes: which rows hold only what comes after the beginning of another row; None: all rows are whole. The
            first row is, and the first question about a clip lacks at most what stands before the clip.
    """

    audio: Ragged
    tokens: Ragged
    audio_positions: Tensor
    audio_index: Tensor
    label_positions: Tensor
    labels: Tensor
    label_task: Tensor
    masks: Tensor
    example_clips: Ragged
    example_task: Tensor
    prompt_lengths: Tensor
    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    audio_tokens: int
    audio_seconds: float
    prefixes: SharedPrefixes | None = None

    @property
    def clip_example(self) -> Tensor:
        """``[C]`` int64 on the CPU: the example that asks about a clip, the first of several."""
        owners = self.example_clips.row_index()
        first = torch.full((len(self.audio),), len(self.ids), dtype=torch.int64)
        return first.scatter_reduce(0, self.example_clips.values, owners, "amin")

    @property
    def answer_tokens(self) -> int:
        """L, the divisor of the loss."""
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move the tensors to a device; lengths stay on the CPU."""
        move = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in (
                "audio",
                "tokens",
                "audio_positions",
                "audio_index",
                "label_positions",
                "labels",
                "label_task",
            )
        }
        return replace(self, **move)


@dataclass(frozen=True)
class Auxiliary:
    """An auxiliary loss as a function of means over the frames or clips of the whole global batch.

    A mean over one micro-batch would make the loss depend on how the global batch is cut. So a forward returns sums and
    a count, which the step adds over micro-batches and ranks before it applies the function, once.

    Args:
        sums: ``[S]`` float32, summed over the rows. Its graph is kept until the last micro-batch of the step and must
            not be shared with the task loss: begin it at detached tensors and parameters.
        count: rows that were summed. loss: means ``[S]`` to a scalar, weight included.
    """

    sums: Tensor
    count: float
    loss: Callable[[Tensor], Tensor]

    def value(self) -> Tensor:
        """Return the loss over these rows alone."""
        return self.loss(self.sums / max(self.count, 1.0))


@dataclass(frozen=True)
class Encoded:
    """What every audio encoder returns.

    Args:
        frames: ``[A_total, E]`` in the order of the clips.
        layers: all hidden states, each with the lengths of ``frames``, when asked for; the last ones are the frames.
        losses: auxiliary losses, empty outside of training.
        stats: what the model chose, one float ``[C]`` per name, such as ``gate/whisper`` or ``weak/hubert``.
    """

    frames: Ragged
    layers: tuple[Ragged, ...] | None = None
    losses: Mapping[str, Auxiliary] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossSum:
    """Sums, never means: the step divides once by the answer tokens of the whole global batch.

    Args:
        total: scalar, the sum of the next-token losses over the L answer tokens, with gradient.
        answer_tokens: L.
        per_task: ``[K, 3]`` float32 without gradient: sum of losses, answer tokens, tokens predicted right.
        auxiliary: auxiliary losses of the encoder.
        choices: name to ``[K, 2]`` float32 without gradient: what the encoder chose, summed over the clips of a task,
            and the number of these clips.
        frames: ``[A, E]`` of the encoder, with gradient, for losses on them.
    """

    total: Tensor
    answer_tokens: int
    per_task: Tensor
    auxiliary: Mapping[str, Auxiliary] = field(default_factory=dict)
    choices: Mapping[str, Tensor] = field(default_factory=dict)
    frames: Ragged | None = None
