"""What is measured between steps: evaluation sets, guarded sets, and the losses that move an adaptive mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from uniaudio.config.stages import BalanceConfig
from uniaudio.distributed import gather_objects, is_main
from uniaudio.errors import escape_text
from uniaudio.train.adaptive_mixture import AdaptiveMixture, move_mixture_weights
from uniaudio.train.engines.base import Engine
from uniaudio.train.state import TrainState

if TYPE_CHECKING:  # the stages of these lead here
    from uniaudio.train.stages import RunServices


@dataclass
class PeriodicEvaluation:
    """Evaluates the model of a stage; every rank must make the same calls at the same points."""

    run: RunServices
    engine: Engine
    position: TrainState

    def run_in_eval_mode(self, work: Callable[[nn.Module], Any], on_main_alone: bool = False) -> Any:
        """Call with the model in eval mode, and return the result of the main process on all ranks.

        Args:
            on_main_alone: the other ranks wait, unless none has the model whole: then weights are put together by all.
        """
        result = None
        if is_main() or not (on_main_alone and self.engine.whole):
            self.engine.plain.eval()
            with self.engine.autocast():
                result = work(self.engine.plain)
            self.engine.plain.train()
        self.run.watch.rearm()
        return gather_objects(result)[0]

    def evaluate(self) -> dict[str, Any]:
        """Let the model answer the evaluation sets, and return the results by set."""
        run, step, shared = self.run, self.position.step, self.engine.whole
        with run.tracker.show_waiting(f"evaluating at step {step}", plain=True):
            results, samples = self.run_in_eval_mode(lambda model: run.evaluator.evaluate(model, shared))
        run.tracker.log_evaluation(step, results, samples)
        return results

    def move_mixture(self, settings: BalanceConfig) -> None:
        """Measure the validation losses and move the mixture; the next round draws in its own order.

        Sets of which no row can be used are left out; where nothing can be measured, the shares stay as they are.
        """
        run, stage, shared = self.run, self.position.stage, self.engine.whole
        losses, left_out = self.run_in_eval_mode(
            lambda model: run.evaluator.compute_validation_losses(stage, model, settings.examples, shared)
        )
        for reason in left_out:
            run.tracker.warn(f"balance: {escape_text(reason)}; the set is left out")
        if not losses:
            run.tracker.warn("balance: no validation loss could be measured, so the mixture stays as it is")
        balance = move_mixture_weights(
            AdaptiveMixture.from_json(self.position.balance),
            losses,
            run.data.list_entry_tasks(stage),
            settings,
        )
        self.position.balance = balance.to_json()
        self.position.stream = None
        run.tracker.log_event("balance", step=self.position.step, **balance.to_json())

    def check_guards(self, over: bool) -> bool:
        """Probe the guarded sets when it is time or the stage is ``over``; return whether the run must stop."""
        guard, tracker = self.run.config.guard, self.run.tracker
        if guard is None or (self.position.step % guard.every and not over):
            return False
        with tracker.show_waiting("probing the guard's sets", plain=True):
            broken, notes = self.run_in_eval_mode(self.run.evaluator.check_guard, on_main_alone=True)
        for sentence in (*notes, *broken):
            tracker.warn(f"guard: {sentence}")
        tracker.log_event("guard", step=self.position.step, broken=broken)
        return bool(broken) and guard.action == "stop"
