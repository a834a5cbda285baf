"""Embeddings of all clips of a task, made once: over real frames alone, or over padded batches as X-ARES has it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uniaudio.config.path_variables import get_cache_root
from uniaudio.console import announce
from uniaudio.data.audio import ADVICE
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import ClipSamples, decode_clips
from uniaudio.errors import RowError, UserError, read_first_line
from uniaudio.evaluate.embedding import MAX_CLIP_SECONDS, batch_by_length
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.feature_cache import read_cached, write_cached
from uniaudio.model.encoders.base import AudioEncoder, find_device
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

Protocol = Literal["masked", "xares"]
Advance = Callable[[int, float], None]  # clips done and their seconds of audio
BATCH_SECONDS = 60.0  # encoded at a time
NO_CLIP: ClipSamples = np.zeros(0, np.int16)
PENDING_SECONDS = 1800.0  # decoded at a time and sorted by length


@dataclass(frozen=True)
class Embedded:
    """What one layer of a model says of the clips of a task.

    Args:
        values: ``[V, E]`` float32, one vector for every piece of a clip; or ``[A_total, E]`` frames, see
            ``store_frames``.
        lengths: ``[V]`` int64 numbers of frames, all 1 where vectors are pooled.
        owner: ``[V]`` int64: the row of the task that a piece belongs to; rows are pieces unless clips are cropped. A
            row whose clip cannot be used has none.
        notices: ``[K]`` int64: the clips that are odd in each of the ways of ``ADVICE``.
    """

    values: Tensor
    lengths: Tensor
    owner: Tensor
    notices: Tensor = field(default_factory=lambda: torch.zeros(len(ADVICE), dtype=torch.int64))

    def pieces_of(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the indices of the pieces of some rows, ``[P]`` int64, in the order of the pieces."""
        wanted = torch.zeros(int(self.owner.max()) + 1, dtype=torch.bool)
        wanted[torch.from_numpy(rows)] = True
        return wanted[self.owner].nonzero()[:, 0]

    def select_rows(self, index: Tensor) -> Embedded:
        """Return what it says of some rows.

        Args:
            index: ``[N]`` int64: of every row its new number, -1 for those that are left out.
        """
        owner = index[self.owner]
        kept = (owner >= 0).nonzero()[:, 0]
        pieces = Ragged(self.values, self.lengths).select(kept) if len(kept) < len(owner) else None
        if pieces is None:
            return replace(self, owner=owner)
        return replace(self, values=pieces.values, lengths=pieces.lengths, owner=owner[kept])

    def list_broken_rows(self) -> list[int]:
        """Return the rows with values that are not finite, each once and in order."""
        pieces = torch.repeat_interleave(self.lengths)  # of every vector or frame
        return sorted({*self.owner[pieces[~self.values.isfinite().all(1)]].tolist()})


def embed_task(
    encoder: AudioEncoder,
    model: str,
    rows: TaskRows,
    data: str,
    protocol: Protocol,
    layers: bool = False,
    advance: Advance = lambda clips, seconds: None,
) -> tuple[TaskRows, list[Embedded]]:
    """Return the embeddings of a task by an encoder, from the cache where they are in it, and the task without the
    rows whose clips cannot be used; see ``TaskRows.drop``.

    Args:
        model, data: digests of the encoder and of the clips.
        layers: of every hidden state, the last being the frames; else of the frames alone.

    Raises:
        UnmeasurableTaskError: when too few clips can be used.
        UserError: when events are to be found by frames that are not in the order of time.
    """
    require_order_of_time(encoder, rows)
    pooling = describe_pooling(rows, protocol)
    count = len(encoder.layer_dims) if layers else 1
    files = [locate_cache_file(model, data, pooling, layer if layers else None) for layer in range(count)]
    states = read_embedded(files)
    skips = None if states is None else find_skips(rows, states[0])
    if states is None or skips is None:
        states, skips = encode_task(encoder, rows, protocol, layers, advance)
        try:
            for file, embedded in zip(files, states, strict=True):
                write_cached(file, vars(embedded))
        except OSError as problem:  # a cache that cannot be written is no reason to lose them
            announce(f"embeddings of {rows.name} are not kept: {read_first_line(problem)}")
    else:
        advance(len(rows.answers), 0.0)
    return drop_rows(rows, states, skips)


def drop_rows(
    rows: TaskRows, states: Sequence[Embedded], skips: Mapping[int, Skip]
) -> tuple[TaskRows, list[Embedded]]:
    """Return a task and what is said of its clips without some rows, see ``TaskRows.drop``.

    Raises:
        UnmeasurableTaskError: when too little is left.
    """
    left = rows.drop(skips)
    index = torch.full((len(rows.answers),), -1)
    index[torch.from_numpy(np.isin(rows.numbers, left.numbers))] = torch.arange(len(left.numbers))
    return left, [state.select_rows(index) for state in states]


def encode_task(
    encoder: AudioEncoder,
    rows: TaskRows,
    protocol: Protocol,
    layers: bool = False,
    advance: Advance = lambda clips, seconds: None,
) -> tuple[list[Embedded], dict[int, Skip]]:
    """Return the embeddings of a task by an encoder, without the cache, and why clips cannot be used, by their row; see
    ``embed_task``.
    """
    require_order_of_time(encoder, rows)
    clips = ClipReader(rows)
    batches = iterate_masked_batches(clips) if protocol == "masked" else iterate_padded_batches(clips)
    states = encode_batches(encoder, batches, layers, rows.task.kind == "frame", advance)
    notices = torch.tensor([clips.notices[kind] for kind in ADVICE])
    return [replace(state, notices=notices) for state in states], clips.skips


def require_order_of_time(encoder: AudioEncoder, rows: TaskRows) -> None:
    """Refuse frames for events where a frame's number says nothing of its time.

    Raises:
        UserError: with the setting.
    """
    if rows.task.kind == "frame" and not encoder.follows_time:
        raise UserError(
            f"{rows.name}: events have times, but the frames of this encoder are not in the order of time "
            "(fusion.output: both); use one with `output: sum`"
        )


def hold_clips(rows: TaskRows) -> tuple[TaskRows, Counter[str]]:
    """Return a task with its clips decoded and held in memory, without the rows whose clips cannot be used, and the
    number of clips that are odd, by kind.

    Raises:
        UnmeasurableTaskError: when too little is left, see ``TaskRows.drop``.
    """
    reader = ClipReader(rows)
    clips = dict(reader)
    held = replace(rows, clips=tuple(clips.get(i, NO_CLIP) for i in range(len(rows.answers))))
    return held.drop(reader.skips), reader.notices


def read_embedded(files: Sequence[Path]) -> list[Embedded] | None:
    """Return what lies in the cache; None where anything is missing."""
    names = {one.name for one in fields(Embedded)}
    cached = [read_cached(file) for file in files]
    if not all(tensors is not None and set(tensors) == names for tensors in cached):
        return None
    return [Embedded(**tensors) for tensors in cached if tensors is not None]


def find_skips(rows: TaskRows, embedded: Embedded) -> dict[int, Skip] | None:
    """Return why rows of a task have no embedding in the cache, by their number; None where one has no reason any more.

    The reasons are not cached, for they name files: these few clips are decoded again.
    """
    missing = set(range(len(rows.answers))) - set(embedded.owner.tolist())
    skips = {}
    for number, row in enumerate(rows.rows() if missing else ()):
        if number in missing:
            try:
                decode_clips(row, MAX_CLIP_SECONDS)
            except RowError as problem:
                skips[number] = Skip.of(rows.card.name, row.key, problem)
            else:  # it could not be read for a moment
                return None
    return skips


def locate_cache_file(model: str, data: str, pooling: str, layer: int | None) -> Path:
    """Return where embeddings lie: ``$UNIAUDIO_CACHE/embeddings/MODEL/NAME.safetensors``.

    Args:
        model, data: digests of the model and of the clips. pooling: what was done to the frames.
        layer: number of a hidden state, None for the frames themselves.
    """
    # the numbers of odd clips are stored without their kinds
    name = hashlib.sha256("\n".join((data, pooling, str(layer), *ADVICE)).encode()).hexdigest()
    return get_cache_root() / "embeddings" / model[:16] / f"{name[:32]}.safetensors"


def describe_pooling(rows: TaskRows, protocol: Protocol) -> str:
    """Return what decides the embeddings besides model and clips."""
    # in half precision alone, as "frames" were stored, large values were infinite
    kept = "frames of any size" if rows.task.kind == "frame" else "mean"
    if protocol == "masked":
        return f"masked {kept}"
    parts = hashlib.sha256(b"|".join(part.tobytes() for part in rows.parts.values())).hexdigest()
    return f"xares {kept}, batches of {rows.task.encode}, crop {rows.task.crop}, parts {parts}"


class ClipReader:
    """Decodes the clips of a task in order, and skips those that cannot be used.

    Attributes:
        notices: the number of clips that are odd, by kind. skips: why clips cannot be used, by the number of their row.
    """

    def __init__(self, rows: TaskRows) -> None:
        self.rows = rows
        self.notices: Counter[str] = Counter()
        self.skips: dict[int, Skip] = {}

    def __iter__(self) -> Iterator[tuple[int, ClipSamples]]:
        """Yield the usable clips with the number of their row.

        Raises:
            UnmeasurableTaskError: at the end, when there was none.
        """
        if self.rows.clips is not None:
            yield from enumerate(self.rows.clips)
            return
        for number, row in enumerate(self.rows.rows()):
            notices: list[str] = []
            try:
                (clip,) = decode_clips(row, MAX_CLIP_SECONDS, notices)
            except RowError as problem:
                self.skips[number] = Skip.of(self.rows.card.name, row.key, problem)
                continue
            self.notices.update(set(notices))
            yield number, clip
        if len(self.skips) == len(self.rows.answers):
            skipped = (*self.rows.skipped, *self.skips.values())
            raise replace(self.rows, skipped=skipped).refuse("no clip can be used")


@dataclass(frozen=True)
class PieceBatch:
    """Pieces of clips that are encoded together, the row of each, and how many clips begin among them."""

    rows: list[int]
    pieces: list[ClipSamples]
    clips: int


def iterate_masked_batches(clips: ClipReader) -> Iterator[PieceBatch]:
    """Yield clips of similar length side by side, out of windows of the rows: no clip sees another."""
    pending: list[tuple[int, ClipSamples]] = []
    seconds = 0.0

    def cut() -> Iterator[PieceBatch]:
        for batch in batch_by_length([len(clip) for _, clip in pending], BATCH_SECONDS * SAMPLE_RATE):
            yield PieceBatch([pending[i][0] for i in batch], [pending[i][1] for i in batch], len(batch))

    for number, clip in clips:
        pending.append((number, clip))
        seconds += len(clip) / SAMPLE_RATE
        if seconds >= PENDING_SECONDS:
            yield from cut()
            seconds = 0.0
            pending.clear()
    yield from cut()


def iterate_padded_batches(clips: ClipReader) -> Iterator[PieceBatch]:
    """Yield pieces as X-ARES encodes them: every part apart, in order, so many at a time, padded to the longest.

    Clips are cut into whole crops where the task has a ``crop``; what is left over falls away, and a clip that is
    shorter than one is padded to it.
    """
    rows = clips.rows
    part_of = np.empty(len(rows.answers), dtype=np.int64)
    for number, members in enumerate(rows.parts.values()):
        part_of[members] = number
    # (row, first of its clip, piece)
    waiting: list[list[tuple[int, bool, ClipSamples]]] = [[] for _ in rows.parts]
    for row, clip in clips:
        pieces = waiting[part_of[row]]
        pieces += [(row, i == 0, piece) for i, piece in enumerate(crop_clip(clip, rows.task.crop))]
        while len(pieces) >= rows.task.encode:
            yield pad_pieces(pieces[: rows.task.encode])
            del pieces[: rows.task.encode]
    for pieces in waiting:
        if pieces:
            yield pad_pieces(pieces)


def pad_pieces(pieces: Sequence[tuple[int, bool, ClipSamples]]) -> PieceBatch:
    """Pad pieces with silence to the longest of them: to the encoder, the silence is sound like any other."""
    longest = max(len(piece) for _, _, piece in pieces)
    clips = [np.pad(piece, (0, longest - len(piece))) for _, _, piece in pieces]
    return PieceBatch([row for row, _, _ in pieces], clips, sum(first for _, first, _ in pieces))


def crop_clip(clip: ClipSamples, seconds: float | None) -> list[ClipSamples]:
    """Cut a clip into whole pieces of so many seconds; a shorter clip is padded with silence to one."""
    if seconds is None:
        return [clip]
    size = round(seconds * SAMPLE_RATE)
    if len(clip) < size:
        return [np.pad(clip, (0, size - len(clip)))]
    return [clip[start : start + size] for start in range(0, len(clip) - size + 1, size)]


@torch.no_grad()
def encode_batches(
    encoder: AudioEncoder, batches: Iterator[PieceBatch], layers: bool, frames: bool, advance: Advance
) -> list[Embedded]:
    """Encode batches and put the pieces in the order of the rows; mean over the frames given unless ``frames``."""
    was_training = encoder.training
    encoder.eval()
    device = find_device(encoder)
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
            kept.extend(store_frames(row).cpu() for row in values.rows()) if frames else kept.extend(
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


def store_frames(frames: Tensor) -> Tensor:
    """Return float32 frames ``[A, E]`` in float16, which is precise enough for probes, or as they are if some are too
    large for it. Joined, frames of both kinds are float32.
    """
    halved = frames.half()
    return frames if (halved.isinf() & frames.isfinite()).any() else halved
