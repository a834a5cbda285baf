"""Clips that are used although something about them is odd: counted by source and kind, told once for each."""

from __future__ import annotations

from dataclasses import dataclass

ANTI_PHASE = "anti-phase channels"
CLIPPED = "clipped samples"
ADVICE = {
    ANTI_PHASE: "their mean is silent, so the loudest channel is taken",
    CLIPPED: "more than one sample in a hundred is louder than full scale and was limited to it",
}


@dataclass(frozen=True)
class ClipNotice:
    """A clip that is used, and what a person should know about it.

    Args:
        source: name of the dataset. row: key of the row. kind: short, stable, countable.
    """

    source: str
    row: str
    kind: str

    @property
    def sentence(self) -> str:
        """Say it of the first such clip of a source."""
        return (
            f"dataset {self.source}: {self.kind} in row {self.row}: {ADVICE.get(self.kind, 'the clip is odd')} "
            f"(further ones are counted in metrics.jsonl at each checkpoint)"
        )
