"""The checkpoint folders of a run: their names, which of them is the newest whole one, and which are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from uniaudio.errors import UserError, convert_to_user_error, read_first_line
from uniaudio.run_records import STEP, list_step_folders, parse_step
from uniaudio.train.checkpoint.integrity import STATE, find_damage

UNFINISHED = ".unfinished-"
REPLACED = "-replaced"  # of a folder that makes way for another one of the same step
STAGE_END = "stage_done"  # in the state: the checkpoint is the last one of its stage
LATEST = "latest"  # beside the checkpoints, a file with the name of the newest


def name_step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def name_unfinished_folder(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}")


def name_replaced_folder(folder: Path) -> Path:
    return folder.with_name(f"{UNFINISHED}{folder.name}{REPLACED}")


def is_complete(folder: Path) -> bool:
    """Return whether every file that belongs to a checkpoint is there in its full size; contents are not read."""
    return not find_damage(folder, checksums=False)


def is_stage_end(folder: Path) -> bool:
    """Return whether a checkpoint is the last one of its stage."""
    try:
        state = json.loads((folder / STATE).read_text())
        return isinstance(state, dict) and bool(state.get(STAGE_END))
    except (OSError, ValueError, RecursionError):
        return False


def find_stage_ends(run_dir: Path, names: Collection[str] | None = None) -> tuple[dict[int, Path], list[str]]:
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
            complaints.append(f"checkpoint {path} is damaged ({damage}) and skipped")
        else:
            ends[int(json.loads((path / STATE).read_text())["stage"])] = path
    return ends, complaints


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
    except (FileNotFoundError, NotADirectoryError):
        return newest_first, ""
    except (OSError, UnicodeDecodeError) as problem:
        return newest_first, f"{folder / 'latest'} cannot be read ({read_first_line(problem)})"
    if not STEP.fullmatch(named):  # a path would lead out of this run
        return newest_first, f"{folder / 'latest'} names no checkpoint"
    last = parse_step(folder / named)
    problem_of_latest = "" if folder / named in places else f"{folder / named}, named by `latest`, is missing"
    return sorted(newest_first, key=lambda place: parse_step(place) > last), problem_of_latest


def has_checkpoints(run_dir: Path) -> bool:
    """Return whether there are checkpoints in a run folder, be they damaged."""
    return bool(list_places_by_preference(run_dir)[0])


def refuse_begun_run(run_dir: Path, resume: str | None) -> bool:
    """Return whether there is a run in the output folder; refuse to start another one on top of it.

    Args:
        resume: None starts a run, all else may go on with one.

    Raises:
        UserError: when there is one and nobody said that it is to go on.
    """
    begun = has_checkpoints(run_dir)
    if resume is None and begun:
        raise UserError(
            f"{run_dir} already holds a run: continue it with --resume, or set another output_dir"
        )
    return begun


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
        raise UserError(f"{path} names no checkpoint; name a folder step-N next to it")
    return path.with_name(named)


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point_latest(folder: Path) -> None:
    """Let ``latest``, a file with a folder's name, name this folder; replaced in one move."""
    latest = folder.parent / LATEST
    temporary = latest.with_name(f"{UNFINISHED}{LATEST}")
    temporary.write_text(folder.name + "\n")
    flush(temporary)
    temporary.replace(latest)


def prune_checkpoints(folder: Path, keep: int, step: int, every: int | None = None) -> None:
    """Keep the last few whole checkpoints up to the one of ``step``, those of every so many steps and of stage ends.

    A damaged checkpoint counts as none of them, so that there are always ``keep`` to fall back on; it goes when they
    are all newer. Later ones, of a run that was taken up again further back, do not count: they would push out the
    new one. What a killed run left unfinished goes. What cannot be removed, for somebody reads it over NFS, goes the
    next time: the new checkpoint is whole.
    """
    old = [path for path in list_step_folders(folder) if parse_step(path) <= step]
    whole = 0
    while whole < keep < whole + len(old):
        path = old.pop()
        # the one of this step was verified when it was written
        whole += not find_damage(path, checksums=parse_step(path) != step)
    for path in old if whole == keep else ():
        if not (every and parse_step(path) % every == 0) and not is_stage_end(path):
            shutil.rmtree(path, ignore_errors=True)
    for rest in folder.glob(f"{UNFINISHED}step-*"):
        shutil.rmtree(rest, ignore_errors=True)
