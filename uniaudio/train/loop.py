"""A run: its stages one after another, from the start or from a checkpoint."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from uniaudio.config.run import RunConfig
from uniaudio.distributed import barrier
from uniaudio.train.checkpoint.folders import STAGE_END, name_step_folder
from uniaudio.train.checkpoint.reading import Checkpoint, check_bases, load_checkpoint
from uniaudio.train.loggers import describe_end, describe_stop, print_finished_run
from uniaudio.train.protocols import Evaluator, Models, Steps, TrainingData
from uniaudio.train.resume import check_resume, is_at_cap, is_finished, print_changes
from uniaudio.train.resume_checkpoint import find_newest_checkpoint
from uniaudio.train.run_services import RunServices
from uniaudio.train.signals import CONTINUE_LATER, StopSignal
from uniaudio.train.stage_run import StageRun, open_steps
from uniaudio.train.stage_setup import FISHER, open_stage
from uniaudio.train.state import TrainState
from uniaudio.train.watchdog import HangWatch


def train_stages(
    models: Models,
    data: TrainingData,
    evaluator: Evaluator,
    config: RunConfig,
    accelerator: Accelerator,
    resume: bool,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[object] = (),
) -> int:
    """Train through all stages and return the exit code: 0 when finished, 75 when stopped and safe to continue.

    Nothing in the run folder changes before the model is in its engine and the data are those of the checkpoint.

    Args:
        resume: continue from a checkpoint. checkpoint: which one; default the newest whole one in ``output_dir``.
        callbacks: of the user, see ``user_callbacks.py``.

    Raises:
        UserError: for a checkpoint that does not fit or cannot be written, too many rows or steps left out.
    """
    run_dir = Path(config.output_dir)
    if resume:
        checkpoint = checkpoint or find_newest_checkpoint(run_dir)
        print_changes(check_resume(config, checkpoint), checkpoint.state["step"])
    position = find_start(config, checkpoint, models.bases)
    if checkpoint is not None and is_finished(position, config):
        print_finished_run(run_dir, accelerator.is_main_process, position.step)
        return 0
    if accelerator.is_main_process and not resume:  # of an earlier run that never came to a checkpoint
        shutil.rmtree(run_dir / FISHER, ignore_errors=True)
    barrier()
    with StopSignal() as stop, HangWatch(run_dir, config.train.hang_seconds) as watch, ExitStack() as stack:
        model = open_stage(models, data, config, accelerator, position, checkpoint)
        steps: Iterator[Steps] | None = open_steps(data, model, position)
        barrier()  # every rank has what it needs
        run = RunServices(models, data, evaluator, config, accelerator, stop, watch, position, callbacks)
        stack.callback(run.close)
        while True:
            stage = StageRun(run, model, position)
            stage.announce()
            finished = stage.train_to_end(steps)
            run.writer.wait()
            run.user.enter_stage(stage.stage.name, None)
            model.close()
            if not finished:
                run.tracker.log_event("stopped", step=position.step)
                run.tracker.say(describe_stop(run_dir, position.step))
                return CONTINUE_LATER
            if position.stage + 1 == len(config.stages) or is_at_cap(position, config):
                break
            del model, stage  # freed before the next stage builds its own
            steps = None
            gc.collect()
            barrier()
            checkpoint = load_checkpoint(name_step_folder(run_dir, position.step), verify=False)
            position = position.next_stage()
            model = open_stage(models, data, config, accelerator, position, checkpoint)
        run.tracker.log_event("finished", step=position.step)
        run.tracker.say(describe_end(config, position.step))
    return 0


def find_start(
    config: RunConfig, checkpoint: Checkpoint | None, bases: Mapping[str, Mapping[str, str]]
) -> TrainState:
    """Return where to begin: at the start, within the stage of a checkpoint, or in the stage after it."""
    if checkpoint is None:
        return TrainState()
    check_bases(checkpoint, bases)
    position = TrainState.from_state(checkpoint.state)
    more = position.stage + 1 < len(config.stages) and not is_at_cap(position, config)
    if checkpoint.state.get(STAGE_END) and more:
        return position.next_stage()
    return position
