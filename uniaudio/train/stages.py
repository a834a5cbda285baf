"""A run: its stages one after another, from the start or a checkpoint, and what serves it from first step to last."""

from __future__ import annotations

import gc
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from uniaudio.config.run import RunConfig
from uniaudio.data.loader import StepBatch
from uniaudio.data.skipped_rows import SkipLedger
from uniaudio.distributed import barrier, gather_objects
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.train.callbacks import UserCallbacks
from uniaudio.train.checkpoint.background_writer import CheckpointWriter, find_writers
from uniaudio.train.checkpoint.folders import STAGE_END, name_step_folder
from uniaudio.train.checkpoint.reading import Checkpoint, check_bases, load_checkpoint
from uniaudio.train.loggers import Tracker, describe_end, describe_stop
from uniaudio.train.loop import StageRun, open_steps
from uniaudio.train.profile import StepProfile
from uniaudio.train.protocols import Evaluator, Models, TrainingData
from uniaudio.train.signals import CONTINUE_LATER, StopSignal
from uniaudio.train.stage_setup import open_stage
from uniaudio.train.state import TrainState
from uniaudio.train.watchdog import HangWatch


class RunServices:
    """What serves a run from its first step to its last, whatever the stage; opening it writes the run's beginning.

    Args:
        position: where the run begins or goes on.

    Raises:
        UserError: when the run folder cannot be written.
    """

    def __init__(
        self,
        models: Models,
        data: TrainingData,
        evaluator: Evaluator,
        config: RunConfig,
        accelerator: Accelerator,
        stop: StopSignal,
        watch: HangWatch,
        position: TrainState,
        callbacks: Sequence[object] = (),
    ) -> None:
        self.models, self.data, self.evaluator = models, data, evaluator
        self.config, self.accelerator, self.stop, self.watch = config, accelerator, stop, watch
        run_dir, main = Path(config.output_dir), accelerator.is_main_process
        self.user = UserCallbacks(callbacks, run_dir, main, stop.request)
        if main:
            with convert_to_user_error(f"output_dir: {run_dir} cannot be written", "set another output_dir"):
                models.write_start()
                config.save(run_dir / "config.yaml")
        self.tracker = Tracker(run_dir, main, position.step, config.total_steps, config)
        # the ledgers of all ranks are added up, so only one goes on from the checkpoint's
        counts = [position.skips] if position.skips and main else []
        self.ledger = SkipLedger(config.data.max_skipped_share, *counts)
        self.known_shards = SkipLedger(self.ledger.allowed, *counts)  # broken ones, on the console
        writers, blind = find_writers(run_dir)
        if blind:
            self.tracker.warn(describe_unshared_folder(config, blind))
        self.writer = CheckpointWriter(run_dir, config, models.bases, self.report_saved, writers)
        self.profile = StepProfile(config.train.profile and main, run_dir, self.tracker)

    def count_left_out(self, step: StepBatch, number: int, any_rank: bool) -> None:
        """Count and report the rows that the data of a step left out.

        Args:
            number: of the step. any_rank: whether a row was left out on any rank.

        Raises:
            UserError: on all ranks together, when they are too many.
        """
        for skip in self.ledger.find_first_skips(step.skips):
            self.tracker.warn(skip.sentence)
        for notice in self.ledger.add(step.drawn, step.skips, step.notices):
            self.tracker.warn(notice.sentence)
            self.tracker.log_event("notice", step=number, **asdict(notice))
        self.tracker.write_skips(number, step.skips)
        if any_rank:
            of_all = self.sum_ledgers()
            for sentence in of_all.report_new_shards(self.known_shards):
                self.tracker.warn(sentence)
            if complaint := of_all.explain_problem():
                raise UserError(complaint)

    def report_skips_of_start(self, number: int) -> None:
        """List the rows that were left out of what a stage measures or fits before its first step.

        They do not count towards ``data.max_skipped_share``, which is about the rows that are trained on.

        Args:
            number: of the stage's first step, so that a run that begins the stage again lists them once.
        """
        skips = self.data.take_skips()
        if self.accelerator.is_main_process:  # every rank has read the same rows
            for skip in SkipLedger(1.0).find_first_skips(skips):
                self.tracker.warn(skip.sentence)
            self.tracker.write_skips(number, skips)

    def sum_ledgers(self) -> SkipLedger:
        """Return the sum of the ledgers of all ranks; every rank must call it at the same point."""
        return SkipLedger(self.ledger.allowed, *gather_objects(self.ledger.counts()))

    def report_saved(self, step: int, facts: Mapping[str, Any]) -> None:
        """Note in the metrics that a checkpoint is whole, and call the callbacks."""
        self.tracker.log_event("saved", step=step, **facts)
        folder = name_step_folder(Path(self.config.output_dir), step)
        self.user.call("on_save", step, {"checkpoint": folder})

    def close(self) -> None:
        """Let what is being written come to its end, however the run ends."""
        self.writer.finish()
        self.profile.close()
        self.tracker.close()


def describe_unshared_folder(config: RunConfig, hosts: Sequence[str]) -> str:
    """Return what the user has to do where machines do not share the run folder.

    Raises:
        UserError: when later stages would begin from a checkpoint that those machines do not see.
    """
    where = f"output_dir: {', '.join(hosts)} does not see {config.output_dir} of {socket.gethostname()}"
    if len(config.stages) > 1:
        raise UserError(
            f"{where}, but each stage begins from the last checkpoint of the one before; put output_dir on storage "
            "that all machines share"
        )
    return (
        f"{where}, so checkpoints are written there alone; before --resume copy that folder to the same place on "
        "every machine"
    )


def train_stages(
    models: Models,
    data: TrainingData,
    evaluator: Evaluator,
    config: RunConfig,
    accelerator: Accelerator,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[object] = (),
) -> int:
    """Train through all stages and return the exit code: 0 when finished, 75 when stopped and safe to continue.

    Nothing in the run folder changes before the model is in its engine and the data are those of the checkpoint.

    Args:
        checkpoint: where to go on, with a step left to do; None: a new run. callbacks: of the user, see
            ``callbacks.py``.

    Raises:
        UserError: for a checkpoint that does not fit or cannot be written, too many rows or steps left out.
    """
    run_dir = Path(config.output_dir)
    position = find_start(config, checkpoint, models.bases)
    with StopSignal() as stop, HangWatch(run_dir, config.train.hang_seconds) as watch, ExitStack() as stack:
        model = open_stage(models, data, config, accelerator, position, checkpoint)
        steps: Generator[StepBatch, None, None] | None = open_steps(data, model, position)
        barrier()  # every rank has what it needs
        run = RunServices(models, data, evaluator, config, accelerator, stop, watch, position, callbacks)
        stack.callback(run.close)
        while True:
            run.report_skips_of_start(position.step + 1)
            stage = StageRun(run, model, position)
            stage.announce()
            is_finished = stage.train_to_end(steps)
            run.writer.wait()
            run.user.enter_stage(stage.stage.name, None)
            model.close()
            if not is_finished:
                run.tracker.log_event("stopped", step=position.step)
                run.tracker.say(describe_stop(run_dir, position.step))
                return CONTINUE_LATER
            if position.stage + 1 == len(config.stages) or position.is_at_cap(config):
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
    more = position.stage + 1 < len(config.stages) and not position.is_at_cap(config)
    if checkpoint.state.get(STAGE_END) and more:
        return position.next_stage()
    return position
