"""Examples to one packed batch: ids, places of the audio tokens, places of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.data.prompt_tokens import TextIds, prefix_of
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Batch, Example, SharedPrefixes

# tokens at the beginning of rows, as of a system prompt: fewer are not worth gathering their keys
FEWEST_SHARED = 16


def collate(
    examples: Sequence[Example],
    format: TextIds,
    count_slots: Callable[[int], int],
    tasks: tuple[str, ...],
    share: bool = False,
) -> Batch:
    """Pack examples with their answers as labels.

    An example becomes ``[prompt ids, audio places, prompt ids, answer ids]``. The labels are the answer ids; the
    position that predicts a label is the one before it::

        tokens     <user> ? [a] [a] <assistant> dog  <end>
        predicts                        dog    <end>

    Args:
        count_slots: audio tokens of a clip of so many samples.
        share: let questions about the same clips share one beginning, the clips included, where their prompts have
            the same ids up to there, and all rows the ids that the first one begins with, such as a system prompt
            (see ``SharedPrefixes``).

    Raises:
        RowError: when a text of an example cannot be used.
    """
    answers = [format.answer(example.answer) for example in examples]
    assert all(len(answer) > 1 for answer in answers)  # it is never empty and ends with end-of-turn
    return pack(examples, answers, format, count_slots, tasks, share)


def collate_prompts(
    examples: Sequence[Example], format: TextIds, count_slots: Callable[[int], int], tasks: tuple[str, ...]
) -> Batch:
    """Pack the same prompts without answers, to generate from. There are no labels, and every row is whole."""
    return pack(examples, [[] for _ in examples], format, count_slots, tasks, share=False)


def pack(
    examples: Sequence[Example],
    answers: Sequence[list[int]],
    format: TextIds,
    count_slots: Callable[[int], int],
    tasks: tuple[str, ...],
    share: bool,
) -> Batch:
    clips, clip_numbers = find_different_clips(examples)
    slots = [count_slots(len(clip)) for clip in clips]
    first = list(accumulate(slots, initial=0))  # audio tokens before those of each clip
    prompts = [format.encode_prompt(example.prompt) for example in examples]
    leaders, shared = list(range(len(examples))), [0] * len(examples)
    if share:
        leaders, shared = find_shared_prefixes(examples, prompts, clip_numbers, slots)
    tokens: list[int] = []
    lengths: list[int] = []
    audio_positions: list[int] = []
    audio_index: list[int] = []
    label_positions: list[int] = []
    prompt_lengths: list[int] = []
    for pieces, numbers, answer, left_out in zip(prompts, clip_numbers, answers, shared, strict=True):
        start = len(tokens)
        row = list(pieces[0])
        for clip, piece in zip(numbers, pieces[1:], strict=True):
            if len(row) >= left_out:  # else the clip stands in the row whose beginning is shared
                position = start - left_out + len(row)
                audio_positions += range(position, position + slots[clip])
                audio_index += range(first[clip], first[clip + 1])
            row += [0] * slots[clip] + piece
        tokens += row[left_out:]
        prompt_lengths.append(len(tokens) - start)
        assert prompt_lengths[-1]  # something predicts the first token of the answer
        label_positions += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
        tokens += answer
        lengths.append(len(tokens) - start)
    samples = np.concatenate(clips) if clips else np.zeros(0, np.int16)
    task = make_integers([tasks.index(example.task) for example in examples])
    return Batch(
        audio=Ragged(torch.from_numpy(samples), make_integers([len(clip) for clip in clips])),
        tokens=Ragged(make_integers(tokens), make_integers(lengths)),
        audio_positions=make_integers(audio_positions),
        audio_index=make_integers(audio_index),
        label_positions=make_integers(label_positions),
        labels=make_integers([token for answer in answers for token in answer]),
        label_task=task.repeat_interleave(make_integers([len(answer) for answer in answers])),
        masks=pack_masks(examples, clip_numbers),
        example_clips=Ragged(
            make_integers([clip for numbers in clip_numbers for clip in numbers]),
            make_integers([len(numbers) for numbers in clip_numbers]),
        ),
        example_task=task,
        prompt_lengths=make_integers(prompt_lengths),
        tasks=tasks,
        ids=tuple(example.id for example in examples),
        audio_tokens=first[-1],
        audio_seconds=len(samples) / SAMPLE_RATE,
        prefixes=SharedPrefixes(make_integers(leaders), make_integers(shared)) if any(shared) else None,
    )


def find_different_clips(examples: Sequence[Example]) -> tuple[list[NDArray[np.int16]], list[range]]:
    """Return the C different clips, and for every example which of them it asks about."""
    clips: list[NDArray[np.int16]] = []
    clip_numbers = []
    for example in examples:
        if not example.shares_clips:
            clips += example.clips
        clip_numbers.append(range(len(clips) - len(example.clips), len(clips)))
    return clips, clip_numbers


def find_shared_prefixes(
    examples: Sequence[Example],
    prompts: Sequence[list[list[int]]],
    clip_numbers: Sequence[range],
    slots: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return for every row the one whose beginning it shares (itself for none), and how many tokens that are.

    It is the first row about the same clips whose prompt begins alike, up to behind the last clip; else the first row
    of the batch, up to where the ids differ or the first clip comes.
    """
    leaders, shared = [], []
    known: dict[tuple[tuple[int, ...], ...], int] = {}
    for row, (example, pieces, numbers) in enumerate(zip(examples, prompts, clip_numbers, strict=True)):
        if not example.shares_clips:
            known = {}
        # a row without a token of its own before the answer would have nowhere to predict the first one
        leader = known.setdefault(prefix_of(pieces), row) if pieces[-1] else row
        if leader != row:
            common = sum(len(piece) for piece in pieces[:-1]) + sum(slots[clip] for clip in numbers)
        elif row and (common := count_common_ids(prompts[0][0], pieces[0])):
            leader = 0
        else:
            common = 0
        leaders.append(leader)
        shared.append(common)
    return leaders, shared


def count_common_ids(first: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many ids two prompts begin with in common before their first clips; 0 where they are few."""
    pairs = enumerate(zip(first, ids, strict=False))
    common = next((place for place, (one, other) in pairs if one != other), min(len(first), len(ids)))
    return common if common >= FEWEST_SHARED else 0


def pack_masks(examples: Sequence[Example], clip_numbers: Sequence[range]) -> torch.Tensor:
    """Return ``[R, 4]`` int64: the masks of the different clips by their number in the batch."""
    rows = [
        (numbers[clip], *band)
        for example, numbers in zip(examples, clip_numbers, strict=True)
        if not example.shares_clips
        for clip, *band in example.masks
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def make_integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
