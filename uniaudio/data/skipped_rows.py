"""Rows that are left out: the lines of ``skipped.jsonl``, their counts, and when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.data.sources.base import BrokenShardError
from uniaudio.errors import RowError, escape_text

FEWEST = 10  # rows drawn from a source before its share is judged


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
            f"dataset {self.source}: row {self.row} is skipped: {self.reason}{detail}; further ones "
            "are listed in skipped.jsonl"
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


class SkipLedger:
    """Rows drawn and left out by source.

    Every rank keeps its own and only their sum is judged: rank 0 tells of the rows that nobody could plan, while it
    draws no more than its part of the others.

    Args:
        allowed: share of a source's rows that may be left out.
        counts: what to begin with, as ``counts`` returns it.
    """

    def __init__(self, allowed: float, *counts: Mapping[str, Any]) -> None:
        self.allowed = allowed
        self.drawn: Counter[str] = Counter()
        self.reasons: dict[str, Counter[str]] = {}
        self.notices: dict[str, Counter[str]] = {}
        # broken: rows, share of the source, why
        self.shards: dict[str, dict[str, tuple[int, float, str]]] = {}
        for part in counts:
            self.drawn.update(part["drawn"])
            for source, reasons in part["reasons"].items():
                self.reasons.setdefault(source, Counter()).update(reasons)
            for source, shards in part["shards"].items():
                for shard, (rows, share, detail) in shards.items():
                    self.add_shard(source, shard, rows, share, detail)
            for source, kinds in part.get("notices", {}).items():  # checkpoints of earlier versions hold none
                self.notices.setdefault(source, Counter()).update(kinds)

    def add_shard(self, source: str, shard: str, rows: int, share: float, detail: str) -> None:
        """Count a broken shard; what is met again, by another stream or in another epoch, counts once."""
        known = self.shards.setdefault(source, {})
        if shard not in known or known[shard][1] < share:
            known[shard] = (rows, share, detail)

    def report_new_shards(self, known: SkipLedger) -> list[str]:
        """Return a sentence for each broken shard that another ledger does not know, and let it know them."""
        sentences = []
        for source, shards in self.shards.items():
            for shard, (rows, share, detail) in shards.items():
                if shard in known.shards.get(source, {}):
                    continue
                lost = f"about {rows} of its rows" if rows else "all of its rows"
                reason = detail.removeprefix(f"{shard}: ")
                sentences.append(
                    f"dataset {source}: shard {shard} is broken ({reason}): {lost} are lost, {share:.1%} of the dataset"
                )
                known.add_shard(source, shard, rows, share, detail)
        return sentences

    def find_first_skips(self, skips: Sequence[Any]) -> list[Any]:
        """Return of every source the first skip of each reason that was not counted before."""
        first: dict[tuple[str, str], Any] = {}
        for skip in skips:
            if not isinstance(skip, BrokenShard) and skip.reason not in self.reasons.get(skip.source, ()):
                first.setdefault((skip.source, skip.reason), skip)
        return list(first.values())

    def add(self, drawn: Mapping[str, int], skips: Sequence[Any], notices: Sequence[Any] = ()) -> list[Any]:
        """Count the rows of one step; return the notices whose kind is new for their source."""
        self.drawn.update(drawn)
        for skip in skips:
            if isinstance(skip, BrokenShard):
                self.add_shard(skip.source, skip.row, skip.rows, skip.share, skip.detail)
                continue
            self.reasons.setdefault(skip.source, Counter())[skip.reason] += 1
        new = []
        for notice in notices:
            kinds = self.notices.setdefault(notice.source, Counter())
            if notice.kind not in kinds:
                new.append(notice)
            kinds[notice.kind] += 1
        return new

    def counts(self) -> dict[str, Any]:
        """Return plain values: rows drawn by source, left out by source and reason, odd by source and kind, shards."""
        return {
            "drawn": dict(self.drawn),
            "reasons": {source: dict(reasons) for source, reasons in self.reasons.items()},
            "shards": {
                source: {shard: list(facts) for shard, facts in shards.items()}
                for source, shards in self.shards.items()
            },
            "notices": {source: dict(kinds) for source, kinds in self.notices.items()},
        }

    def explain_problem(self) -> str:
        """Return one sentence about the first source that lost too much, or an empty text."""
        for source in sorted({*self.reasons, *self.shards}):
            reasons, shards = self.reasons.get(source, Counter[str]()), self.shards.get(source, {})
            lost, drawn = sum(reasons.values()), self.drawn[source]
            lost_share = lost / drawn if drawn >= FEWEST else 0.0
            shard_share = sum(share for _, share, _ in shards.values())
            if shards and lost_share + shard_share > self.allowed:
                unread = sum(rows for rows, _, _ in shards.values())
                first, (_, _, detail) = next(iter(shards.items()))
                reason = detail.removeprefix(f"{first}: ")
                amount = f"{min(shard_share, 1.0):.1%} of the dataset"
                if unread:  # of shards that gave no row, nobody knows how many they have
                    amount = f"about {unread} rows, {amount},"
                return (
                    f"{source} lost {amount} in {len(shards)} broken shard(s) (the first is {first}: {reason}) and "
                    f"{lost} of {drawn} other rows, more than data.max_skipped_share={self.allowed:g} allows; "
                    "skipped.jsonl names them"
                )
            if drawn >= FEWEST and lost > self.allowed * drawn:
                listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
                return (
                    f"{source} lost {lost} of {drawn} rows ({listed}), more than data.max_skipped_share="
                    f"{self.allowed:g} allows; skipped.jsonl names them"
                )
        return ""
