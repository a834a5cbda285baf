"""Examples to one packed batch: ids, places of the audio tokens, places of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from uniaudio.data.tokens import ChatFormat
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Batch, Example


def collate(
    examples: Sequence[Example], format: ChatFormat, slots_for: Callable[[int], int], tasks: tuple[str, ...]
) -> Batch:
    """Pack examples with their answers as labels.

    An example becomes ``[prompt ids, audio places, prompt ids, answer ids]``. The labels are the answer ids; the
    position that predicts a label is the one before it::

        tokens     <user> ? [a] [a] <assistant> dog  <end>
        predicts                        dog    <end>

    Args:
        slots_for: audio tokens of a clip of so many samples.

    Raises:
        RowError: when a text of an example cannot be used.
    """
    return pack(examples, format, slots_for, tasks, with_answers=True)


def collate_prompts(
    examples: Sequence[Example], format: ChatFormat, slots_for: Callable[[int], int], tasks: tuple[str, ...]
) -> Batch:
    """Pack the same prompts without answers, to generate from. There are no labels."""
    return pack(examples, format, slots_for, tasks, with_answers=False)


def pack(
    examples: Sequence[Example],
    format: ChatFormat,
    slots_for: Callable[[int], int],
    tasks: tuple[str, ...],
    with_answers: bool,
) -> Batch:
    tokens: list[int] = []
    lengths: list[int] = []
    audio_positions: list[int] = []
    audio_index: list[int] = []
    heard, first = 0, 0  # audio tokens of the clips so far, and before those of the latest clips
    label_positions: list[int] = []
    labels: list[int] = []
    label_task: list[int] = []
    masks: list[tuple[int, ...]] = []
    clips_before = 0  # of all examples so far
    example_clips: list[list[int]] = []
    prompt_lengths: list[int] = []
    for example in examples:
        start = len(tokens)
        pieces = format.prompt(example.prompt)
        tokens += pieces[0]
        if not example.shares_clips:
            masks += [(clips_before + clip, *band) for clip, *band in example.masks]
            clips_before += len(example.clips)
            first, heard = heard, heard + sum(slots_for(len(clip)) for clip in example.clips)
        example_clips.append(list(range(clips_before - len(example.clips), clips_before)))
        place = first
        for clip, piece in zip(example.clips, pieces[1:], strict=True):
            slots = slots_for(len(clip))
            audio_positions += range(len(tokens), len(tokens) + slots)
            audio_index += range(place, place + slots)
            place += slots
            tokens += [0] * slots + piece
        prompt_lengths.append(len(tokens) - start)
        if with_answers:
            answer = format.answer(example.answer)
            # the prompt is not empty and the answer ends with end-of-turn: never an empty or a full label mask
            assert len(tokens) > start
            assert len(answer) > 1
            label_positions += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
            labels += answer
            label_task += [tasks.index(example.task)] * len(answer)
            tokens += answer
        lengths.append(len(tokens) - start)
    clips = [clip for example in examples if not example.shares_clips for clip in example.clips]
    samples = np.concatenate(clips) if clips else np.zeros(0, np.int16)
    clip_lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    return Batch(
        audio=Ragged(torch.from_numpy(samples), clip_lengths),
        tokens=Ragged(integers(tokens), integers(lengths)),
        audio_positions=integers(audio_positions),
        audio_index=integers(audio_index),
        label_positions=integers(label_positions),
        labels=integers(labels),
        label_task=integers(label_task),
        masks=torch.tensor(masks, dtype=torch.int64).reshape(-1, 4),
        example_clips=Ragged(
            integers([clip for own in example_clips for clip in own]),
            integers([len(own) for own in example_clips]),
        ),
        example_task=integers([tasks.index(example.task) for example in examples]),
        prompt_lengths=integers(prompt_lengths),
        tasks=tasks,
        ids=tuple(example.id for example in examples),
        audio_tokens=heard,
        audio_seconds=len(samples) / SAMPLE_RATE,
    )


def integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
