"""Checkpoints, written: aside, flushed, verified, renamed; a folder under its final name is always whole.

Every tensor stands under its parameter's name, in full and in float32, whatever engine trained it. So any engine, on
any number of ranks, continues from any checkpoint. The moments of AdamW are shared out: each rank writes those of some
parameters.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError, read_first_line
from uniaudio.outputs import apply_umask
from uniaudio.train.checkpoint.folders import (
    flush,
    name_replaced_folder,
    name_step_folder,
    name_unfinished_folder,
    point_latest,
    prune_checkpoints,
)
from uniaudio.train.checkpoint.integrity import (
    BASES,
    COMPLETE,
    CONFIG,
    EMA,
    MODEL,
    OPTIMIZER,
    STATE,
    FileRecord,
    write_listing,
)

WRITTEN, PROBLEM = "written", "problem"  # keys of a rank's mark: the files it wrote, or why it could not
WAIT = 0.05  # seconds between two looks at whether the other ranks have written their parts


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write: copies, so that training can go on meanwhile.

    Args:
        moments: of this rank's share of the parameters, as ``NAME|exp_avg``.
        model, ema: all held tensors by name, on the main rank. state: position and counters.
    """

    step: int
    state: Mapping[str, Any]
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    model: Mapping[str, Tensor] = field(default_factory=dict)
    ema: Mapping[str, Tensor] = field(default_factory=dict)


def begin_checkpoint(run_dir: Path, step: int) -> None:
    """Make the folder that all ranks write to; what an earlier try left there goes, or comes back into its place.

    Raises:
        UserError: when the disk refuses.
    """
    folder = name_step_folder(run_dir, step)
    try:
        shutil.rmtree(name_unfinished_folder(folder), ignore_errors=True)
        # a kill came between the moves of finish_checkpoint
        if name_replaced_folder(folder).exists() and not folder.exists():
            name_replaced_folder(folder).rename(folder)
        shutil.rmtree(name_replaced_folder(folder), ignore_errors=True)
        name_unfinished_folder(folder).mkdir(parents=True)
    except OSError as problem:
        raise make_write_error(folder, problem) from problem


def write_share(run_dir: Path, snapshot: Snapshot, rank: int, world: int) -> None:
    """Write one rank's part of a checkpoint, flush it, and leave a mark beside it that it is there (or why not).

    Raises:
        UserError: when the disk refuses, or for whatever else comes up; the previous checkpoint stays valid.
    """
    folder = name_step_folder(run_dir, snapshot.step)
    temporary = name_unfinished_folder(folder)
    shares = {f"{OPTIMIZER}-{rank:05d}-of-{world:05d}.safetensors": snapshot.moments}
    if rank == 0:
        shares[MODEL] = snapshot.model
        if snapshot.ema:
            shares[EMA] = snapshot.ema
    records = {}
    try:
        for name, tensors in shares.items():
            save_file(dict(tensors), temporary / name)
            apply_umask(temporary / name)
            flush(temporary / name)
            verify_tensors(temporary / name, tensors)
            records[name] = FileRecord.of(temporary / name).to_json()
        name_mark(temporary, rank).write_text(json.dumps({WRITTEN: records}))
    except Exception as problem:  # a full disk is an error of several kinds, by writer
        leave_problem(run_dir, snapshot.step, rank, problem)
        raise make_write_error(folder, read_first_line(problem)) from problem


def leave_problem(run_dir: Path, step: int, rank: int, problem: Exception) -> None:
    """Leave a mark that says why a rank has not written its part, so that the main rank does not wait for it."""
    temporary = name_unfinished_folder(name_step_folder(run_dir, step))
    try:
        name_mark(temporary, rank).write_text(json.dumps({PROBLEM: read_first_line(problem)}))
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # the main rank sees that it is gone


def name_mark(temporary: Path, rank: int) -> Path:
    return temporary / f".written-{rank:05d}"


def verify_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Open a file that was written and compare names and shapes.

    Raises:
        OSError: when they are not what was to be written.
    """
    with safe_open(path, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if stored != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise OSError(f"{path} does not contain what was written to it")


def finish_checkpoint(
    run_dir: Path,
    snapshot: Snapshot,
    world: int,
    config: RunConfig,
    bases: Mapping[str, Mapping[str, str]],
    patience: float = 600.0,
) -> Path:
    """Wait for the parts of all ranks, write the rest, rename the folder, move ``latest`` to it, drop old ones.

    Raises:
        UserError: when a rank's part or the rest could not be written; the previous checkpoint stays valid.
    """
    folder = name_step_folder(run_dir, snapshot.step)
    temporary = name_unfinished_folder(folder)
    try:
        records = wait_for_parts(temporary, world, patience)
        state = json.dumps({"step": snapshot.step, **snapshot.state}, indent=2)
        (temporary / STATE).write_text(state)
        (temporary / BASES).write_text(json.dumps(bases, indent=2))
        config.save(temporary / CONFIG)
        write_listing(
            temporary, records | {name: FileRecord.of(temporary / name) for name in (STATE, BASES, CONFIG)}
        )
        for name in (STATE, BASES, CONFIG, COMPLETE):
            flush(temporary / name)
        flush(temporary)
        if folder.exists():  # moved, for removing it takes time in which there would be neither
            folder.rename(name_replaced_folder(folder))
        temporary.rename(folder)
        flush(folder.parent)
        point_latest(folder)
        settings = config.train
        prune_checkpoints(folder.parent, settings.keep_last, snapshot.step, settings.keep_every)
    except OSError as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise make_write_error(folder, problem) from problem
    return folder


def wait_for_parts(temporary: Path, world: int, patience: float) -> dict[str, FileRecord]:
    """Wait until every rank has left its mark; remove the marks and return the files that they list.

    Raises:
        OSError: with the reason of the rank that failed, or when one does not come to an end.
    """
    until = time.monotonic() + patience
    records: dict[str, FileRecord] = {}
    for rank in range(world):
        while not (content := read_mark(name_mark(temporary, rank))):
            if not temporary.exists():
                raise OSError(f"the part of process {rank} could not be written")
            if time.monotonic() > until:
                raise OSError(f"process {rank} did not write its part within {patience:g} s")
            time.sleep(WAIT)
        if PROBLEM in content:
            raise OSError(f"process {rank}: {content[PROBLEM]}")
        records |= {name: FileRecord.from_json(entry) for name, entry in content[WRITTEN].items()}
    for rank in range(world):
        name_mark(temporary, rank).unlink()
    return records


def read_mark(mark: Path) -> dict[str, Any]:
    """Return what a rank's mark says; nothing where there is none yet, or half of it."""
    try:
        return dict(json.loads(mark.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def make_write_error(folder: Path, problem: object) -> UserError:
    return UserError(f"checkpoint {folder} could not be written ({problem}); earlier ones are intact")


def save_checkpoint(
    run_dir: Path, snapshot: Snapshot, config: RunConfig, bases: Mapping[str, Mapping[str, str]]
) -> Path:
    """Write a checkpoint from one process, at once.

    Raises:
        UserError: when the disk refuses; the previous checkpoint stays valid.
    """
    begin_checkpoint(run_dir, snapshot.step)
    try:
        write_share(run_dir, snapshot, 0, 1)
    except UserError:
        shutil.rmtree(name_unfinished_folder(name_step_folder(run_dir, snapshot.step)), ignore_errors=True)
        raise
    return finish_checkpoint(run_dir, snapshot, 1, config, bases)


def distribute_tensors(sizes: Mapping[str, int], world: int) -> list[list[str]]:
    """Deal names out to ranks, the largest first, each to the rank that has least so far."""
    shares: list[list[str]] = [[] for _ in range(world)]
    loads = [0] * world
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += sizes[name]
    return shares
