"""The lines of ``skipped.jsonl``: a row that was left out, or the rest of a shard, and why."""

from __future__ import annotations

from dataclasses import dataclass

from uniaudio.data.sources.base import BrokenShardError
from uniaudio.errors import RowError, escape_text


@dataclass(frozen=True)
class Skip:
    """A row that was left out, and why."""

    source: str
    row: str
    reason: str
    detail: str

    @classmethod
    def of(cls, source: str, row: str, problem: RowError) -> Skip:
        """Return what is listed of a row that could not be used."""
        return cls(source, escape_text(problem.key or row), problem.reason, problem.detail)

    @property
    def sentence(self) -> str:
        """Say it of the first row of a source that is left out for this reason."""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"dataset {self.source}: row {self.row} is left out: {self.reason}{detail}; "
            f"further ones are listed in skipped.jsonl"
        )


@dataclass(frozen=True)
class BrokenShard(Skip):
    """The rest of a shard that cannot be read.

    Args:
        rows: of the shard that are lost, estimated; 0 where nothing is known of them. share: of all rows of the source.
    """

    rows: int = 0
    share: float = 0.0

    @classmethod
    def estimate(cls, source: str, shard: str, shards: int, read: int, problem: RowError) -> BrokenShard:
        """Estimate what is lost.

        Where the source has no estimate, the place of the damage is taken as one at random: on average as many rows lie
        behind it as before it. Where nothing lies before it, the shard counts as one of all, as if all were alike.

        Args:
            shards: of the source. read: rows of the shard before the damage.
        """
        cause = problem.__cause__
        lost, total = (cause.lost, cause.total) if isinstance(cause, BrokenShardError) else (None, None)
        if lost is None:
            lost = read
        share = min(1.0, lost / (total or (read + lost) * shards)) if lost else 1 / shards
        return cls(source, escape_text(shard), problem.reason, problem.detail, lost, share)
