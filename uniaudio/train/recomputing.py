"""What of a stage's model makes its activations again, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uniaudio.units import GIB


@dataclass(frozen=True)
class Recomputing:
    """What recomputes in a stage, the same on all ranks.

    Args:
        parts: the encoders by name, and ``decoder``; those that the config lets recompute in any case among them.
        needed: bytes that a process is reckoned to need so. without: and if only those of the config did; None where
            nothing was reckoned.
        limit: bytes that a process may use. more: share of operations that come on top.
        obstacle: why nothing was reckoned, where it should have been.
    """

    parts: tuple[str, ...] = ()
    needed: float | None = None
    without: float | None = None
    limit: float | None = None
    more: float = 0.0
    obstacle: str = ""

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, by the estimate."""
        return self.needed is None or self.limit is None or self.needed <= self.limit

    def describe(self, budget: str) -> str:
        """Return a sentence for the log; empty where there is nothing to tell.

        Args:
            budget: the key of the setting that makes micro-batches smaller.
        """
        parts = ", ".join(self.parts) or "nothing"
        if self.obstacle:
            return f"recompute: {parts}; what `auto` should do could not be estimated ({self.obstacle})"
        if self.needed is None or self.without is None or self.limit is None:
            return f"recompute: {parts}" if self.parts else ""
        text = f"recompute: {parts}; {self.needed / GIB:.2f} GiB estimated of {self.limit / GIB:.2f} GiB"
        if self.more:
            text += f" ({self.without / GIB:.2f} GiB without, {self.more:.1%} more operations)"
        if not self.fits:
            text += f", which is too much; should the memory not suffice, lower {budget}"
        return text

    def facts(self) -> dict[str, Any]:
        """Return what the metrics keep."""
        facts = {"recompute": list(self.parts)}
        if self.needed is None or self.limit is None:
            return facts
        return facts | {"reckoned_gib": self.needed / GIB, "limit_gib": self.limit / GIB}
