"""The steps of one stage, to be read from top to bottom: data, forward, backward, update, metrics, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uniaudio.config.stages import Stage
from uniaudio.data.loader import StepBatch
from uniaudio.distributed import gather_objects, sum_over_ranks
from uniaudio.ragged import Ragged
from uniaudio.train.adaptive_mixture import AdaptiveMixture
from uniaudio.train.auxiliary_losses import AuxiliaryLosses
from uniaudio.train.checkpoint.folders import STAGE_END
from uniaudio.train.continual.distill import count_batch_frames
from uniaudio.train.metrics import MetricSums
from uniaudio.train.oom import explain_out_of_memory
from uniaudio.train.optim import compute_lr_share, set_learning_rate
from uniaudio.train.periodic_evaluation import PeriodicEvaluation
from uniaudio.train.protocols import TrainingData
from uniaudio.train.skipped_steps import StepFilter
from uniaudio.train.stage_setup import StageModel
from uniaudio.train.state import TrainState
from uniaudio.types import Batch, LossSum

if TYPE_CHECKING:  # it goes from one stage of these to the next
    from uniaudio.train.stages import RunServices


def open_steps(
    data: TrainingData, model: StageModel, position: TrainState
) -> Generator[StepBatch, None, None]:
    """Open the data of a stage where a position is, and note in the position which data these are.

    So a checkpoint from before the first step of a stage, or of a round of an adaptive mixture, names its data, too.

    Raises:
        UserError: when they are not those of the checkpoint that the position is from.
    """
    balance = AdaptiveMixture.from_json(position.balance)
    position.stream, steps = data.open_steps(position.stage, model.engine.plain, balance, position.stream)
    return steps


@dataclass(frozen=True)
class StepTotals:
    """Sums over the micro-batches of one step, of all ranks.

    Args:
        frames: of the clips that distillation compares; 0 without it. seconds: of audio.
        stop_requested: on any rank; the step is not to be done then.
    """

    answer_tokens: float
    frames: float
    seconds: float
    stop_requested: bool


class StageRun:
    """One stage of a run, from where the position is.

    Attributes:
        metrics: sums over the steps since the last row of metrics.
        penalties: the auxiliary losses and the anchors' penalties of the last step, by name.
        norm: of the gradients of the last step, before clipping.
    """

    def __init__(self, run: RunServices, model: StageModel, position: TrainState) -> None:
        self.run, self.model, self.position = run, model, position
        self.config, self.tracker = run.config, run.tracker
        self.stage: Stage = run.config.stages[position.stage]
        self.step_filter = StepFilter(self.config.train, position, self.tracker, model.engine.plain)
        self.saved_step = position.step if position.stage_step else None  # a run that goes on has that one
        self.penalties: dict[str, float] = {}
        self.norm = math.nan
        self.metrics = self.make_metrics()
        self.evaluation = PeriodicEvaluation(run, model.engine, position)
        run.user.enter_stage(self.stage.name, model.engine.plain)
        self.has_auxiliary = bool(getattr(model.engine.plain.encoder, "auxiliary", ()))

    @property
    def last_step(self) -> int | None:
        """Steps of this stage, fewer when ``train.max_steps`` ends the run inside it; None: hours end it."""
        most = self.config.train.max_steps
        left = None if most is None else most - self.position.stage_start
        return min((count for count in (self.stage.steps, left) if count is not None), default=None)

    @property
    def is_over(self) -> bool:
        """Whether no step is left to do, of the stage or up to ``train.max_steps``."""
        return self.position.has_finished(self.stage) or self.position.is_at_cap(self.config)

    def announce(self) -> None:
        """Say which stage begins (or goes on), under which engine, how much of the model it trains, what recomputes."""
        engine, processes = self.model.engine, self.run.accelerator.num_processes
        recomputing = self.run.models.choose_recomputing(self.position.stage, engine)
        sizes, name = list(engine.sizes.values()), self.stage.name
        self.tracker.say(
            f"stage {name}: {sum(sizes):,} parameters in {len(sizes)} tensors are trained, engine {engine.name}, "
            f"{processes} process{'es' if processes > 1 else ''}"
        )
        if sentence := recomputing.describe(f"stages.{name}.budget.audio_seconds"):
            (self.tracker.say if recomputing.fits else self.tracker.warn)(sentence)
        facts = {
            "engine": engine.name,
            "processes": processes,
            "trained": sum(sizes),
            **recomputing.facts(),
        }
        self.tracker.log_event("stage", step=self.position.step, stage=name, **facts)
        self.run.user.call("on_stage", self.position.step, facts)

    def train_to_end(self, steps: Generator[StepBatch, None, None] | None = None) -> bool:
        """Run the stage to its end; return False when it was stopped before (a checkpoint is saved then).

        Args:
            steps: the data where the position is, if they are open already.
        """
        position, settings = self.position, self.config.train
        if self.is_over:  # lowered to what is done already: the checkpoint there becomes the end of the stage
            self.step_filter.refuse_stage_without_updates(self.stage.name)
            self.save()
            return True
        steps = steps or open_steps(self.run.data, self.model, position)
        self.metrics = self.make_metrics()
        self.model.engine.plain.train()
        while not self.is_over:
            step = self.wait_for_step(steps)
            totals = self.exchange_totals(step)
            if totals.stop_requested:
                # not what the stage before has saved, nor again what this one has: little time is left to stop
                if (position.stage_step or not position.stage) and position.step != self.saved_step:
                    self.save()
                return False
            losses, self.norm = self.train_step(step, totals)
            self.account(step, totals, losses)
            self.call_on_step(totals, losses)
            if position.step % settings.log_every == 0 or self.is_over:
                self.log()
            if settings.evaluate_every and (position.step % settings.evaluate_every == 0 or self.is_over):
                self.run.user.call("on_evaluate", position.step, self.evaluation.evaluate())
            balance = self.stage.balance
            if balance and position.stage_step % balance.every == 0 and not position.has_finished(self.stage):
                self.evaluation.move_mixture(balance)
                steps.close()  # its workers end before those of the next round begin
                steps = open_steps(self.run.data, self.model, position)
            must_stop = self.evaluation.check_guards(self.is_over)
            if position.step % settings.save_every == 0 or self.is_over or must_stop:
                self.save()
            if must_stop:
                return False
        return True

    def wait_for_step(self, steps: Iterator[StepBatch]) -> StepBatch:
        """Wait for the data of a step."""
        begin = time.monotonic()
        with self.run.profile.part("data"), self.tracker.show_waiting("waiting for data"):
            step = next(steps)
        self.metrics.waited += time.monotonic() - begin
        return step

    def train_step(self, step: StepBatch, totals: StepTotals) -> tuple[list[tuple[Batch, LossSum]], float]:
        """Do one optimizer step: forward and backward of this rank's micro-batches, then the update.

        Returns:
            The micro-batches with their losses, and the norm of the gradients before clipping.
        """
        engine, ranks = self.model.engine, self.run.accelerator.num_processes
        share_of_hours = self.position.compute_share_of_hours(self.stage)
        share = compute_lr_share(self.stage, self.position.stage_step, self.last_step, share_of_hours)
        set_learning_rate(engine.optimizer, share)
        auxiliary = AuxiliaryLosses()
        loss_sums: list[Tensor] = []
        losses: list[tuple[Batch, LossSum]] = []
        for index, batch in enumerate(step.micro):
            is_last = index == len(step.micro) - 1
            self.seed_dropout(index)
            # ranks exchange gradients with the last micro-batch only
            with engine.exchange(is_last), explain_out_of_memory(batch, self.stage, self.position.step + 1):
                moved = batch.to(self.run.accelerator.device, non_blocking=True)
                loss = engine.forward(moved)
                loss_sums.append(loss.total.detach())
                # The objective of a step is the mean over the answer tokens of all micro-batches of all ranks. Data
                # parallelism averages gradients over ranks, hence the factor; nothing else divides.
                objective = loss.total * (ranks / max(totals.answer_tokens, 1.0))
                if self.model.distiller is not None and loss.frames is not None:
                    distance = self.compute_distance_to_teacher(moved, loss.frames)
                    objective = objective + distance * (ranks / max(totals.frames, 1.0))
                auxiliary.add(loss.auxiliary)
                if is_last:  # what counts once in a step
                    objective = self.add_penalties(objective, auxiliary)
                    objective = objective * self.step_filter.compute_factor(loss_sums, totals.answer_tokens)
                engine.backward(objective)
            # what the metrics need, without what the backward needed
            losses.append((batch, replace(loss, total=loss.total.detach(), auxiliary={}, frames=None)))
        self.run.writer.wait_for_copies()
        with (
            self.run.profile.part("optimizer"),
            explain_out_of_memory(None, self.stage, self.position.step + 1),
        ):
            # the norm is taken over all ranks; nothing is updated where it is not finite
            norm = engine.step(max_norm=self.config.train.clip)
        return losses, norm

    def seed_dropout(self, index: int) -> None:
        """Start the random generator anew for a micro-batch of this rank.

        Dropout is a function of seed, step and the micro-batch's place in the step, so it is the same after a resume
        and on another number of processes.
        """
        accelerator = self.run.accelerator
        step_seed = self.config.seed * 1_000_003 + self.position.step
        micro_seed = step_seed * 4099 + index * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(micro_seed % 2**64)  # which changes nothing about what torch can take

    def compute_distance_to_teacher(self, batch: Batch, frames: Ragged) -> Tensor:
        """Return the sum, over the frames of a micro-batch, of their distance to those of the distilled model."""
        assert self.model.distiller is not None
        with self.model.engine.autocast():
            before = self.model.distiller.frames(batch)
        return self.model.distiller.compute_total(before, frames)

    def add_penalties(self, objective: Tensor, auxiliary: AuxiliaryLosses) -> Tensor:
        """Add what counts once in a step: auxiliary losses and the anchors' penalties."""
        if self.has_auxiliary:
            extra, self.penalties = auxiliary.compute_objective()
            objective = objective if extra is None else objective + extra
        for name, anchor in self.model.anchors.items():
            penalty = anchor.compute_penalty(self.model.engine.plain)
            self.penalties[name] = float(penalty.detach())
            objective = objective + penalty
        return objective

    def exchange_totals(self, step: StepBatch) -> StepTotals:
        """Add up over all ranks what a step needs to know of all of them, and count what its data left out.

        Raises:
            UserError: on all ranks together, for too many rows left out or a checkpoint that could not be written.
        """
        accelerator, writer = self.run.accelerator, self.run.writer
        tokens = sum(batch.answer_tokens for batch in step.micro)
        frames = 0
        if self.model.distiller is not None:
            frames = sum(count_batch_frames(self.model.engine.plain, batch) for batch in step.micro)
        seconds = sum(batch.audio_seconds for batch in step.micro)
        costs = [0.0] * accelerator.num_processes
        costs[accelerator.process_index] = step.cost
        facts = [tokens, frames, seconds, self.run.stop.requested, len(step.skips), writer.failed, *costs]
        # one process alone has nothing to exchange, and need not wait for its device
        device = accelerator.device if accelerator.num_processes > 1 else None
        of_rank = torch.tensor(facts, dtype=torch.float64, device=device)
        tokens, frames, seconds, stop, skipped, failed, *costs = sum_over_ranks(of_rank).tolist()
        if failed:
            writer.wait()  # tells what happened, on all ranks
        if not stop:  # else the step is done again after the resume, and its skips are told then
            self.run.count_left_out(step, self.position.step + 1, any_rank=bool(skipped))
            self.metrics.add_costs(costs, len(step.micro))
        return StepTotals(tokens, frames, seconds, bool(stop))

    def account(self, step: StepBatch, totals: StepTotals, losses: Sequence[tuple[Batch, LossSum]]) -> None:
        """Move the position behind a step and count it, whether it was applied or left out.

        Raises:
            UserError: on all ranks, after too many steps in a row that were left out, and at the end of a stage in
                which no step was applied.
        """
        position, engine = self.position, self.model.engine
        ids = [i for batch in step.micro for i in batch.ids]
        is_applied = self.step_filter.account(self.norm, ids)
        position.stage_seconds += totals.seconds
        if self.is_over:  # before the checkpoint that would end the stage
            self.step_filter.refuse_stage_without_updates(self.stage.name)
        position.stream = step.state.to_json()
        if is_applied and self.model.average is not None:
            self.model.average.update(engine.plain)
        for batch, loss in losses:
            self.metrics.add(batch, loss, has_metrics=is_applied)
        if is_applied:
            self.metrics.add_auxiliary(self.penalties)
        if self.config.data.log_ids:
            self.metrics.ids.append(ids)
        self.tracker.advance()
        self.run.watch.rearm()
        self.run.profile.count_step(engine.plain)
        self.run.writer.tell()

    def call_on_step(self, totals: StepTotals, losses: Sequence[tuple[Batch, LossSum]]) -> None:
        """Tell the user's callbacks of a step; reading its loss waits for the device, so only where one asks for it."""
        if not self.run.user.has("on_step"):
            return
        tokens = max(sum(loss.answer_tokens for _, loss in losses), 1)
        facts = {
            "loss": sum(float(loss.total) for _, loss in losses) / tokens,
            "grad_norm": self.norm if math.isfinite(self.norm) else None,
            "lr": self.read_learning_rates(),
            "answer_tokens": int(totals.answer_tokens),
            "audio_seconds": totals.seconds,
        }
        self.run.user.call("on_step", self.position.step, facts)

    def read_learning_rates(self) -> dict[str, float]:
        """Return the learning rates by component."""
        return {group["component"]: group["lr"] for group in self.model.engine.optimizer.param_groups}

    def make_metrics(self) -> MetricSums:
        """Return empty sums for the next row of metrics."""
        per_task = torch.zeros(len(self.run.data.tasks), 3, device=self.run.accelerator.device)
        adapter = self.config.adapter
        # markers are no padding, as more tokens than the rate would seem to be
        return MetricSums(per_task, None if adapter.time_markers else adapter.tokens_per_second)

    def log(self) -> None:
        """Write one row of metrics, and begin to add up for the next."""
        row = {
            "step": self.position.step,
            "stage": self.stage.name,
            **self.metrics.row(self.run.data.tasks, self.config.data.log_ids),
            "lr": self.read_learning_rates(),
            "grad_norm": self.norm if math.isfinite(self.norm) else None,
        }
        self.metrics = self.make_metrics()
        self.tracker.log(row)
        self.run.user.call("on_log", self.position.step, row)
        features = self.model.features
        if features is not None and (complaint := features.explain_problem()):
            self.tracker.warn(complaint)

    def save(self) -> None:
        """Begin to write a checkpoint; the rows of metrics end with it, for a run that goes on tells of later steps."""
        if self.metrics.fill:
            self.log()
        self.saved_step = self.position.step
        self.position.skips = self.run.sum_ledgers().counts()
        state = {
            **self.position.to_json(),
            "stream": self.run.data.join_states(gather_objects(self.position.stream)),
            STAGE_END: self.position.has_finished(self.stage),
        }
        average = self.model.average
        self.run.writer.save(
            self.model.engine,
            self.model.carried,
            average.tensors if average is not None else {},
            self.position.step,
            state,
            {name: self.position.skips[name] for name in ("drawn", "notices")},
        )
