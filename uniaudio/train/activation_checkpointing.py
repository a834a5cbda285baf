"""Which parts of a model make their activations again: their names in the config, and what was chosen for a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.fusion.encoder import list_named_encoders
from uniaudio.units import GIB

DECODER = "decoder"  # beside the names of the encoders


@dataclass(frozen=True)
class Recomputing:
    """What recomputes in a stage, the same on all ranks.

    Args:
        parts: the encoders by name, and ``decoder``; those that the config lets recompute in any case among them.
        needed: bytes that a process is estimated to need so. without: and if only those of the config did; None where
            nothing was estimated.
        limit: bytes that a process may use. more: share of operations that come on top.
        obstacle: why nothing was estimated, where it should have been.
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
            return f"recompute: {parts}; `auto` could not estimate the memory ({self.obstacle})"
        if self.needed is None or self.without is None or self.limit is None:
            return f"recompute: {parts}" if self.parts else ""
        text = f"recompute: {parts}; {self.needed / GIB:.2f} GiB estimated of {self.limit / GIB:.2f} GiB"
        if self.more:
            text += f" ({self.without / GIB:.2f} GiB without, {self.more:.1%} more FLOPs)"
        if not self.fits:
            text += f", which is above the limit; if memory runs out, lower {budget}"
        return text

    def facts(self) -> dict[str, Any]:
        """Return what the metrics keep."""
        facts = {"recompute": list(self.parts)}
        if self.needed is None or self.limit is None:
            return facts
        return facts | {"estimated_gib": self.needed / GIB, "limit_gib": self.limit / GIB}


def get_part(model: AudioLM, config: RunConfig, name: str) -> Any:
    """Return the decoder or an encoder of a model by its name in the config."""
    return model.decoder if name == DECODER else list_named_encoders(config, model.encoder)[name]


def list_parts(config: RunConfig, value: str | bool) -> list[str]:
    """Return the encoders whose ``recompute`` is so, and the decoder if its is."""
    given: dict[str, str | bool] = {name: part.recompute for name, part in config.encoders.items()}
    given[DECODER] = config.decoder.recompute
    return [name for name, setting in given.items() if setting == value]
