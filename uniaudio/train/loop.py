"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from uniaudio.config.run import RunConfig, Stage
from uniaudio.distributed import gather_objects, sum_over_ranks
from uniaudio.errors import UserError
from uniaudio.train.checkpoint import check_bases, latest_checkpoint, load_checkpoint, save_checkpoint
from uniaudio.train.engine import backward_scale
from uniaudio.train.optim import build_optimizer, lr_share, set_learning_rate
from uniaudio.train.skips import SkipLedger
from uniaudio.train.stop import CONTINUE_LATER, StopSignal
from uniaudio.train.track import Tracker
from uniaudio.types import Batch


class Steps(Protocol):
    """One step of one rank: micro-batches, rows left out, rows drawn, and the position of the stream behind it."""

    @property
    def micro(self) -> tuple[Batch, ...]: ...
    @property
    def skips(self) -> tuple[Any, ...]: ...
    @property
    def drawn(self) -> Mapping[str, int]: ...
    @property
    def state(self) -> Any: ...


@dataclass(frozen=True)
class TrainParts:
    """What the loop is given.

    Args:
        model: encoder, adapter and frozen decoder, on the device.
        open_steps: (stage index, state of the stream as JSON or None) to the endless steps of this rank.
        tasks: the K task names. bases: identities of the starting weights.
        evaluate: called with the unwrapped model every ``train.evaluate_every`` steps on the main process.
    """

    model: nn.Module
    open_steps: Callable[[int, dict[str, Any] | None], Iterator[Steps]]
    tasks: tuple[str, ...]
    bases: Mapping[str, Mapping[str, str]]
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None


@dataclass
class Window:
    """Sums since the last row of metrics."""

    per_task: Tensor
    audio_seconds: float = 0.0
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)
    ids: list[list[str]] = field(default_factory=list)


@dataclass
class Position:
    """Where the run is: optimizer steps done, in all and in the current stage, and the stream's state."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stream: dict[str, Any] | None = None


def train(parts: TrainParts, config: RunConfig, accelerator: Accelerator, resume: bool) -> int:
    """Train through all stages and return the exit code: 0 when finished, 75 when stopped by a signal.

    Args:
        resume: continue from the newest whole checkpoint in ``output_dir``.

    Raises:
        UserError: for a checkpoint that does not fit, too many rows left out, a loss that is not finite.
    """
    run_dir = Path(config.output_dir)
    optimizer = build_optimizer(parts.model, config, accelerator.device)
    position = restore(run_dir, parts, optimizer) if resume else Position()
    model, optimizer = accelerator.prepare(parts.model, optimizer)
    tracker = Tracker(
        run_dir, accelerator.is_main_process, position.step, config.total_steps, config.train.tensorboard
    )
    if accelerator.is_main_process:
        config.save(run_dir / "config.yaml")
    ledger = SkipLedger(config.data.max_skipped_share)
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


def restore(run_dir: Path, parts: TrainParts, optimizer: torch.optim.Optimizer) -> Position:
    """Load the newest whole checkpoint into model and optimizer and return the position behind it."""
    path = latest_checkpoint(run_dir)
    if path is None:
        raise UserError(f"--resume: {run_dir} holds no whole checkpoint; leave --resume out to start")
    checkpoint = load_checkpoint(path)
    check_bases(checkpoint, parts.bases)
    parts.model.load_trainable_state(checkpoint.model)  # type: ignore[operator]
    optimizer.load_state_dict(checkpoint.optimizer)
    state = checkpoint.state
    return Position(state["step"], state["stage"], state["stage_step"], state["stream"])


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
            tokens, wish = self.agree(step)
            if wish:
                self.save()
                return False
            torch.manual_seed(
                self.config.seed * 1_000_003 + position.step
            )  # dropout is a function of the step
            set_learning_rate(self.optimizer, lr_share(position.stage_step, self.stage, last))
            for batch, context in self.with_synchronisation(step.micro):
                with context:
                    loss = self.model(batch.to(self.accelerator.device, non_blocking=True))
                    objective = loss.total * backward_scale(self.accelerator.num_processes, tokens)
                    for (
                        extra
                    ) in loss.auxiliary.values():  # already weighted means: averaged over micro-batches
                        objective = objective + extra / len(step.micro)
                    self.accelerator.backward(objective)
                window.per_task += loss.per_task
                window.audio_seconds += batch.audio_seconds
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

    def agree(self, step: Steps) -> tuple[float, bool]:
        """Return the answer tokens of all ranks and whether any was asked to stop; end together on too many skips."""
        self.ledger.add(step.drawn, step.skips)
        complaint = self.ledger.complaint()
        tokens = sum(batch.answer_tokens for batch in step.micro)
        facts = torch.tensor(
            [tokens, self.stop.requested, bool(complaint)],
            dtype=torch.float64,
            device=self.accelerator.device,
        )
        total, wish, complaints = sum_over_ranks(facts).tolist()
        if not wish:  # a stopped step is done again after the resume, and tells then
            self.tracker.skipped(step.skips)
        if complaints:
            raise UserError(next(text for text in gather_objects(complaint) if text))
        return total, bool(wish)

    def with_synchronisation(
        self, micro: tuple[Batch, ...]
    ) -> Iterator[tuple[Batch, contextlib.AbstractContextManager[Any]]]:
        """Pair the micro-batches with contexts: ranks exchange gradients with the last one only."""
        for batch in micro[:-1]:
            yield batch, self.accelerator.no_sync(self.model)
        yield micro[-1], contextlib.nullcontext()

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
        zeros = torch.zeros(len(self.parts.tasks), 3, device=self.accelerator.device)
        return Window(zeros)

    def log(self, window: Window, norm: float) -> None:
        """Add up the window over all ranks and write one row."""
        seconds = time.monotonic() - window.started
        per_task = sum_over_ranks(window.per_task.double()).tolist()
        own = torch.tensor([window.audio_seconds, window.waited], dtype=torch.float64)
        audio, waited = sum_over_ranks(own.to(self.accelerator.device)).tolist()
        ids = gather_objects(window.ids) if self.config.data.log_ids else []
        tokens = sum(row[1] for row in per_task)
        seen = [(task, row) for task, row in zip(self.parts.tasks, per_task, strict=True) if row[1]]
        row: dict[str, Any] = {
            "step": self.position.step,
            "stage": self.stage.name,
            "loss": sum(row[0] for row in per_task) / max(tokens, 1),
            "tasks": {task: row[0] / row[1] for task, row in seen},
            "accuracy": {task: row[2] / row[1] for task, row in seen},
            "answer_tokens": int(tokens),
            "lr": {group["component"]: group["lr"] for group in self.optimizer.param_groups},
            "grad_norm": norm,
            "audio_seconds_per_second": audio / seconds,
            "data_wait_share": waited / self.accelerator.num_processes / seconds,
            "memory_gib": memory_gib(self.accelerator.device),
        }
        if self.config.data.log_ids:
            row["ids"] = [list(itertools.chain(*ranks)) for ranks in zip(*ids, strict=True)]
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
        if self.accelerator.is_main_process:
            plain = self.accelerator.unwrap_model(self.model)
            save_checkpoint(
                Path(self.config.output_dir),
                self.position.step,
                plain.trainable_state(),
                self.optimizer.state_dict(),
                {
                    "stage": self.position.stage,
                    "stage_step": self.position.stage_step,
                    "stream": self.position.stream,
                },
                self.config,
                self.parts.bases,
            )
        self.accelerator.wait_for_everyone()


def memory_gib(device: torch.device) -> float:
    """Return the peak memory so far: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on every system, and only the CPU path needs it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
