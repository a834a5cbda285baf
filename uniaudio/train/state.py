"""Where a run is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class TrainState:
    """Steps done, in all and in the current stage, and what the stage's numbers depend on.

    Args:
        stage_seconds: audio heard in the stage. updates: steps of the stage that were not left out.
        stream: state of the data. skips: rows left out so far. loss_mean: mean loss of the stage's steps.
        bad: steps left out in a row. balance: state of the adaptive mixture.
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
        """Read what a checkpoint holds."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    def next_stage(self) -> TrainState:
        """Return the beginning of the stage after this one."""
        return TrainState(step=self.step, stage=self.stage + 1, skips=self.skips)
