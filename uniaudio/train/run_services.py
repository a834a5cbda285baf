"""What serves a run from its first step to its last: metrics, checkpoints, counts of skipped rows, callbacks."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from uniaudio.config.run import RunConfig
from uniaudio.data.skipped_rows import SkipLedger
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.train.checkpoint.background_writer import CheckpointWriter, find_writers
from uniaudio.train.checkpoint.folders import name_step_folder
from uniaudio.train.loggers import Tracker
from uniaudio.train.profile import StepProfile
from uniaudio.train.protocols import Evaluator, Models, TrainingData
from uniaudio.train.signals import StopSignal
from uniaudio.train.state import TrainState
from uniaudio.train.user_callbacks import UserCallbacks
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
        writers, blind = find_writers(run_dir)
        if blind:
            self.tracker.warn(describe_unshared_folder(config, blind))
        self.writer = CheckpointWriter(run_dir, config, models.bases, self.report_saved, writers)
        self.profile = StepProfile(config.train.profile and main, run_dir, self.tracker)

    def report_saved(self, step: int, facts: Mapping[str, Any]) -> None:
        """Note in the metrics that a checkpoint is whole, and call the callbacks."""
        self.tracker.log_event("saved", step=step, **facts)
        folder = name_step_folder(Path(self.config.output_dir), step)
        self.user.call("on_save", step, {"checkpoint": folder})

    def close(self) -> None:
        """Let what is being written come to its end, however the run ends."""
        self.writer.finish()
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
