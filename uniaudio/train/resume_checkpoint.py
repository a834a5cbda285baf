"""The checkpoint from which a run goes on: the newest undamaged one, the same on all ranks."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection
from pathlib import Path

from uniaudio.console import make_console
from uniaudio.distributed import gather_objects, is_main
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.folders import choose_checkpoint, list_stage_ends
from uniaudio.train.checkpoint.integrity import STATE, find_damage
from uniaudio.train.checkpoint.reading import Checkpoint, load_checkpoint


def find_newest_checkpoint(run_dir: Path, remembered: Collection[int] = ()) -> Checkpoint:
    """Read the newest checkpoint of a run whose files all match their checksums; say so where newer ones do not.

    The main rank chooses, so that all read the same one; every rank must call it at the same point.

    Args:
        remembered: stages that measure distances from the checkpoint at the end of the stage before.

    Raises:
        UserError: on all ranks, when there is none, or a rank cannot read it.
    """
    choice: tuple[Path | None, str] = (None, "")
    if is_main():
        choice = choose_checkpoint(
            run_dir, find_other_damage=lambda path: find_damage_of_stage_start(run_dir, path, remembered)
        )
    path, complaint = gather_objects(choice)[0]
    if path is None and complaint:
        raise UserError(
            f"--resume: {run_dir} holds no checkpoint that can be used: {complaint}; start a new run in another "
            "output_dir"
        )
    if path is None:
        raise UserError(f"--resume: {run_dir} holds no whole checkpoint; leave --resume out to start")
    if complaint and is_main():
        make_console().print(complaint, style="yellow", soft_wrap=True)
    checkpoint, problem = None, ""
    try:
        checkpoint = load_checkpoint(path, verify=False)
    except UserError as mistake:
        problem = str(mistake)
        if not path.is_dir():  # the machines do not share the run folder
            problem = f"--resume: {socket.gethostname()} does not see {path}; copy the run folder there"
    if problems := [text for text in gather_objects(problem) if text]:
        raise UserError(problems[0])
    assert checkpoint is not None
    return checkpoint


def find_damage_of_stage_start(run_dir: Path, path: Path, remembered: Collection[int]) -> str:
    """Return what is wrong with the checkpoint that the stage of another one began with, where that is needed."""
    stage = json.loads((path / STATE).read_text())["stage"]
    if stage not in remembered:
        return ""
    start = list_stage_ends(run_dir).get(stage - 1)
    if start is None:
        return f"the checkpoint at the end of stage {stage - 1} is gone or damaged, and `continual` needs it"
    damage = find_damage(start)
    return f"the stage began with {start.name}, of which {damage}" if damage else ""
