"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from uniaudio.config.run import RunConfig, Stage
from uniaudio.distributed import gather_objects, sum_over_ranks
from uniaudio.errors import UserError
from uniaudio.train.auxiliary import AuxiliaryLosses
from uniaudio.train.checkpoint import save_checkpoint
from uniaudio.train.engine import backward_scale
from uniaudio.train.optim import build_optimizer, lr_share, set_learning_rate
from uniaudio.train.position import Position, restore
from uniaudio.train.skips import SkipLedger
from uniaudio.train.stop import CONTINUE_LATER, StopSignal
from uniaudio.train.track import Tracker
from uniaudio.train.window import Window
from uniaudio.types import Batch


class Steps(Protocol):
    """One step of one rank: micro-batches, their cost in budgets, what was left out and drawn, the position behind."""

    @property
    def micro(self) -> tuple[Batch, ...]: ...
    @property
    def skips(self) -> tuple[Any, ...]: ...
    @property
    def drawn(self) -> Mapping[str, int]: ...
    @property
    def cost(self) -> float: ...
    @property
    def state(self) -> Any: ...


@dataclass(frozen=True)
class TrainParts:
    """What the loop is given.

    Args:
        model: encoder, adapter and frozen decoder, on the device.
        open_steps: (stage index, position in the data as JSON or None) to the endless steps of this rank.
        join_states: the positions of all ranks to the one that any number of ranks can continue from.
        tasks: the K task names. bases: identities of the starting weights.
        has_auxiliary: the model may return auxiliary losses; the same on all ranks.
        evaluate: called with the unwrapped model every ``train.evaluate_every`` steps on the main process.
    """

    model: nn.Module
    open_steps: Callable[[int, dict[str, Any] | None], Iterator[Steps]]
    join_states: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    tasks: tuple[str, ...]
    bases: Mapping[str, Mapping[str, str]]
    has_auxiliary: bool = False
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None


def train(parts: TrainParts, config: RunConfig, accelerator: Accelerator, resume: bool) -> int:
    """Train through all stages and return the exit code: 0 when finished, 75 when stopped by a signal.

    Args:
        resume: continue from the newest whole checkpoint in ``output_dir``.

    Raises:
        UserError: for a checkpoint that does not fit, too many rows left out, a loss that is not finite.
    """
    run_dir = Path(config.output_dir)
    optimizer = build_optimizer(parts.model, config, accelerator.device)
    position = restore(run_dir, parts.model, optimizer, parts.bases) if resume else Position()
    model, optimizer = accelerator.prepare(parts.model, optimizer)
    tracker = Tracker(
        run_dir, accelerator.is_main_process, position.step, config.total_steps, config.train.tensorboard
    )
    if accelerator.is_main_process:
        config.save(run_dir / "config.yaml")
    ledger = SkipLedger(config.data.max_skipped_share)
    if position.skips and accelerator.is_main_process:  # on one rank: the ledgers are added up
        ledger = SkipLedger(ledger.allowed, position.skips)
    try:
        with StopSignal() as stop:
            for index in range(position.stage, len(config.stages)):
                if index != position.stage:
                    position = Position(step=position.step, stage=index)
                run = StageRun(parts, config, accelerator, model, optimizer, tracker, ledger, position, stop)
                if not run.go():
                    tracker.event("stopped", step=position.step)
                    return CONTINUE_LATER
        tracker.event("finished", step=position.step)
    finally:
        tracker.close()
    return 0


@dataclass
class StageRun:
    """One stage: what the steps of the loop need at hand."""

    parts: TrainParts
    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    tracker: Tracker
    ledger: SkipLedger
    position: Position
    stop: StopSignal

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.position.stage]

    def steps_of_stage(self) -> int:
        """Return the steps of this stage, fewer when ``train.max_steps`` ends the run inside it."""
        before = self.position.step - self.position.stage_step
        return min(self.stage.steps, self.config.total_steps - before)

    def go(self) -> bool:
        """Run the stage to its end; return False when a signal stopped it (a checkpoint is saved then)."""
        position, settings = self.position, self.config.train
        last = self.steps_of_stage()
        if position.stage_step >= last:
            return True
        steps = self.parts.open_steps(position.stage, position.stream)
        window = self.new_window()
        self.model.train()
        while position.stage_step < last:
            asked = time.monotonic()
            step = next(steps)
            window.waited += time.monotonic() - asked

            # ------------------------------------------------------------------ one optimizer step
            tokens, wish = self.agree(step, window)
            if wish:
                self.save()
                return False
            set_learning_rate(self.optimizer, lr_share(position.stage_step, self.stage, last))
            auxiliary = AuxiliaryLosses()
            for batch, context in self.with_synchronisation(step.micro):
                with context:
                    loss = self.model(batch.to(self.accelerator.device, non_blocking=True))
                    objective = loss.total * backward_scale(self.accelerator.num_processes, tokens)
                    auxiliary.add(loss.auxiliary)
                    if self.parts.has_auxiliary and batch is step.micro[-1]:
                        extra, values = auxiliary.objective()
                        window.add_auxiliary(values)
                        objective = objective if extra is None else objective + extra
                    self.accelerator.backward(objective)
                window.add(batch, loss)
            norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip))
            self.refuse_broken(norm, step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            # ------------------------------------------------------------------

            position.step += 1
            position.stage_step += 1
            position.stream = step.state.to_json()
            self.tracker.advance()
            if self.config.data.log_ids:
                window.ids.append([i for batch in step.micro for i in batch.ids])
            finished = position.stage_step == last
            if position.step % settings.log_every == 0 or finished:
                self.log(window, norm)
                window = self.new_window()
            if settings.evaluate_every and (position.step % settings.evaluate_every == 0 or finished):
                self.evaluate()
            if position.step % settings.save_every == 0 or finished:
                self.save()
        return True

    def agree(self, step: Steps, window: Window) -> tuple[float, bool]:
        """Return the answer tokens of all ranks and whether any was asked to stop; end together on too many skips."""
        tokens = sum(batch.answer_tokens for batch in step.micro)
        costs = [0.0] * self.accelerator.num_processes
        costs[self.accelerator.process_index] = step.cost
        facts = [tokens, self.stop.requested, len(step.skips), *costs]
        own = torch.tensor(facts, dtype=torch.float64, device=self.accelerator.device)
        total, wish, skipped, *costs = sum_over_ranks(own).tolist()
        if wish:
            return total, True  # the step is done again after the resume, and its skips are told then
        self.ledger.add(step.drawn, step.skips)
        self.tracker.skipped(self.position.step + 1, step.skips)
        window.add_costs(costs, len(step.micro))
        if skipped and (complaint := self.ledger_of_all().complaint()):
            raise UserError(complaint)
        return total, False

    def ledger_of_all(self) -> SkipLedger:
        """Return the sum of the ledgers of all ranks; every rank must call it at the same point."""
        return SkipLedger(self.ledger.allowed, *gather_objects(self.ledger.counts()))

    def with_synchronisation(
        self, micro: tuple[Batch, ...]
    ) -> Iterator[tuple[Batch, contextlib.AbstractContextManager[Any]]]:
        """Pair the micro-batches with contexts: ranks exchange gradients with the last one only.

        Each starts the random generator anew: dropout is a function of seed, step and the micro-batch's place in the
        step, so it is the same after a resume and on another number of processes.
        """
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        for index, batch in enumerate(micro):
            step_seed = self.config.seed * 1_000_003 + self.position.step
            torch.manual_seed(step_seed * 4099 + index * ranks + rank)
            last = index == len(micro) - 1
            yield batch, contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def refuse_broken(self, norm: float, step: Steps) -> None:
        """Stop before broken gradients reach the weights, and name the examples."""
        if norm == norm and norm != float("inf"):
            return
        ids = [i for batch in step.micro for i in batch.ids]
        raise UserError(
            f"the gradient of step {self.position.step + 1} is not finite; its examples on this process: "
            f"{', '.join(itertools.islice(ids, 20))}"
        )

    def new_window(self) -> Window:
        per_task = torch.zeros(len(self.parts.tasks), 3, device=self.accelerator.device)
        return Window(per_task, self.config.adapter.tokens_per_second)

    def log(self, window: Window, norm: float) -> None:
        """Write one row of metrics."""
        row = {
            "step": self.position.step,
            "stage": self.stage.name,
            **window.row(self.parts.tasks, self.config.data.log_ids),
            "lr": {group["component"]: group["lr"] for group in self.optimizer.param_groups},
            "grad_norm": norm,
        }
        self.tracker.log(row)

    def evaluate(self) -> None:
        """Let the main process ask its questions; the others wait at the next exchange."""
        if self.parts.evaluate is not None and self.accelerator.is_main_process:
            plain = self.accelerator.unwrap_model(self.model)
            plain.eval()
            self.tracker.event("evaluation", step=self.position.step, results=self.parts.evaluate(plain))
            plain.train()
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint from the main process."""
        self.position.skips = self.ledger_of_all().counts()
        streams = [state for state in gather_objects(self.position.stream) if state is not None]
        joined = self.parts.join_states(streams) if streams else None
        if self.accelerator.is_main_process:
            plain = self.accelerator.unwrap_model(self.model)
            save_checkpoint(
                Path(self.config.output_dir),
                self.position.step,
                plain.trainable_state(),
                self.optimizer.state_dict(),
                {**asdict(self.position), "stream": joined},
                self.config,
                self.parts.bases,
            )
            self.tracker.event("saved", step=self.position.step, drawn=self.position.skips["drawn"])
        self.accelerator.wait_for_everyone()
