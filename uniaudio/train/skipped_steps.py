"""Which steps are skipped: those whose gradient is not finite, and those whose loss explodes (loss spikes)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniaudio.config.training import TrainConfig
from uniaudio.distributed import gather_objects, sum_over_ranks
from uniaudio.errors import UserError
from uniaudio.train.loggers import Tracker
from uniaudio.train.state import TrainState

SETTLED = 20  # updates of a stage before a loss can be called exploding
MEMORY = 0.05  # weight of a new loss in the moving average
NAMED = 20  # examples in a message


def find_nonfinite_parameter(model: nn.Module) -> str:
    """Return the name of a parameter, on any rank, that holds NaN or infinite values; an empty text for none.

    Every rank looks at the shards that it holds, and must call it at the same point.
    """
    nonfinite = ""
    for name, parameter in model.named_parameters():
        shard = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        shard = getattr(parameter, "ds_tensor", shard)  # under ZeRO-3 the parameter itself is empty
        if not shard.detach().float().isfinite().all():
            nonfinite = name
            break
    return next((name for name in gather_objects(nonfinite) if name), "")


class StepFilter:
    """Decides which steps of a stage are applied, and counts them in its position.

    Args:
        model: in which the reason is looked for when too many steps were left out.
    """

    def __init__(
        self, settings: TrainConfig, position: TrainState, tracker: Tracker, model: nn.Module
    ) -> None:
        self.settings, self.position, self.tracker, self.model = settings, position, tracker, model
        self.loss: Tensor | None = None

    @property
    def usual_loss(self) -> float:
        """The moving average of the stage's losses per answer token, at least 1: below that no loss is an explosion."""
        return max(self.position.loss_mean, 1.0)

    @property
    def highest_loss(self) -> float:
        """The loss above which a step is left out; there is none before the stage has settled."""
        settled = self.position.updates >= SETTLED
        return self.settings.max_loss_ratio * self.usual_loss if settled else float("inf")

    def compute_factor(self, losses: Sequence[Tensor], tokens: float) -> Tensor:
        """Return 1, or NaN where the step's loss explodes: a gradient that is not finite is never applied.

        Every engine leaves such a step out on all ranks, so this one way does for all of them and waits for no device.
        Every rank must call it at the same point.

        Args:
            losses: sums of this rank's micro-batches. tokens: answer tokens of all ranks.
        """
        self.loss = sum_over_ranks(torch.stack(list(losses)).sum().double()) / max(tokens, 1.0)
        one = torch.ones((), device=self.loss.device)
        return torch.where(self.loss > self.highest_loss, one * float("nan"), one)

    def account(self, norm: float, ids: Sequence[str]) -> bool:
        """Count a step and return whether it was applied; tell of one that was left out.

        Args:
            norm: of the gradients. ids: of this rank's examples.

        Raises:
            UserError: on all ranks, after too many in a row.
        """
        assert self.loss is not None
        position, loss = self.position, float(self.loss)
        highest, usual = self.highest_loss, self.usual_loss
        position.step += 1
        position.stage_step += 1
        if math.isfinite(norm):
            position.updates += 1
            position.loss_mean += max(MEMORY, 1 / position.updates) * (loss - position.loss_mean)
            position.bad = 0
            return True
        position.bad += 1
        everyone = [i for ids_of_rank in gather_objects(list(ids)) for i in ids_of_rank]
        reason = "its loss or gradient is not finite"
        if highest < loss < float("inf"):
            reason = (
                f"its loss is {loss:.3g}, more than "
                f"train.max_loss_ratio={self.settings.max_loss_ratio:g} times the mean {usual:.3g}"
            )
        more = f" and {len(everyone) - NAMED} more" if len(everyone) > NAMED else ""
        sentence = (
            f"step {position.step} was skipped: {reason}; its examples: {', '.join(everyone[:NAMED])}{more}"
        )
        self.tracker.warn(sentence)
        self.tracker.log_event("left_out", step=position.step, reason=reason, loss=repr(loss), ids=everyone)
        most = self.settings.max_bad_steps
        if position.bad >= most:
            raise UserError(
                f"{position.bad} steps in a row were skipped (train.max_bad_steps={most}); "
                f"{self.describe_damaged_weights()}the last: {sentence}"
            )
        return False

    def describe_damaged_weights(self) -> str:
        """Return a clause about weights that no step can be done with, or an empty text.

        A step that is not finite is never applied, so such weights are those that the stage started from.
        """
        if self.position.updates:
            return ""
        name = find_nonfinite_parameter(self.model)
        return f"{name} holds NaN or infinite values: start from undamaged weights; " if name else ""

    def refuse_stage_without_updates(self, stage: str) -> None:
        """Refuse a stage that has come to its end without one applied step: its weights are those of its start.

        Every rank must call it at the same point.

        Raises:
            UserError: on all ranks, naming the likely reason.
        """
        if self.position.updates or not self.position.stage_step:
            return
        reason = self.describe_damaged_weights() or (
            "look at the clips of the examples named above, or try a smaller learning rate or train.precision=no; "
        )
        raise UserError(
            f"stage {stage} has learned nothing: all of its {self.position.stage_step} steps were skipped, because "
            f"their losses or gradients were not finite; {reason.removesuffix('; ')}"
        )
