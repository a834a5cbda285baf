"""Checkpoints: written aside, flushed, renamed; a folder under its final name is always whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError

COMPLETE = "complete.json"  # names and sizes of the other files; written last
UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. ``model`` holds the trained tensors only; ``bases`` names what they were trained on top of."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    bases: dict[str, dict[str, str]]


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    config: RunConfig,
    bases: Mapping[str, Mapping[str, str]],
) -> Path:
    """Write ``checkpoints/step-000123`` and move ``latest`` to it; then drop all but the last few.

    Raises:
        UserError: when the disk refuses; the previous checkpoint stays valid.
    """
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    replaced = folder.with_name(f"{UNFINISHED}{folder.name}-replaced")
    try:
        for rest in (unfinished, replaced):
            shutil.rmtree(rest, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in model.items()},
            unfinished / "model.safetensors",
        )
        torch.save(dict(optimizer), unfinished / "optimizer.pt")
        (unfinished / "state.json").write_text(json.dumps({"step": step, **state}, indent=2))
        (unfinished / "bases.json").write_text(json.dumps(bases, indent=2))
        config.save(unfinished / "config.yaml")
        sizes = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
        (unfinished / COMPLETE).write_text(json.dumps(sizes, indent=2))
        for file in unfinished.iterdir():
            flush(file)
        flush(unfinished)
        if folder.exists():  # moved, for removing it takes time in which there would be neither
            folder.rename(replaced)
        unfinished.rename(folder)
        flush(folder.parent)
        point_latest(folder)
    except (OSError, RuntimeError, SafetensorError) as problem:  # a full disk is each of them, by writer
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(
            f"checkpoint {folder} could not be written ({problem}); earlier ones are intact"
        ) from problem
    prune(folder.parent, config.train.keep_last, step)
    return folder


def point_latest(folder: Path) -> None:
    """Let ``latest``, a file with a folder's name, name this folder; replaced in one move."""
    latest = folder.parent / "latest"
    aside = latest.with_name(f"{UNFINISHED}latest")
    aside.write_text(folder.name + "\n")
    flush(aside)
    aside.replace(latest)


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints, whole or not, by their step (the names sort otherwise from a million steps on)."""
    return sorted(folder.glob("step-*"), key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def prune(folder: Path, keep: int, step: int) -> None:
    """Keep the last few checkpoints up to the one of ``step``, and remove what a killed run left unfinished.

    Later ones, of a run that was taken up again further back, do not count: they would push out the new one.
    """
    for old in [path for path in step_folders(folder) if step_of(path) <= step][:-keep]:
        shutil.rmtree(old)
    for rest in folder.glob(f"{UNFINISHED}step-*"):
        shutil.rmtree(rest)


def is_whole(folder: Path) -> bool:
    """Return whether every file that belongs to a checkpoint is there in its full size."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint of a run: the one that ``latest`` names, else the one with most steps."""
    folder = run_dir / "checkpoints"
    try:
        named = folder / (folder / "latest").read_text().strip()
        if is_whole(named):
            return named
    except OSError:
        pass
    whole = [path for path in step_folders(folder) if is_whole(path)]
    return whole[-1] if whole else None


def load_checkpoint(path: Path, with_optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint folder; nothing in it is unpickled beyond plain tensors and values.

    Raises:
        UserError: when it is not a whole checkpoint.
    """
    if not is_whole(path):
        raise UserError(f"{path} is not a whole checkpoint (a file is missing or cut short)")
    optimizer = (
        torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True) if with_optimizer else {}
    )
    return Checkpoint(
        path=path,
        model=load_file(path / "model.safetensors"),
        optimizer=optimizer,
        state=json.loads((path / "state.json").read_text()),
        bases=json.loads((path / "bases.json").read_text()),
    )


def check_bases(checkpoint: Checkpoint, bases: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse trained tensors on top of another encoder or decoder than they were trained with.

    Raises:
        UserError: naming both.
    """
    for part, saved in checkpoint.bases.items():
        now = bases.get(part, {})
        kinds = ("sha256",) if "sha256" in saved and "sha256" in now else ("path", "revision")
        if any(saved.get(kind) != now.get(kind) for kind in kinds):
            raise UserError(
                f"{checkpoint.path} was trained with the {part} {describe(saved)}, "
                f"but the config names {describe(now)}"
            )


def describe(base: Mapping[str, str]) -> str:
    return f"{base.get('path', 'nothing')} ({(base.get('sha256') or base.get('revision') or 'unknown')[:12]})"
