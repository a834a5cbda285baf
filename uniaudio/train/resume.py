"""What may differ from the config of a checkpoint when its run goes on, and whether anything is left to do.

This is the one place that says so; ``docs/distributed.md`` has the same lists for users.
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run
from uniaudio.console import print_warning
from uniaudio.distributed import gather_objects, is_main, raise_together
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.folders import choose_checkpoint, name_step_folder
from uniaudio.train.checkpoint.integrity import STATE, find_damage
from uniaudio.train.checkpoint.reading import Checkpoint, load_checkpoint
from uniaudio.train.state import TrainState
from uniaudio.units import SECONDS_PER_HOUR

SHOWN = 60  # characters of a value in a sentence


class Effect(IntEnum):
    """What a changed setting does to a run that goes on."""

    NONE = 0  # the same examples, the same weights
    FROM_HERE_ON = 1  # other weights from here on: allowed, and printed
    REFUSED = 2  # it does not fit what was trained, or would be ignored in silence


# Paths and revisions of weights are not compared here: `check_bases` compares what they lead to. Nor are recipes,
# whose data are compared by fingerprint.
WITHOUT_EFFECT = (
    r"output_dir",
    r"data\.(workers|prefetch|patience|max_outage|max_skipped_share|log_ids)",
    r"train\.(max_steps|log_every|save_every|keep_last|keep_every|max_bad_steps|memory_gib|compile|hang_seconds|profile"
    r"|callbacks|evaluate_every|tensorboard|trackers|project|run_name|tags|label_chunk)",
    r"evaluate(\..*)?",
    r"guard(\..*)?",  # compared with what the run stored of its beginning
    r"encoders\.[^.]+\.(path|revision|cache|recompute|trust_remote_code)",
    r"decoder\.(path|revision|recompute|trust_remote_code|attention|miniature\.extra_texts)",
    r"stages\.\d+\.recipe",
)
WITH_EFFECT_FROM_HERE_ON = (
    r"(encoders\.[^.]+|fusion|adapter|decoder)\.lr",
    r"(encoders\.[^.]+|decoder)\.lora\.dropout",
    r"decoder\.dtype",
    r"train\.(clip|weight_decay|betas|max_loss_ratio|precision)",
    r"stages\.\d+\.(steps|hours|warmup|schedule|final_lr_share|lr|layer_decay|balance)(\..*)?",
    r"stages\.\d+\.continual\.(l2sp|ema|distill)(\..*)?",
    r"stages\.\d+\.continual\.ewc(\.(weight|on))?",
)


@dataclass(frozen=True)
class SettingChange:
    """One setting that is not as it was when a checkpoint was written."""

    key: str
    before: Any
    now: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.key}: {show_value(self.before)} -> {show_value(self.now)}"


def show_value(value: Any) -> str:
    """Return a setting's value as YAML has it, cut to the length of a sentence."""
    text = json.dumps(value, ensure_ascii=False).strip('"')
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def check_resume(config: RunConfig, checkpoint: Checkpoint) -> list[SettingChange]:
    """Compare a config with that of the checkpoint which it is to continue; nothing is written.

    Returns:
        The changes that give other weights from here on.

    Raises:
        UserError: for settings that cannot change any more, each from what to what.
    """
    saved = load_run(checkpoint.path / "config.yaml")
    position = TrainState.from_state(checkpoint.state)
    if position.stage >= len(config.stages):
        raise UserError(
            f"{checkpoint.path} belongs to stage {position.stage}, but the config has "
            f"{len(config.stages)} stages"
        )
    changes = compare_configs(saved, config, position)
    refused = [change for change in changes if change.effect is Effect.REFUSED]
    if refused:
        raise UserError(
            f"{checkpoint.path} was trained with other settings: {'; '.join(map(str, refused))}; "
            "continue it with the same settings, or start a new run in another output_dir "
            "(encoders.NAME.path may name this run)"
        )
    if changes and is_finished(position, config):
        raise UserError(explain_finished_run(config, checkpoint, changes))
    return changes


def explain_finished_run(config: RunConfig, checkpoint: Checkpoint, changes: Sequence[SettingChange]) -> str:
    """Return why no step is left to do after a checkpoint, though settings have changed, and what to raise."""
    position, last = TrainState.from_state(checkpoint.state), len(config.stages) - 1
    stage = config.stages[last]
    length = f"stages.{last}.{'hours' if stage.steps is None else 'steps'}"
    ends = [length] if position.stage == last and position.has_finished(stage) else []
    ends += ["train.max_steps"] if position.is_at_cap(config) else []
    listed = "; ".join(map(str, changes))
    why = f"{checkpoint.path} is the end of a finished run, so these settings would have no effect: {listed}"
    if length in ends and any(change.key == length for change in changes):  # lowered to what is done
        why = (
            f"nothing is left to do: with {listed}, the run is finished at step {position.step}, which is done "
            f"({checkpoint.path})"
        )
    return f"{why}; raise {' and '.join(ends)} to continue, or restore the settings"


def compare_configs(saved: RunConfig, config: RunConfig, position: TrainState) -> list[SettingChange]:
    """Return what differs between two configs of a run whose checkpoint is at ``position`` and has an effect on it.

    Stages that have not begun may be anything.
    """
    changes = [
        SettingChange(key, before, now, describe_effect(key, before, now, position))
        for key, before, now in find_differences(saved.resolve_values(), config.resolve_values())
        if find_stage(key, position.stage) <= position.stage
    ]
    if has_other_decay(saved, config, position):
        caps = (saved.train.max_steps, config.train.max_steps)
        changes.append(SettingChange("train.max_steps", *caps, Effect.FROM_HERE_ON))
    return [change for change in changes if change.effect is not Effect.NONE]


def has_other_decay(saved: RunConfig, config: RunConfig, position: TrainState) -> bool:
    """Return whether ``train.max_steps`` ends the stage elsewhere than before, and its rates decay towards the end."""
    stage, begin = config.stages[position.stage], position.stage_start
    if stage.schedule == "constant" or is_finished(position, config):
        return False
    caps = [each.train.max_steps or math.inf for each in (saved, config)]
    before, now = (min(cap - begin, stage.steps or math.inf) for cap in caps)
    return before != now


def find_differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, value before, value now) of what differs; a record that came or went is one difference."""
    if isinstance(before, list) and isinstance(now, list) and all(isinstance(v, dict) for v in before + now):
        before, now = ({str(index): value for index, value in enumerate(values)} for values in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from find_differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now


def find_stage(key: str, otherwise: int) -> int:
    """Return the number of the stage that a key is of; ``otherwise`` for a key of none."""
    of_stage = re.match(r"stages\.(\d+)", key)
    return otherwise if of_stage is None else int(of_stage[1])


def describe_effect(key: str, before: Any, now: Any, position: TrainState) -> Effect:
    """Return what a changed setting does to a run whose checkpoint is at ``position``."""
    if key == "train.micro_batches" and None in (before, now):
        return Effect.NONE  # null is the number of processes, which the data's fingerprint holds
    if key.endswith(".ewc.recipe") and before and now and Path(before).stem == Path(now).stem:
        return Effect.NONE  # the folder was moved
    if any(re.fullmatch(pattern, key) for pattern in WITHOUT_EFFECT):
        return Effect.NONE
    if find_stage(key, position.stage) < position.stage:
        return Effect.REFUSED
    done = {"steps": position.stage_step, "hours": position.stage_seconds / SECONDS_PER_HOUR}
    length = re.fullmatch(r"stages\.\d+\.(steps|hours)", key)
    if length is not None and now is not None and now < done[length[1]]:
        return Effect.REFUSED
    if any(re.fullmatch(pattern, key) for pattern in WITH_EFFECT_FROM_HERE_ON):
        return Effect.FROM_HERE_ON
    return Effect.REFUSED


def is_finished(position: TrainState, config: RunConfig) -> bool:
    """Return whether a run whose newest checkpoint is at ``position`` has no step left to do."""
    is_last = position.stage + 1 == len(config.stages)
    return position.is_at_cap(config) or (is_last and position.has_finished(config.stages[position.stage]))


def print_changes(changes: Sequence[SettingChange], step: int) -> None:
    """Say on the main process which settings are others from a step on."""
    for change in changes if is_main() else ():
        print_warning(f"from step {step + 1} on with another setting: {change}")


def find_newest_checkpoint(run_dir: Path, remembered: Collection[int] = ()) -> Checkpoint:
    """Read the newest checkpoint of a run whose files all match their checksums; say so where newer ones do not.

    The main rank chooses, so that all read the same one; every rank must call it at the same point.

    Args:
        remembered: stages that measure distances from the weights they began with; a later one than the first needs
            the checkpoint at the end of the stage before.

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
        raise UserError(f"--resume: {run_dir} holds no complete checkpoint; leave --resume out to start")
    if complaint and is_main():
        print_warning(complaint)
    checkpoint, problem = None, ""
    try:
        checkpoint = load_checkpoint(path, verify=False)
    except UserError as mistake:
        problem = str(mistake)
        if not path.is_dir():  # the machines do not share the run folder
            problem = f"--resume: {socket.gethostname()} does not see {path}; copy the run folder there"
    raise_together(problem)
    assert checkpoint is not None
    return checkpoint


def find_damage_of_stage_start(run_dir: Path, path: Path, remembered: Collection[int]) -> str:
    """Return what is wrong with the checkpoint that the stage of another one began with, where that is needed."""
    state = json.loads((path / STATE).read_text())
    if not state["stage"] or state["stage"] not in remembered:  # the first stage begins with no checkpoint
        return ""
    start = name_step_folder(run_dir, TrainState.from_state(state).stage_start)
    damage = find_damage(start)
    return f"`continual` needs {start.name}, where the stage began, but {damage}" if damage else ""
