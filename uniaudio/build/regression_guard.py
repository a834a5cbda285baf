"""The regression guard: sets that are probed where a run begins and again while it goes, and which of them fell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import GuardConfig
from uniaudio.console import make_console
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.evaluate.forgetting import POINTS
from uniaudio.evaluate.probing.held_probes import HeldScores, probe_held
from uniaudio.evaluate.probing.labelled_folder import hold_folders, read_folders
from uniaudio.evaluate.probing.task_rows import TaskRows, read_task
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.outputs import is_main_rank, write_json

SETS = "guard.sets"  # the key, for messages
REFERENCE = "guard.json"  # in the run folder: the scores where the run began
SEEDS = 3


def read_guarded_sets(config: RunConfig) -> list[TaskRows]:
    """Read the guarded sets of a run; the main process says which of them, and of their rows, are left out.

    Raises:
        UserError: when one is no labelled folder, or none has rows and classes enough.
    """
    if config.guard is None:
        return []
    return hold_folders(list_set_folders(config.guard), print_note, SETS)


def check_guarded_sets(config: RunConfig, note: Callable[[str], None]) -> None:
    """Read the rows of the guarded sets of a run, without their clips.

    Args:
        note: is given a sentence about sets that a run leaves out.

    Raises:
        UserError: see ``read_guarded_sets``.
    """
    if config.guard is not None:
        read_folders(list_set_folders(config.guard), read_task, lambda text: note(f"guard: {text}"), SETS)


def list_set_folders(settings: GuardConfig) -> dict[str, Path]:
    """Return the folders of the guarded sets by name."""
    return {name: Path(folder) for name, folder in settings.sets.items()}


def print_note(sentence: str) -> None:
    """Print what a user must know of the guarded sets before a run begins."""
    make_console(stderr=True, quiet=not is_main_rank()).print(f"guard: {sentence}", soft_wrap=True)


def list_accuracies(measured: HeldScores, settings: GuardConfig) -> dict[str, float]:
    """Return the accuracy of every guarded set that has a score."""
    return {name: probes[settings.probe]["mean"] for name, probes in measured.scores.items()}


def measure_reference(encoder: AudioEncoder, sets: list[TaskRows], settings: GuardConfig) -> dict[str, Any]:
    """Return what is stored of the encoder that a run starts from: the probe, the scores of the guarded sets, and the
    sets without a score, which are not guarded. What was left out is printed.

    Raises:
        UserError: when no set has a score.
    """
    measured = probe_held(encoder, sets, SEEDS, (settings.probe,))
    unscored = [f"{name} cannot be scored: {reason}" for name, reason in measured.unscored.items()]
    if not measured.scores:
        raise UserError(f"guard: {'; '.join(unscored)}")
    for sentence in (*measured.notes, *(f"{one}; the set is not guarded" for one in unscored)):
        print_note(sentence)
    left_out = [name for name in settings.sets if name not in measured.scores]
    reference = {"probe": settings.probe, "scores": list_accuracies(measured, settings)}
    return reference | ({"left_out": left_out} if left_out else {})


def write_reference(reference: Mapping[str, Any], run_dir: Path) -> None:
    """Store what ``measure_reference`` returned."""
    write_json(run_dir / REFERENCE, reference)


def read_reference(settings: GuardConfig, run_dir: Path) -> dict[str, float]:
    """Return the scores of the guarded sets where the run began; those that were left out have none.

    Raises:
        UserError: when they are missing, cannot be read, are of another probe, or lack a guarded set.
    """
    path = run_dir / REFERENCE
    if not path.is_file():
        raise UserError(f"{path} is missing, but a guard must exist from the start of a run")
    fix = "restore it from a copy, leave `guard` out, or start a new run"
    with convert_to_user_error(f"{path} cannot be read", fix):
        reference = json.loads(path.read_text(encoding="utf-8"))
    match reference:
        case {"probe": str(probe), "scores": dict(scores)} if all(
            map(is_score, scores.values())
        ) and isinstance(reference.get("left_out", []), list):
            left_out: list[str] = reference.get("left_out", [])
        case _:
            raise UserError(
                f"{path} must contain the name of a probe and, for each set, a score from 0 to 1; {fix}"
            )
    if probe != settings.probe:
        raise UserError(f"guard.probe is {settings.probe}, but the run began with {probe}")
    if missing := [name for name in settings.sets if name not in scores and name not in left_out]:
        raise UserError(
            f"guard.sets.{missing[0]}: the run began without it, so {path} has no score for it; leave it out"
        )
    return scores


def is_score(value: object) -> bool:
    """Return whether a value is an accuracy, 0 to 1; a NaN is none."""
    return isinstance(value, int | float) and 0 <= value <= 1


def describe_guard_drops(
    encoder: AudioEncoder, sets: list[TaskRows], settings: GuardConfig, run_dir: Path
) -> tuple[list[str], list[str]]:
    """Probe the guarded sets that had a score where the run began.

    Returns:
        A sentence for each set that lost more than the guard allows since then, or cannot be scored any more, and
        sentences about clips that were left out.

    Raises:
        UserError: as ``read_reference``.
    """
    reference = read_reference(settings, run_dir)
    compared = [rows for rows in sets if rows.name in reference]
    measured = probe_held(encoder, compared, SEEDS, (settings.probe,))
    now = list_accuracies(measured, settings)
    known = {name: reference[name] for name in now}
    broken = [f"{name} cannot be scored: {reason}" for name, reason in measured.unscored.items()]
    return [*broken, *find_broken_guards(known, now, settings.max_drop)], measured.notes


def find_broken_guards(
    reference: Mapping[str, float], now: Mapping[str, float], max_drop: float
) -> list[str]:
    """Tell which sets fell by more than they may; a score that is not a number has fallen.

    Args:
        reference: score of each guarded set at the start, 0 to 1.
        now: score of each set now, 0 to 1; sets without a reference are skipped.
        max_drop: points (0.01) that a score may fall; a fall by exactly as much is allowed.

    Returns:
        One sentence for each such set, in the order of ``reference``.

    Raises:
        ValueError: when ``max_drop`` is below 0, or a guarded set has no score now.
    """
    if not max_drop >= 0:
        raise ValueError(f"max_drop is {max_drop}; give how many points a score may drop, 0 or more")
    missing = [name for name in reference if name not in now]
    if missing:
        raise ValueError(f"guarded sets without a score now: {', '.join(missing)}")
    allowed = f"{max_drop:g} point" + ("" if max_drop == 1 else "s")
    return [
        f"{name} fell from {before:.3f} to {now[name]:.3f}, more than {allowed} below its score at the start"
        for name, before in reference.items()
        if not (before - now[name]) * POINTS <= max_drop + 1e-9  # a nan must not pass
    ]
