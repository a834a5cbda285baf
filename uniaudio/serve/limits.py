"""What the page accepts: how large, how long, how slow; checked before the work that it bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from uniaudio.data.audio import decode
from uniaudio.data.audio_files import open_streams
from uniaudio.errors import RowError, UserError

MIB = 1 << 20
KEPT_SECONDS = 3600  # that an uploaded clip is kept, so that it can be asked about again
MAX_RATE = 400_000  # samples a second of all channels: eight channels at 48 kHz, two at 192 kHz
REASONS = {
    "broken audio": "the file cannot be read as audio; use WAV, FLAC, MP3, OGG or Opus",
    "truncated audio": "the file is truncated; use a complete one",
    "empty audio": "the clip is empty; record or upload another one",
    "non-finite samples": "the clip contains samples that are not numbers; export it again",
    "samples out of range": "the clip contains floats far beyond full scale; export it with 16 bits or floats up to 1",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one question.

    Args:
        max_seconds: length of the clip. max_mib: size of its file, in MiB. timeout: seconds that the model may take.
        max_new_tokens: length of the answer. max_characters: length of the question.
        max_waiting: questions that may wait for the one before them.
    """

    max_seconds: float = 60.0
    max_mib: float = 20.0
    timeout: float = 60.0
    max_new_tokens: int = 256
    max_characters: int = 2000
    max_waiting: int = 8

    @property
    def max_bytes(self) -> int:
        """The size of a file in bytes."""
        return int(self.max_mib * MIB)


def decode_upload(data: bytes, limits: Limits) -> NDArray[np.int16]:
    """Decode the bytes of a sound file to int16 mono samples ``[S]`` at 16 kHz.

    Size, length and the number of samples that the header promises are compared with the limits before anything is
    decoded: a small compressed file can hold gigabytes of silence.

    Raises:
        UserError: when the clip is too large, too long, empty or no sound that can be read.
    """
    if len(data) > limits.max_bytes:
        raise UserError(
            f"the file is larger than {limits.max_mib:g} MiB; cut or compress it, "
            f"or start the page with a larger --max-mib"
        )
    try:
        with open_streams(data, "the clip") as streams:
            file = streams[0]
            seconds, rate = file.frames / file.samplerate, file.samplerate * file.channels
            shape = f"{file.channels} channel(s) at {file.samplerate} Hz"
        if seconds > limits.max_seconds:
            raise UserError(
                f"the clip is {seconds:.1f} s long, more than {limits.max_seconds:g} s; cut it, "
                f"or start the page with a larger --max-seconds"
            )
        if rate > MAX_RATE:
            raise UserError(f"the clip has {shape}, more than this page accepts; convert it to 16 kHz mono")
        return decode(data, limits.max_seconds, "the clip")
    except RowError as problem:
        raise UserError(REASONS.get(problem.reason, str(problem))) from problem


@contextmanager
def limit_time(seconds: float, model: nn.Module) -> Iterator[None]:
    """Bound the time of what ``model`` does inside: every module checks the clock before it runs.

    A thread cannot be ended from outside; this ends an overdue question within one layer, so the next in the queue
    gets its turn.

    Raises:
        UserError: inside, at the first module that begins too late.
    """
    end = time.monotonic() + seconds

    def check_clock(module: nn.Module, inputs: Any) -> None:
        if time.monotonic() > end:
            raise UserError(
                "the model took too long; use a shorter clip or start the page with a larger --timeout"
            )

    hooks = [module.register_forward_pre_hook(check_clock) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
