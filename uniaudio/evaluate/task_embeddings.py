"""Embeddings of all clips of a task, made once: over real frames alone, or over padded batches as X-ARES has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniaudio.cache import read_cached, write_cached
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.cache import cache_file
from uniaudio.evaluate.embed import length_batches
from uniaudio.evaluate.labelled import LONGEST
from uniaudio.evaluate.task_rows import TaskRows
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

Protocol = Literal["masked", "xares"]
Clip = NDArray[np.int16]
Advance = Callable[[int, float], None]  # clips done and their seconds of audio
BATCH_SECONDS = 60.0  # encoded at a time
WINDOW_SECONDS = 1800.0  # decoded at a time and sorted by length


@dataclass(frozen=True)
class Embedded:
    """What one layer of a model says of the clips of a task.

    Args:
        values: ``[V, E]`` float32, one vector for every piece of a clip; or ``[A_total, E]`` float16 frames.
        lengths: ``[V]`` int64 numbers of frames, all 1 where vectors are pooled.
        owner: ``[V]`` int64: the row of the task that a piece belongs to; rows are pieces unless clips are cropped.
    """

    values: Tensor
    lengths: Tensor
    owner: Tensor

    def pieces_of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the indices of the pieces of some rows, ``[P]`` int64, in the order of the pieces."""
        wanted = torch.zeros(int(self.owner.max()) + 1, dtype=torch.bool)
        wanted[torch.from_numpy(rows)] = True
        return wanted[self.owner].nonzero()[:, 0]


def embed_task(
    encoder: AudioEncoder,
    model: str,
    rows: TaskRows,
    data: str,
    protocol: Protocol,
    layers: bool = False,
    advance: Advance = lambda clips, seconds: None,
) -> list[Embedded]:
    """Return the embeddings of a task by an encoder, from the cache where they are in it.

    Args:
        model, data: digests of the encoder and of the clips.
        layers: of every hidden state, the last being the frames; else of the frames alone.

    Raises:
        UserError: when a clip cannot be read.
    """
    pooling = pooling_name(rows, protocol)
    count = len(encoder.layer_dims) if layers else 1
    files = [cache_file(model, data, pooling, layer if layers else None) for layer in range(count)]
    cached = [read_cached(file) for file in files]
    if all(tensors is not None for tensors in cached):
        advance(len(rows.answers), 0.0)
        return [Embedded(**tensors) for tensors in cached if tensors is not None]
    batches = masked_batches(rows) if protocol == "masked" else padded_batches(rows)
    found = encode_batches(encoder, batches, layers, rows.task.kind == "frame", advance)
    for file, embedded in zip(files, found, strict=True):
        write_cached(file, vars(embedded))
    return found


def pooling_name(rows: TaskRows, protocol: Protocol) -> str:
    """Return what decides the embeddings besides model and clips."""
    kept = "frames" if rows.task.kind == "frame" else "mean"
    if protocol == "masked":
        return f"masked {kept}"
    parts = hashlib.sha256(b"|".join(part.tobytes() for part in rows.parts.values())).hexdigest()
    return f"xares {kept}, batches of {rows.task.encode}, crop {rows.task.crop}, parts {parts}"


def decoded(rows: TaskRows) -> Iterator[Clip]:
    """Decode the clips of a task in order.

    Raises:
        UserError: when one cannot be read.
    """
    for row in rows.rows():
        ref = row.audio[0]
        try:
            yield ref.decode(LONGEST)
        except RowError as problem:
            raise UserError(f"task {rows.name}: {rows.card.name}: {problem}") from problem


@dataclass(frozen=True)
class Batch:
    """Pieces of clips that are encoded together, the row of each, and how many clips begin among them."""

    rows: list[int]
    pieces: list[Clip]
    clips: int


def masked_batches(rows: TaskRows) -> Iterator[Batch]:
    """Yield clips of similar length side by side, out of windows of the rows: no clip sees another."""
    window: list[Clip] = []
    first, seconds = 0, 0.0

    def cut() -> Iterator[Batch]:
        for batch in length_batches([len(clip) for clip in window], BATCH_SECONDS * SAMPLE_RATE):
            yield Batch([first + i for i in batch], [window[i] for i in batch], len(batch))

    for clip in decoded(rows):
        window.append(clip)
        seconds += len(clip) / SAMPLE_RATE
        if seconds >= WINDOW_SECONDS:
            yield from cut()
            first, seconds = first + len(window), 0.0
            window.clear()
    yield from cut()


def padded_batches(rows: TaskRows) -> Iterator[Batch]:
    """Yield pieces as X-ARES encodes them: every part apart, in order, so many at a time, padded to the longest.

    Clips are cut into whole crops where the task has a ``crop``; what is left over falls away, and a clip that is
    shorter than one is padded to it.
    """
    part_of = np.empty(len(rows.answers), dtype=np.int64)
    for number, members in enumerate(rows.parts.values()):
        part_of[members] = number
    waiting: list[list[tuple[int, bool, Clip]]] = [[] for _ in rows.parts]  # (row, first of its clip, piece)
    for row, clip in enumerate(decoded(rows)):
        pieces = waiting[part_of[row]]
        pieces += [(row, i == 0, piece) for i, piece in enumerate(crops(clip, rows.task.crop))]
        while len(pieces) >= rows.task.encode:
            yield padded(pieces[: rows.task.encode])
            del pieces[: rows.task.encode]
    for pieces in waiting:
        if pieces:
            yield padded(pieces)


def padded(pieces: Sequence[tuple[int, bool, Clip]]) -> Batch:
    """Pad pieces with silence to the longest of them: to the encoder, the silence is sound like any other."""
    longest = max(len(piece) for _, _, piece in pieces)
    clips = [np.pad(piece, (0, longest - len(piece))) for _, _, piece in pieces]
    return Batch([row for row, _, _ in pieces], clips, sum(first for _, first, _ in pieces))


def crops(clip: Clip, seconds: float | None) -> list[Clip]:
    """Cut a clip into whole pieces of so many seconds; a shorter clip is padded with silence to one."""
    if seconds is None:
        return [clip]
    size = round(seconds * SAMPLE_RATE)
    if len(clip) < size:
        return [np.pad(clip, (0, size - len(clip)))]
    return [clip[start : start + size] for start in range(0, len(clip) - size + 1, size)]


@torch.no_grad()
def encode_batches(
    encoder: AudioEncoder, batches: Iterator[Batch], layers: bool, frames: bool, advance: Advance
) -> list[Embedded]:
    """Encode batches and put the pieces in the order of the rows; mean over the frames given unless ``frames``."""
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    owners: list[int] = []
    counts: list[Tensor] = []
    pieces: list[list[Tensor]] = []  # by layer, in the order of the batches
    for batch in batches:
        audio = Ragged.from_rows([torch.from_numpy(piece) for piece in batch.pieces])
        encoded = encoder(audio.to(device), layers=layers)
        states = encoded.layers if layers else (encoded.frames,)
        pieces = pieces or [[] for _ in states]
        for kept, state in zip(pieces, states, strict=True):
            values = state.with_values(state.values.float())
            kept.extend(row.half().cpu() for row in values.rows()) if frames else kept.extend(
                values.mean().cpu()
            )
        owners += batch.rows
        counts.append(encoded.frames.lengths if frames else torch.ones(len(batch.rows), dtype=torch.int64))
        advance(batch.clips, sum(map(len, batch.pieces)) / SAMPLE_RATE)
    encoder.train(was_training)
    owner, lengths = torch.tensor(owners), torch.cat(counts)
    order = owner.argsort(stable=True)
    join = torch.cat if frames else torch.stack
    return [
        Embedded(join([kept[i] for i in order.tolist()]), lengths[order], owner[order]) for kept in pieces
    ]
