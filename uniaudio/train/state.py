"""Where a run is, and whether its stage or its cap of steps ends there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.units import SECONDS_PER_HOUR


@dataclass
class TrainState:
    """Steps done, in all and in the current stage, and what the stage's numbers depend on.

    Args:
        stage_seconds: audio heard in the stage. updates: steps of the stage that were not left out.
        stream: state of the data. skips: rows left out so far. loss_mean: moving average of the
            losses of the stage's steps. bad: steps left out in a row.
        balance: state of the adaptive mixture.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stage_seconds: float = 0.0
    updates: int = 0
    stream: dict[str, Any] | None = None
    skips: dict[str, Any] | None = None
    loss_mean: float = 0.0
    bad: int = 0
    balance: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the step, which a checkpoint states itself."""
        values = asdict(self)
        del values["step"]
        return values

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrainState:
        """Read what a checkpoint holds.

        Raises:
            UserError: when it lacks something.
        """
        if missing := [field.name for field in fields(cls) if field.name not in state]:
            raise UserError(
                f"the state of the checkpoint does not hold {missing[0]}; start a new run from its weights"
            )
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    def next_stage(self) -> TrainState:
        """Return the beginning of the stage after this one."""
        return TrainState(step=self.step, stage=self.stage + 1, skips=self.skips)

    @property
    def stage_start(self) -> int:
        """Steps of the run that were done when the stage began; a checkpoint of them ends the stage before."""
        return self.step - self.stage_step

    def compute_share_of_hours(self, stage: Stage) -> float:
        """Return the share of the stage's hours of audio that it was trained on; 0 where steps end it."""
        return self.stage_seconds / SECONDS_PER_HOUR / stage.hours if stage.hours else 0.0

    def has_finished(self, stage: Stage) -> bool:
        """Return whether the stage came to its own end, by its steps or its hours."""
        if stage.steps is not None:
            return self.stage_step >= stage.steps
        return self.compute_share_of_hours(stage) >= 1

    def is_at_cap(self, config: RunConfig) -> bool:
        """Return whether ``train.max_steps`` ends the run here; a resumed run may be beyond it already."""
        most = config.train.max_steps
        return most is not None and self.step >= most
