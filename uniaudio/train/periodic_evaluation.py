"""What is measured between steps: evaluation sets, guarded sets, and the losses that move an adaptive mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import BalanceConfig
from uniaudio.distributed import gather_objects, is_main
from uniaudio.train.adaptive_mixture import AdaptiveMixture, move_mixture_weights
from uniaudio.train.engines.base import Engine
from uniaudio.train.loggers import Tracker
from uniaudio.train.protocols import Evaluator, TrainingData
from uniaudio.train.state import TrainState
from uniaudio.train.watchdog import HangWatch


@dataclass
class StepCallbacks:
    """Asks the model of a stage; every rank must make the same calls at the same points."""

    data: TrainingData
    evaluator: Evaluator
    config: RunConfig
    engine: Engine
    tracker: Tracker
    position: TrainState
    watch: HangWatch

    def run_with_plain_model(self, work: Callable[[nn.Module], Any]) -> Any:
        """Call with the model in eval mode: on the main process, or on all where no rank has it whole.

        The others wait. Returns the result of the main process on all ranks.
        """
        result = None
        if not self.engine.whole or is_main():
            self.engine.plain.eval()
            with self.engine.autocast():
                result = work(self.engine.plain)
            self.engine.plain.train()
        self.watch.rearm()
        return gather_objects(result)[0]

    def run_on_all(self, work: Callable[[nn.Module, bool], Any]) -> Any:
        """Call with the model in eval mode on every rank, and with whether they may share the work out.

        They may where each has the model whole; elsewhere all must run the same batches, for weights are put together
        by all. Returns the result of the main process on all ranks.
        """
        self.engine.plain.eval()
        with self.engine.autocast():
            result = work(self.engine.plain, self.engine.whole)
        self.engine.plain.train()
        self.watch.rearm()
        return gather_objects(result)[0]

    def evaluate(self) -> dict[str, Any]:
        """Let the model answer the evaluation sets, and return the results by set."""
        with self.tracker.show_waiting(f"evaluating at step {self.position.step}", plain=True):
            results, samples = self.run_on_all(self.evaluator.evaluate)
        self.tracker.log_evaluation(self.position.step, results, samples)
        return results

    def move_mixture(self, settings: BalanceConfig) -> None:
        """Measure the validation losses and move the mixture; the next round draws in its own order."""
        index = self.position.stage
        losses = self.run_on_all(
            lambda model, shared: self.evaluator.compute_validation_losses(
                index, model, settings.examples, shared
            )
        )
        balance = move_mixture_weights(
            AdaptiveMixture.from_json(self.position.balance),
            losses,
            self.data.list_entry_tasks(index),
            settings,
        )
        self.position.balance = balance.to_json()
        self.position.stream = None
        self.tracker.log_event("balance", step=self.position.step, **balance.to_json())


def check_guards(step: StepCallbacks, over: bool) -> bool:
    """Probe the guarded sets when it is time or the stage is ``over``; return whether the run must stop."""
    guard = step.config.guard
    if guard is None or (step.position.step % guard.every and not over):
        return False
    with step.tracker.show_waiting("probing the guarded sets", plain=True):
        broken = step.run_with_plain_model(step.evaluator.check_guard)
    for sentence in broken:
        step.tracker.warn(f"guard: {sentence}")
    step.tracker.log_event("guard", step=step.position.step, broken=broken)
    return bool(broken) and guard.action == "stop"
