"""What a run says when the memory does not suffice."""

import pytest
import torch

from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.ragged import Ragged
from uniaudio.train.oom import explain_out_of_memory
from uniaudio.types import Batch

STAGE = Stage(name="joint", recipe="r", steps=3, budget={"audio_seconds": 600.0})


def batch():
    """Two clips of 3 s in all, five decoder tokens, two of them answers."""
    audio = Ragged(torch.zeros(48_000, dtype=torch.int16), torch.tensor([16_000, 32_000]))
    ids, labels = torch.zeros(5, dtype=torch.long), torch.tensor([1, 2])
    none = torch.zeros(0, dtype=torch.long)
    return Batch(
        audio=audio,
        tokens=Ragged(ids, torch.tensor([2, 3])),
        audio_positions=none,
        audio_index=none,
        label_positions=labels,
        labels=labels,
        label_task=labels * 0,
        masks=torch.zeros(0, 4, dtype=torch.long),
        example_clips=Ragged(torch.tensor([0, 1]), torch.tensor([1, 1])),
        example_task=torch.zeros(2, dtype=torch.long),
        prompt_lengths=torch.tensor([1, 2]),
        tasks=("a",),
        ids=("x", "y"),
        audio_tokens=0,
        audio_seconds=3.0,
    )


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
def test_it_names_the_batch_and_the_setting(problem):
    with pytest.raises(UserError) as message, explain_out_of_memory(batch(), STAGE, 7):
        raise problem
    assert str(message.value) == (
        "out of memory in step 7, at a micro-batch of 2 clips, 3 s of audio, 5 decoder tokens and "
        "2 answer tokens; lower stages.joint.budget.audio_seconds (now 600), or let `uniaudio "
        "tune-batch` search for it"
    )


def test_at_the_update_it_names_what_takes_less_memory():
    with pytest.raises(UserError) as message, explain_out_of_memory(None, STAGE, 1):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert str(message.value) == (
        "out of memory in step 1, at the update of the weights: AdamW keeps two moments of each trained parameter; "
        "train less (stages.joint.train, or lora), or launch with zero2 or fsdp2 on more GPUs"
    )


def test_a_real_allocation_that_fails():
    with pytest.raises(UserError, match="out of memory in step 1"), explain_out_of_memory(batch(), STAGE, 1):
        torch.empty(2**60, dtype=torch.float32)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(batch(), STAGE, 1):
        raise RuntimeError("shapes differ")
