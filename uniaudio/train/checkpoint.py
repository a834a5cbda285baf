"""Checkpoints: written aside, flushed, verified, renamed; a folder under its final name is always whole.

Every tensor stands under its parameter's name, in full and in float32, whatever engine trained it. So any engine, on
any number of ranks, continues from any checkpoint. The moments of AdamW are shared out: each rank writes those of some
parameters.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.outputs import apply_umask

COMPLETE = "complete.json"  # names and sizes of the other files; written last
UNFINISHED = ".unfinished-"
MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer"
STAGE_END = "stage_done"  # in the state: the checkpoint is the last one of its stage
REPLACED = "-replaced"  # of a folder that makes way for another one of the same step
WRITTEN = "written"  # in a rank's mark; an empty mark is one that is only being written
STEP = re.compile(r"step-\d+")  # what else somebody puts beside the checkpoints is left alone
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


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. ``model`` holds the trained tensors only; ``bases`` names what they were trained on top of."""

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Any]
    bases: dict[str, dict[str, str]]


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def unfinished(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}")


def begin_checkpoint(run_dir: Path, step: int) -> None:
    """Make the folder that all ranks write to; what an earlier try left there goes, or comes back into its place.

    Raises:
        UserError: when the disk refuses.
    """
    folder = step_folder(run_dir, step)
    try:
        shutil.rmtree(unfinished(folder), ignore_errors=True)
        if (
            replaced(folder).exists() and not folder.exists()
        ):  # a kill came between the moves of finish_checkpoint
            replaced(folder).rename(folder)
        shutil.rmtree(replaced(folder), ignore_errors=True)
        unfinished(folder).mkdir(parents=True)
    except OSError as problem:
        raise refusal(folder, problem) from problem


def write_share(run_dir: Path, snapshot: Snapshot, rank: int, world: int) -> None:
    """Write one rank's part of a checkpoint, flush it, and leave a mark beside it that it is there (or why not).

    Raises:
        UserError: when the disk refuses; the previous checkpoint stays valid.
    """
    folder = step_folder(run_dir, snapshot.step)
    aside = unfinished(folder)
    shares = {f"{OPTIMIZER}-{rank:05d}-of-{world:05d}.safetensors": snapshot.moments}
    if rank == 0:
        shares[MODEL] = snapshot.model
        if snapshot.ema:
            shares[EMA] = snapshot.ema
    try:
        for name, tensors in shares.items():
            save_file(dict(tensors), aside / name)
            apply_umask(aside / name)
            flush(aside / name)
            verify(aside / name, tensors)
        mark(aside, rank).write_text(WRITTEN)
    except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk is each of them, by writer
        try:
            mark(aside, rank).write_text(str(problem) or type(problem).__name__)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)  # the main rank sees that it is gone
        raise refusal(folder, problem) from problem


def mark(aside: Path, rank: int) -> Path:
    return aside / f".written-{rank:05d}"


def verify(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Open a file that was written and compare names and shapes.

    Raises:
        OSError: when they are not what was to be written.
    """
    with safe_open(path, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if found != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise OSError(f"{path} does not hold what was written to it")


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
    folder = step_folder(run_dir, snapshot.step)
    aside = unfinished(folder)
    try:
        wait_for_parts(aside, world, patience)
        state = json.dumps({"step": snapshot.step, **snapshot.state}, indent=2)
        (aside / "state.json").write_text(state)
        (aside / "bases.json").write_text(json.dumps(bases, indent=2))
        config.save(aside / "config.yaml")
        sizes = {file.name: file.stat().st_size for file in sorted(aside.iterdir())}
        (aside / COMPLETE).write_text(json.dumps(sizes, indent=2))
        for name in ("state.json", "bases.json", "config.yaml", COMPLETE):
            flush(aside / name)
        flush(aside)
        if folder.exists():  # moved, for removing it takes time in which there would be neither
            folder.rename(replaced(folder))
        aside.rename(folder)
        flush(folder.parent)
        point_latest(folder)
        settings = config.train
        prune(folder.parent, settings.keep_last, snapshot.step, settings.keep_every)
    except OSError as problem:
        shutil.rmtree(aside, ignore_errors=True)
        raise refusal(folder, problem) from problem
    return folder


def wait_for_parts(aside: Path, world: int, patience: float) -> None:
    """Wait until every rank has left its mark; remove the marks.

    Raises:
        OSError: with the reason of the rank that failed, or when one does not come to an end.
    """
    until = time.monotonic() + patience
    for rank in range(world):
        while not (told := told_by(mark(aside, rank))):
            if not aside.exists():
                raise OSError(f"the part of process {rank} could not be written")
            if time.monotonic() > until:
                raise OSError(f"process {rank} did not write its part within {patience:g} s")
            time.sleep(WAIT)
        if told != WRITTEN:
            raise OSError(f"process {rank}: {told}")
    for rank in range(world):
        mark(aside, rank).unlink()


def told_by(mark: Path) -> str:
    """Return what a rank's mark says so far; an empty text where there is none yet."""
    try:
        return mark.read_text()
    except FileNotFoundError:
        return ""


def replaced(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}{REPLACED}")


def refusal(folder: Path, problem: object) -> UserError:
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
        shutil.rmtree(unfinished(step_folder(run_dir, snapshot.step)), ignore_errors=True)
        raise
    return finish_checkpoint(run_dir, snapshot, 1, config, bases)


def point_latest(folder: Path) -> None:
    """Let ``latest``, a file with a folder's name, name this folder; replaced in one move."""
    latest = folder.parent / "latest"
    aside = latest.with_name(f"{UNFINISHED}latest")
    aside.write_text(folder.name + "\n")
    flush(aside)
    aside.replace(latest)


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints, whole or not, by their step (the names sort otherwise from a million steps on)."""
    return sorted((path for path in folder.glob("step-*") if STEP.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def prune(folder: Path, keep: int, step: int, every: int | None = None) -> None:
    """Keep the last few checkpoints up to the one of ``step``, those of every so many steps and of the ends of stages.

    Later ones, of a run that was taken up again further back, do not count: they would push out the new one. What a
    killed run left unfinished goes.
    """
    for old in [path for path in step_folders(folder) if step_of(path) <= step][:-keep]:
        if not (every and step_of(old) % every == 0) and not ends_stage(old):
            shutil.rmtree(old)
    for rest in folder.glob(f"{UNFINISHED}step-*"):
        shutil.rmtree(rest)


def ends_stage(folder: Path) -> bool:
    """Return whether a checkpoint is the last one of its stage."""
    try:
        return bool(json.loads((folder / "state.json").read_text()).get(STAGE_END))
    except (OSError, ValueError):
        return False


def stage_ends(run_dir: Path) -> dict[int, Path]:
    """Return the checkpoint at the end of every finished stage, by the stage's index."""
    found = {}
    for path in step_folders(run_dir / "checkpoints"):
        if is_whole(path) and ends_stage(path):
            found[int(json.loads((path / "state.json").read_text())["stage"])] = path
    return found


def is_whole(folder: Path) -> bool:
    """Return whether every file that belongs to a checkpoint is there in its full size."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint of a run: the one that ``latest`` names, else the one with most steps.

    One that was moved out of the way stands in for the one of its step that never came.
    """
    folder = run_dir / "checkpoints"
    places = set(step_folders(folder))
    for moved in folder.glob(f"{UNFINISHED}step-*{REPLACED}"):
        places.add(folder / moved.name.removeprefix(UNFINISHED).removesuffix(REPLACED))
    newest_first = sorted(places, key=step_of, reverse=True)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        named = (folder / "latest").read_text().strip()
        if STEP.fullmatch(named):  # a path would lead out of this run
            newest_first.insert(0, folder / named)
    found = (path for place in newest_first for path in (place, replaced(place)) if is_whole(path))
    return next(found, None)


def load_checkpoint(path: Path, ema: bool = False) -> Checkpoint:
    """Read a checkpoint folder: plain tensors and JSON, nothing that could run code.

    Args:
        ema: take the moving averages in place of the trained tensors.

    Raises:
        UserError: when it is not a whole checkpoint, or holds no averages.
    """
    if not is_whole(path):
        raise UserError(f"{path} is not a whole checkpoint (a file is missing or cut short)")
    model = load_file(path / MODEL)
    if ema:
        if not (path / EMA).is_file():
            raise UserError(f"{path} holds no moving averages; set stages[].continual.ema to train with them")
        model |= load_file(path / EMA)
    return Checkpoint(
        path=path,
        model=model,
        state=json.loads((path / "state.json").read_text()),
        bases=json.loads((path / "bases.json").read_text()),
    )


class MomentFiles:
    """The moments of AdamW in a checkpoint, read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = {}
        for file in sorted(path.glob(f"{OPTIMIZER}-*.safetensors")):
            with safe_open(file, "pt") as stored:
                self.place.update(dict.fromkeys(stored.keys(), file))

    def get(self, name: str, moment: str) -> Tensor:
        """Return one moment of one parameter, on the CPU.

        Raises:
            UserError: when the checkpoint does not hold it.
        """
        key = f"{name}|{moment}"
        if key not in self.place:
            raise UserError(f"{self.path} holds no {moment} of {name}; start a new run from its weights")
        with safe_open(self.place[key], "pt") as stored:
            return stored.get_tensor(key)


def shared_out(sizes: Mapping[str, int], world: int) -> list[list[str]]:
    """Deal names out to ranks, the largest first, each to the rank that has least so far."""
    shares: list[list[str]] = [[] for _ in range(world)]
    loads = [0] * world
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += sizes[name]
    return shares


def check_bases(checkpoint: Checkpoint, bases: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse trained tensors on top of another encoder or decoder than they were trained with.

    Raises:
        UserError: naming both.
    """
    for part, saved in checkpoint.bases.items():
        now = bases.get(part, {})
        kinds: Sequence[str] = ("sha256",) if "sha256" in saved and "sha256" in now else ("path", "revision")
        if any(saved.get(kind) != now.get(kind) for kind in kinds):
            raise UserError(
                f"{checkpoint.path} was trained with the {part} {describe(saved)}, "
                f"but the config names {describe(now)}"
            )


def describe(base: Mapping[str, str]) -> str:
    return f"{base.get('path', 'nothing')} ({(base.get('sha256') or base.get('revision') or 'unknown')[:12]})"
