"""Checkpoints: written aside, flushed, verified, renamed; a folder under its final name is always whole.

Every tensor stands under its parameter's name, in full and in float32, whatever engine trained it. So any engine, on
any number of ranks, continues from any checkpoint. The moments of AdamW are shared out: each rank writes those of some
parameters.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError, convert_to_user_error, read_first_line
from uniaudio.outputs import apply_umask
from uniaudio.train.checkpoint.integrity import (
    BASES,
    COMPLETE,
    CONFIG,
    EMA,
    MODEL,
    OPTIMIZER,
    STATE,
    FileRecord,
    find_damage,
    write_listing,
)

UNFINISHED = ".unfinished-"
STAGE_END = "stage_done"  # in the state: the checkpoint is the last one of its stage
REPLACED = "-replaced"  # of a folder that makes way for another one of the same step
WRITTEN, PROBLEM = "written", "problem"  # keys of a rank's mark: the files it wrote, or why it could not
STEP = re.compile(r"step-\d{6,15}")  # what else somebody puts beside the checkpoints is left alone
LATEST = "latest"  # beside the checkpoints, a file with the name of the newest
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


def name_step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def name_unfinished_folder(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}")


def begin_checkpoint(run_dir: Path, step: int) -> None:
    """Make the folder that all ranks write to; what an earlier try left there goes, or comes back into its place.

    Raises:
        UserError: when the disk refuses.
    """
    folder = name_step_folder(run_dir, step)
    try:
        shutil.rmtree(name_unfinished_folder(folder), ignore_errors=True)
        if (
            name_replaced_folder(folder).exists() and not folder.exists()
        ):  # a kill came between the moves of finish_checkpoint
            name_replaced_folder(folder).rename(folder)
        shutil.rmtree(name_replaced_folder(folder), ignore_errors=True)
        name_unfinished_folder(folder).mkdir(parents=True)
    except OSError as problem:
        raise make_write_error(folder, problem) from problem


def write_share(run_dir: Path, snapshot: Snapshot, rank: int, world: int) -> None:
    """Write one rank's part of a checkpoint, flush it, and leave a mark beside it that it is there (or why not).

    Raises:
        UserError: when the disk refuses; the previous checkpoint stays valid.
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
    except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk is each of them, by writer
        try:
            name_mark(temporary, rank).write_text(json.dumps({PROBLEM: read_first_line(problem)}))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # the main rank sees that it is gone
        raise make_write_error(folder, problem) from problem


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


def name_replaced_folder(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}{REPLACED}")


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


def point_latest(folder: Path) -> None:
    """Let ``latest``, a file with a folder's name, name this folder; replaced in one move."""
    latest = folder.parent / LATEST
    temporary = latest.with_name(f"{UNFINISHED}{LATEST}")
    temporary.write_text(folder.name + "\n")
    flush(temporary)
    temporary.replace(latest)


def list_step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints, whole or not, by their step (the names sort otherwise from a million steps on)."""
    return sorted((path for path in folder.glob("step-*") if STEP.fullmatch(path.name)), key=parse_step)


def parse_step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def prune_checkpoints(folder: Path, keep: int, step: int, every: int | None = None) -> None:
    """Keep the last few whole checkpoints up to the one of ``step``, those of every so many steps and of stage ends.

    A damaged checkpoint counts as none of them, so that there are always ``keep`` to fall back on; it goes when they
    are all newer. Later ones, of a run that was taken up again further back, do not count: they would push out the
    new one. What a killed run left unfinished goes.
    """
    old = [path for path in list_step_folders(folder) if parse_step(path) <= step]
    whole = 0
    while whole < keep < whole + len(old):
        path = old.pop()
        # the one of this step was verified when it was written
        whole += not find_damage(path, checksums=parse_step(path) != step)
    for path in old if whole == keep else ():
        if not (every and parse_step(path) % every == 0) and not is_stage_end(path):
            shutil.rmtree(path)
    for rest in folder.glob(f"{UNFINISHED}step-*"):
        shutil.rmtree(rest)


def is_stage_end(folder: Path) -> bool:
    """Return whether a checkpoint is the last one of its stage."""
    try:
        state = json.loads((folder / STATE).read_text())
        return isinstance(state, dict) and bool(state.get(STAGE_END))
    except (OSError, ValueError, RecursionError):
        return False


def list_stage_ends(run_dir: Path) -> dict[int, Path]:
    """Return the checkpoint at the end of every finished stage, by the stage's index; damaged ones are left out."""
    return find_stage_ends(run_dir)[0]


def find_stage_ends(
    run_dir: Path, names: Collection[str] | None = (STATE,)
) -> tuple[dict[int, Path], list[str]]:
    """Return the checkpoint at the end of every finished stage by its index, and a sentence for each damaged one.

    A checkpoint whose state or list of files is damaged may have been the end of a stage, so it is named too.

    Args:
        names: files whose content is compared, the state among them; None for all of them.
    """
    ends: dict[int, Path] = {}
    complaints = []
    for path in list_step_folders(run_dir / "checkpoints"):
        if not find_damage(path, (STATE,)) and not is_stage_end(path):
            continue
        if damage := find_damage(path, names):
            complaints.append(f"checkpoint {path} is damaged ({damage}) and passed over")
        else:
            ends[int(json.loads((path / STATE).read_text())["stage"])] = path
    return ends, complaints


def is_complete(folder: Path) -> bool:
    """Return whether every file that belongs to a checkpoint is there in its full size; contents are not read."""
    return not find_damage(folder, checksums=False)


def list_places_by_preference(run_dir: Path) -> tuple[list[Path], str]:
    """Return where checkpoints of a run are or should be, the one to take first; and what is wrong with ``latest``.

    That is the one that ``latest`` names, then those before it, the newest first; those behind it, of a run that was
    taken up again further back, come last.
    """
    folder = run_dir / "checkpoints"
    places = set(list_step_folders(folder))
    for moved in folder.glob(f"{UNFINISHED}step-*{REPLACED}"):
        name = moved.name.removeprefix(UNFINISHED).removesuffix(REPLACED)
        if STEP.fullmatch(name):
            places.add(folder / name)
    newest_first = sorted(places, key=parse_step, reverse=True)
    try:
        named = (folder / LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return newest_first, ""
    except (OSError, UnicodeDecodeError) as problem:
        return newest_first, f"{folder / 'latest'} cannot be read ({read_first_line(problem)})"
    if not STEP.fullmatch(named):  # a path would lead out of this run
        return newest_first, f"{folder / 'latest'} names no checkpoint"
    last = parse_step(folder / named)
    problem_of_latest = (
        "" if folder / named in places else f"{folder / named}, which `latest` names, is missing"
    )
    return sorted(newest_first, key=lambda place: parse_step(place) > last), problem_of_latest


def resolve_latest(path: Path) -> Path:
    """Return the checkpoint that ``checkpoints/latest`` names; any other path as it is.

    Raises:
        UserError: when it names none.
    """
    if path.name != LATEST or not path.is_file():
        return path
    with convert_to_user_error(f"{path} cannot be read"):
        named = path.read_text(encoding="utf-8").strip()
    if not STEP.fullmatch(named):  # a path would lead out of this run
        raise UserError(f"{path} names no checkpoint; name a folder step-N beside it")
    return path.with_name(named)


def has_checkpoints(run_dir: Path) -> bool:
    """Return whether there are checkpoints in a run folder, be they damaged."""
    return bool(list_places_by_preference(run_dir)[0])


def choose_checkpoint(
    run_dir: Path,
    names: Collection[str] | None = None,
    find_other_damage: Callable[[Path], str] = lambda folder: "",
) -> tuple[Path | None, str]:
    """Return the newest checkpoint of a run whose contents match their checksums, and what to say of newer ones.

    Args:
        names: files that will be read; None for all of them.
        find_other_damage: returns why an undamaged checkpoint cannot be used either, or an empty text.
    """
    places, problem_of_latest = list_places_by_preference(run_dir)
    complaints = [problem_of_latest] if problem_of_latest else []
    for place in places:
        for path in (place, name_replaced_folder(place)):
            if not path.exists():
                continue
            damage = find_damage(path, names) or find_other_damage(path)
            if not damage:
                used = f"; {path.name} is used" if complaints else ""
                return path, "; ".join(complaints) + used
            complaints.append(f"checkpoint {path} is damaged ({damage})")
    return None, "; ".join(complaints)


def load_checkpoint(path: Path, ema: bool = False, verify: bool = True) -> Checkpoint:
    """Read a checkpoint folder: plain tensors and JSON, nothing that could run code.

    Args:
        ema: take the moving averages in place of the trained tensors.
        verify: compare what is read with its checksums; without, for a checkpoint that was compared just now.

    Raises:
        UserError: when it is not a whole checkpoint, is damaged, or holds no averages.
    """
    read = (MODEL, STATE, BASES, CONFIG, *((EMA,) if ema else ()))
    if damage := find_damage(path, read, checksums=verify):
        raise UserError(f"{path} is not a whole checkpoint ({damage}); take another one, or copy it again")
    if ema and not (path / EMA).is_file():
        raise UserError(f"{path} holds no moving averages; set stages[].continual.ema to train with them")
    with convert_to_user_error(f"checkpoint {path} cannot be read"):
        model = load_file(path / MODEL)
        if ema:
            model |= load_file(path / EMA)
        state, bases = (json.loads((path / name).read_text()) for name in (STATE, BASES))
        return Checkpoint(path=path, model=model, state=dict(state), bases=dict(bases))


class MomentFiles:
    """The moments of AdamW in a checkpoint, read tensor by tensor.

    Raises:
        UserError: when a file of them cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = {}
        with convert_to_user_error(f"checkpoint {path} cannot be read"):
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


def distribute_tensors(sizes: Mapping[str, int], world: int) -> list[list[str]]:
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
                f"{checkpoint.path} was trained with the {part} {describe_weights(saved)}, "
                f"but the config names {describe_weights(now)}"
            )


def describe_weights(base: Mapping[str, str]) -> str:
    return f"{base.get('path', 'nothing')} ({(base.get('sha256') or base.get('revision') or 'unknown')[:12]})"
