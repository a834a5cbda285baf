"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.distributed import barrier, gather_objects, sum_over_ranks
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.train.adaptive_mixture import Balance
from uniaudio.train.auxiliary_losses import AuxiliaryLosses
from uniaudio.train.callbacks import BetweenSteps
from uniaudio.train.checkpoint.background_writer import CheckpointWriter
from uniaudio.train.checkpoint.store import STAGE_END, Checkpoint, check_bases, load_checkpoint, step_folder
from uniaudio.train.continual.distill import frames_of
from uniaudio.train.engines.launch import backward_scale
from uniaudio.train.loggers import Tracker, tell_of_finished_run
from uniaudio.train.loss_spikes import StepJudge
from uniaudio.train.metrics import Window
from uniaudio.train.oom import telling_of_memory
from uniaudio.train.optim import lr_share, set_learning_rate
from uniaudio.train.parts import Steps, TrainParts
from uniaudio.train.profile import StepProfile
from uniaudio.train.recomputing import Recomputing
from uniaudio.train.resume import check_resume, is_at_cap, is_finished, print_changes
from uniaudio.train.signals import CONTINUE_LATER, StopSignal
from uniaudio.train.skipped_rows import SkipLedger
from uniaudio.train.stage_setup import FISHER, StageModel, open_stage
from uniaudio.train.state import Position, newest
from uniaudio.train.watchdog import HangWatch
from uniaudio.types import Batch, LossSum


def train(
    parts: TrainParts,
    config: RunConfig,
    accelerator: Accelerator,
    resume: bool,
    checkpoint: Checkpoint | None = None,
) -> int:
    """Train through all stages and return the exit code: 0 when finished, 75 when stopped and safe to continue.

    Nothing in the run folder changes before the model is in its engine and the data are those of the checkpoint.

    Args:
        resume: continue from a checkpoint. checkpoint: which one; default the newest whole one in ``output_dir``.

    Raises:
        UserError: for a checkpoint that does not fit or cannot be written, too many rows or steps left out.
    """
    run_dir = Path(config.output_dir)
    if resume:
        checkpoint = checkpoint or newest(run_dir)
        print_changes(check_resume(config, checkpoint), checkpoint.state["step"])
    position = starting_position(config, checkpoint, parts.bases)
    main = accelerator.is_main_process
    if checkpoint is not None and is_finished(position, config):
        tell_of_finished_run(run_dir, main, position.step)
        return 0
    if main and not resume:  # of an earlier run that never came to a checkpoint
        shutil.rmtree(run_dir / FISHER, ignore_errors=True)
    barrier()
    with StopSignal() as stop, HangWatch(run_dir, config.train.hang_seconds) as watch, ExitStack() as closing:
        model = open_stage(parts.build, parts.examples, config, accelerator, position, checkpoint)
        steps: Iterator[Steps] | None = open_steps(parts, model, position)
        barrier()  # every rank has what it needs
        tracker = Tracker(run_dir, main, position.step, config.total_steps, config.train.tensorboard)
        closing.callback(tracker.close)
        if main:
            with convert_to_user_error(f"output_dir: {run_dir} cannot be written", "set another output_dir"):
                parts.write_start()
                config.save(run_dir / "config.yaml")
        ledger = SkipLedger(config.data.max_skipped_share)
        if position.skips and main:  # on one rank: the ledgers are added up
            ledger = SkipLedger(ledger.allowed, position.skips)
        writer = CheckpointWriter(
            run_dir, config, parts.bases, lambda step, facts: tracker.event("saved", step=step, **facts)
        )
        closing.callback(writer.finish)
        profile = StepProfile(config.train.profile and main, run_dir, tracker)
        while True:
            recomputing = parts.recompute(position.stage, model.engine)
            tell_of_stage(tracker, model, config, position, accelerator.num_processes, recomputing)
            run = StageRun(
                parts, config, accelerator, model, tracker, ledger, position, stop, watch, writer, profile
            )
            finished = run.go(steps)
            writer.wait()
            model.close()
            if not finished:
                tracker.event("stopped", step=position.step)
                return CONTINUE_LATER
            if position.stage + 1 == len(config.stages) or is_at_cap(position, config):
                break
            del model, run
            steps = None
            gc.collect()
            barrier()
            checkpoint = load_checkpoint(step_folder(run_dir, position.step), verify=False)
            position = position.next_stage()
            model = open_stage(parts.build, parts.examples, config, accelerator, position, checkpoint)
        tracker.event("finished", step=position.step)
    return 0


def open_steps(parts: TrainParts, model: StageModel, position: Position) -> Iterator[Steps]:
    """Open the data of a stage where a position is.

    Raises:
        UserError: when they are not those of the checkpoint that the position is from.
    """
    balance = Balance.from_json(position.balance)
    return parts.open_steps(position.stage, model.engine.plain, balance, position.stream)


def starting_position(
    config: RunConfig, checkpoint: Checkpoint | None, bases: Mapping[str, Mapping[str, str]]
) -> Position:
    """Return where to begin: at the start, within the stage of a checkpoint, or in the stage after it."""
    if checkpoint is None:
        return Position()
    check_bases(checkpoint, bases)
    position = Position.from_state(checkpoint.state)
    more = position.stage + 1 < len(config.stages) and not is_at_cap(position, config)
    if checkpoint.state.get(STAGE_END) and more:
        return position.next_stage()
    return position


def tell_of_stage(
    tracker: Tracker,
    model: StageModel,
    config: RunConfig,
    position: Position,
    processes: int,
    recomputing: Recomputing,
) -> None:
    """Say which stage begins (or goes on), under which engine, how much of the model it trains, what recomputes."""
    sizes = list(model.engine.sizes.values())
    name, engine = config.stages[position.stage].name, model.engine.name
    tracker.say(
        f"stage {name}: {sum(sizes):,} parameters in {len(sizes)} tensors are trained, engine {engine}, "
        f"{processes} process{'es' if processes > 1 else ''}"
    )
    if told := recomputing.sentence(f"stages.{name}.budget.audio_seconds"):
        (tracker.say if recomputing.fits else tracker.warn)(told)
    tracker.event(
        "stage",
        step=position.step,
        stage=name,
        engine=engine,
        processes=processes,
        trained=sum(sizes),
        **recomputing.facts(),
    )


def without_graph(loss: LossSum) -> LossSum:
    """Return what is told of a loss, without holding on to what the backward needed."""
    return replace(loss, total=loss.total.detach(), auxiliary={}, frames=None)


@dataclass
class StageRun:
    """One stage: what the steps of the loop need at hand."""

    parts: TrainParts
    config: RunConfig
    accelerator: Accelerator
    model: StageModel
    tracker: Tracker
    ledger: SkipLedger
    position: Position
    stop: StopSignal
    watch: HangWatch
    writer: CheckpointWriter
    profile: StepProfile

    def __post_init__(self) -> None:
        self.judge = StepJudge(self.config.train, self.position, self.tracker)
        self.ledger_said = SkipLedger(
            self.ledger.allowed, self.ledger.counts()
        )  # broken shards the console knows
        self.between = BetweenSteps(
            self.parts, self.config, self.model.engine, self.tracker, self.position, self.watch
        )

    @property
    def stage(self) -> Stage:
        return self.config.stages[self.position.stage]

    @property
    def last_step(self) -> int | None:
        """Steps of this stage, fewer when ``train.max_steps`` ends the run inside it; None: hours end it."""
        most = self.config.train.max_steps
        left = None if most is None else most - (self.position.step - self.position.stage_step)
        return min((count for count in (self.stage.steps, left) if count is not None), default=None)

    @property
    def heard(self) -> float:
        """Share of the stage's hours of audio that were heard; 0 where steps end it."""
        return self.position.stage_seconds / 3600 / self.stage.hours if self.stage.hours else 0.0

    @property
    def over(self) -> bool:
        last = self.last_step
        return self.heard >= 1 or (last is not None and self.position.stage_step >= last)

    def go(self, steps: Iterator[Steps] | None = None) -> bool:
        """Run the stage to its end; return False when it was stopped before (a checkpoint is saved then).

        Args:
            steps: the data where the position is, if they are open already.
        """
        position, settings, engine = self.position, self.config.train, self.model.engine
        if self.over:
            return True
        steps = steps or self.open_steps()
        window = self.new_window()
        engine.plain.train()
        while not self.over:
            asked = time.monotonic()
            with self.profile.part("data"):
                step = next(steps)
            window.waited += time.monotonic() - asked

            # ------------------------------------------------------------------ one optimizer step
            tokens, frames, seconds, wish = self.agree(step, window)
            if wish:
                if position.stage_step or not position.stage:  # else the stage before has saved the same
                    self.save()
                return False
            share = lr_share(self.stage, position.stage_step, self.last_step, self.heard)
            set_learning_rate(engine.optimizer, share)
            auxiliary = AuxiliaryLosses()
            losses, heard = [], []
            for batch, context in self.with_exchange(step.micro):
                last = batch is step.micro[-1]
                with context, telling_of_memory(batch, self.stage, position.step + 1):
                    moved = batch.to(self.accelerator.device, non_blocking=True)
                    loss = engine.forward(moved)
                    losses.append(loss.total.detach())
                    objective = self.objective(moved, loss, tokens, frames)
                    auxiliary.add(loss.auxiliary)
                    if last:
                        objective = self.with_penalties(objective, auxiliary, window)
                        objective = objective * self.judge.verdict(losses, tokens)
                    engine.backward(objective)
                heard.append((batch, without_graph(loss)))
            self.writer.before_update()
            with self.profile.part("optimizer"):
                norm = engine.step(settings.clip)
            # ------------------------------------------------------------------

            applied = self.judge.account(norm, [i for batch in step.micro for i in batch.ids])
            position.stage_seconds += seconds
            if applied and self.model.average is not None:
                self.model.average.update(engine.plain)
            for batch, loss in heard:
                window.add(batch, loss, counted=applied)
            position.stream = step.state.to_json()
            self.tracker.advance()
            self.watch.rearm()
            self.profile.step_done(engine.plain)
            self.writer.tell()
            if self.config.data.log_ids:
                window.ids.append([i for batch in step.micro for i in batch.ids])
            if position.step % settings.log_every == 0 or self.over:
                self.log(window, norm)
                window = self.new_window()
            if settings.evaluate_every and (position.step % settings.evaluate_every == 0 or self.over):
                self.between.evaluate()
            balance = self.stage.balance
            if balance and position.stage_step % balance.every == 0 and not self.stage_is_whole:
                self.between.move_mixture(balance)
                steps = steps if self.over else self.open_steps()
            broken = self.between.guarded(self.over)
            if position.step % settings.save_every == 0 or self.over or broken:
                self.save()
            if broken:
                return False
        return True

    def open_steps(self) -> Iterator[Steps]:
        """Open the data of the stage where the position is."""
        return open_steps(self.parts, self.model, self.position)

    def agree(self, step: Steps, window: Window) -> tuple[float, float, float, bool]:
        """Return answer tokens, frames and seconds of all ranks and whether any was asked to stop.

        Raises:
            UserError: on all ranks together, for too many rows left out or a checkpoint that could not be written.
        """
        tokens = sum(batch.answer_tokens for batch in step.micro)
        frames = 0
        if self.model.distiller is not None:
            frames = sum(frames_of(self.model.engine.plain, batch) for batch in step.micro)
        seconds = sum(batch.audio_seconds for batch in step.micro)
        costs = [0.0] * self.accelerator.num_processes
        costs[self.accelerator.process_index] = step.cost
        facts = [tokens, frames, seconds, self.stop.requested, len(step.skips), self.writer.failed, *costs]
        # one process alone has nothing to exchange, and need not wait for its device
        device = self.accelerator.device if self.accelerator.num_processes > 1 else None
        own = torch.tensor(facts, dtype=torch.float64, device=device)
        total, frames_of_all, heard, wish, skipped, failed, *costs = sum_over_ranks(own).tolist()
        if failed:
            self.writer.wait()  # tells what happened, on all ranks
        if wish:  # the step is done again after the resume, and its skips are told then
            return total, frames_of_all, heard, True
        for skip in self.ledger.first_skips(step.skips):
            self.tracker.warn(skip.sentence)
        for notice in self.ledger.add(step.drawn, step.skips, step.notices):
            self.tracker.warn(notice.sentence)
            self.tracker.event("notice", step=self.position.step + 1, **asdict(notice))
        self.tracker.skipped(self.position.step + 1, step.skips)
        window.add_costs(costs, len(step.micro))
        if skipped:
            ledger = self.ledger_of_all()
            for sentence in ledger.new_shards(self.ledger_said):
                self.tracker.warn(sentence)
            if complaint := ledger.complaint():
                raise UserError(complaint)
        return total, frames_of_all, heard, False

    def ledger_of_all(self) -> SkipLedger:
        """Return the sum of the ledgers of all ranks; every rank must call it at the same point."""
        return SkipLedger(self.ledger.allowed, *gather_objects(self.ledger.counts()))

    def with_exchange(
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
            yield batch, self.model.engine.exchange(index == len(micro) - 1)

    def objective(self, batch: Batch, loss: LossSum, tokens: float, frames: float) -> Tensor:
        """Return a micro-batch's part of the mean loss over the global batch, distillation included."""
        ranks = self.accelerator.num_processes
        objective = loss.total * backward_scale(ranks, tokens)
        if self.model.distiller is not None and loss.frames is not None:
            with self.model.engine.autocast():
                before = self.model.distiller.frames(batch)
            apart = self.model.distiller.total(before, loss.frames)
            objective = objective + apart * backward_scale(ranks, frames)
        return objective

    def with_penalties(self, objective: Tensor, auxiliary: AuxiliaryLosses, window: Window) -> Tensor:
        """Add what counts once in a step: auxiliary losses and the anchors' penalties."""
        if self.parts.has_auxiliary:
            extra, values = auxiliary.objective()
            window.add_auxiliary(values)
            objective = objective if extra is None else objective + extra
        for name, anchor in self.model.anchors.items():
            penalty = anchor.penalty(self.model.engine.plain)
            window.add_auxiliary({name: float(penalty.detach())})
            objective = objective + penalty
        return objective

    def new_window(self) -> Window:
        per_task = torch.zeros(len(self.parts.tasks), 3, device=self.accelerator.device)
        return Window(per_task, self.config.adapter.tokens_per_second)

    def log(self, window: Window, norm: float) -> None:
        """Write one row of metrics."""
        row = {
            "step": self.position.step,
            "stage": self.stage.name,
            **window.row(self.parts.tasks, self.config.data.log_ids),
            "lr": {group["component"]: group["lr"] for group in self.model.engine.optimizer.param_groups},
            "grad_norm": norm if math.isfinite(norm) else None,
        }
        self.tracker.log(row)
        features = self.model.features
        if features is not None and (complaint := features.complaint()):
            self.tracker.warn(complaint)

    def save(self) -> None:
        """Begin to write a checkpoint."""
        self.position.skips = self.ledger_of_all().counts()
        streams = [state for state in gather_objects(self.position.stream) if state is not None]
        joined = self.parts.join_states(streams) if streams else None
        state = {**self.position.to_json(), "stream": joined, STAGE_END: self.over and self.stage_is_whole}
        average = self.model.average
        self.writer.save(
            self.model.engine,
            self.model.carried,
            average.tensors if average is not None else {},
            self.position.step,
            state,
            {name: self.position.skips[name] for name in ("drawn", "notices")},
        )

    @property
    def stage_is_whole(self) -> bool:
        """Whether the stage came to its own end, not to that of ``train.max_steps``."""
        return self.position.stage_step == self.stage.steps or self.heard >= 1
