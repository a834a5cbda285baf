"""Checkpoints in the background: a thread copies the tensors before the next update, and writes the copies."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.distributed import gather_objects, raise_together, rank, refuse_together, world_size
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.folders import name_step_folder
from uniaudio.train.checkpoint.writing import (
    Snapshot,
    begin_checkpoint,
    distribute_tensors,
    finish_checkpoint,
    leave_problem,
    make_write_error,
    write_share,
)
from uniaudio.train.engines.base import Engine

# seconds that the checkpoint under way has when a run ends with an error: alone, and as one process of several, which
# torchrun kills 30 s after it has seen another one fail
LAST_WORDS, LAST_WORDS_OF_RANK = 60.0, 20.0
SIGHT_SECONDS = 5.0  # until a new file of the main process is seen by the others, where it ever is


class HostCopies:
    """Copies of tensors in the CPU's memory, in places that are kept from one checkpoint to the next.

    Fresh memory is handed out page by page while it is first written, which takes longer than the copy itself.
    """

    def __init__(self) -> None:
        self.places: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Copy a tensor to its place, so that later updates leave the copy alone; the copy before is overwritten."""
        place = self.places.get(name)
        if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
            place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self.places[name] = place
        return place.copy_(tensor.detach())


class CheckpointWriter:
    """Writes one checkpoint at a time; every rank has one and they meet through the folder alone.

    Args:
        writers: the ranks that see the run folder, each of which writes a part. Default: all.
        on_saved: called in the main rank, by the loop, when a checkpoint is whole: (step, facts).
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        bases: Mapping[str, Mapping[str, str]],
        on_saved: Callable[[int, Mapping[str, Any]], None] = lambda step, facts: None,
        writers: Sequence[int] | None = None,
    ) -> None:
        self.run_dir, self.config, self.bases, self.on_saved = run_dir, config, bases, on_saved
        writers = writers if writers is not None else range(world_size())
        self.parts = len(writers)
        self.part = writers.index(rank()) if rank() in writers else None  # the number of this rank's part
        self.thread: threading.Thread | None = None
        self.problem: UserError | None = None
        self.copies = HostCopies()
        self.copied = threading.Event()
        self.copied.set()
        self.done: list[tuple[int, Mapping[str, Any]]] = []

    def save(
        self,
        engine: Engine,
        carried: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        step: int,
        state: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        """Begin to copy and write what belongs to a checkpoint. Every rank must call it at the same point.

        What is copied does not change before the next update, so the thread copies while the next forward and backward
        run; call ``wait_for_copies`` behind them. Engines that have to put tensors together copy at once.

        Args:
            carried: tensors that earlier stages changed and this one does not train. facts: for ``on_saved``.

        Raises:
            UserError: on all ranks, when the folder cannot be made or the checkpoint before could not be written.
        """
        self.wait()
        with refuse_together():
            if rank() == 0:
                begin_checkpoint(self.run_dir, step)
        names = set() if self.part is None else set(distribute_tensors(engine.sizes, self.parts)[self.part])
        take = partial(take_snapshot, engine, carried, ema, step, state, names, self.copies)
        if engine.gathers:
            work = partial(self.write, take(), facts)
        else:
            self.copied.clear()
            work = partial(self.copy_and_write, take, step, facts)
        self.thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self.thread.start()

    def wait_for_copies(self) -> None:
        """Wait until all that the next update changes is copied."""
        self.copied.wait()

    def copy_and_write(self, take: Callable[[], Snapshot], step: int, facts: Mapping[str, Any]) -> None:
        """Copy, let the loop update, and write; runs in the thread."""
        try:
            snapshot = take()
        except Exception as problem:  # as in ``write``
            self.problem = self.explain_problem(problem, step)
            if self.part is not None:
                leave_problem(self.run_dir, step, self.part, problem)
            return
        finally:
            self.copied.set()
        self.write(snapshot, facts)

    def write(self, snapshot: Snapshot, facts: Mapping[str, Any]) -> None:
        """Write this rank's part, and on the main rank the rest; runs in the thread.

        Whatever happens here is kept for ``wait``: an exception that only ends the thread would go unnoticed.
        """
        try:
            if self.part is not None:
                write_share(self.run_dir, snapshot, self.part, self.parts)
        except Exception as problem:
            self.problem = self.explain_problem(problem, snapshot.step)
        if rank() == 0:  # also after a failure of its own: the folder has to go
            try:
                finish_checkpoint(self.run_dir, snapshot, self.parts, self.config, self.bases)
                self.done.append((snapshot.step, facts))
            except Exception as problem:
                self.problem = self.problem or self.explain_problem(problem, snapshot.step)

    def explain_problem(self, problem: Exception, step: int) -> UserError:
        if isinstance(problem, UserError):
            return problem
        return make_write_error(name_step_folder(self.run_dir, step), repr(problem))

    @property
    def failed(self) -> bool:
        return self.problem is not None

    def tell(self) -> None:
        """Report the checkpoints that have become whole since the last call."""
        while self.done:
            self.on_saved(*self.done.pop(0))

    def finish(self) -> None:
        """Let the checkpoint under way come to its end when the run ends with an error: it may be the last one.

        Not for ever: the part of a process that is gone never comes, and this one still has to say why it ends.
        """
        if self.thread is not None:
            self.thread.join(LAST_WORDS if world_size() == 1 else LAST_WORDS_OF_RANK)

    def wait(self) -> None:
        """Wait for the checkpoint under way. Every rank must call it at the same point.

        Raises:
            UserError: on all ranks, when a rank could not write its part.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.tell()
        raise_together(str(self.problem or ""))


def take_snapshot(
    engine: Engine,
    carried: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    step: int,
    state: Mapping[str, Any],
    names: Collection[str],
    copies: HostCopies,
) -> Snapshot:
    """Copy to the CPU's memory what this rank has to write; the parameters are put together one at a time.

    Args:
        names: of the parameters whose moments this rank writes.
        copies: where to; nothing may read the snapshot before this one any more.
    """
    main = rank() == 0
    model, moments = {}, {}
    for whole in engine.list_trained():
        if main:
            model[whole.name] = copies.copy(whole.name, whole.weight)
        if whole.name in names:
            for kind, tensor in whole.moments.items():
                name = f"{whole.name}|{kind}"
                moments[name] = copies.copy(name, tensor)
    if main:
        model |= carried
    averages = {}
    for name, tensor in ema.items():
        average = engine.full(tensor)  # on every rank: putting it together takes them all
        if main:
            averages[name] = copies.copy(f"{name}|ema", average)
    return Snapshot(step, state, moments, model, averages)


def find_writers(run_dir: Path, patience: float = SIGHT_SECONDS) -> tuple[list[int], list[str]]:
    """Find out which processes see the run folder of the main process. Every rank must call it at the same point.

    Args:
        patience: seconds to look; a network file system may show a new file late.

    Returns:
        Their ranks, and the names of the machines of all others.
    """
    if world_size() == 1:
        return [0], []
    mark = run_dir / f".seen-{uuid.uuid4().hex}"
    if rank() == 0:
        mark.touch()
    mark = run_dir / gather_objects(mark.name)[0]
    until = time.monotonic() + patience
    while not (is_seen := run_dir.is_dir() and mark.name in os.listdir(run_dir)) and time.monotonic() < until:
        time.sleep(0.1)
    everyone = gather_objects((socket.gethostname(), is_seen))
    if rank() == 0:
        mark.unlink()
    writers = [number for number, (_, sees) in enumerate(everyone) if sees]
    return writers, sorted({host for host, sees in everyone if not sees})
