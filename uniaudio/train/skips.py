"""Counts of the rows that were left out, and when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FEWEST = 10  # rows drawn from a source before its share is judged


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
        for part in counts:
            self.drawn.update(part["drawn"])
            for source, reasons in part["reasons"].items():
                self.reasons.setdefault(source, Counter()).update(reasons)
            for source, kinds in part.get("notices", {}).items():  # checkpoints of earlier versions hold none
                self.notices.setdefault(source, Counter()).update(kinds)

    def first_skips(self, skips: Sequence[Any]) -> list[Any]:
        """Return of every source the first skip of each reason that was not counted before."""
        first: dict[tuple[str, str], Any] = {}
        for skip in skips:
            if skip.reason not in self.reasons.get(skip.source, ()):
                first.setdefault((skip.source, skip.reason), skip)
        return list(first.values())

    def add(self, drawn: Mapping[str, int], skips: Sequence[Any], notices: Sequence[Any] = ()) -> list[Any]:
        """Count the rows of one step; return the notices whose kind is new for their source."""
        self.drawn.update(drawn)
        for skip in skips:
            self.reasons.setdefault(skip.source, Counter())[skip.reason] += 1
        new = []
        for notice in notices:
            kinds = self.notices.setdefault(notice.source, Counter())
            if notice.kind not in kinds:
                new.append(notice)
            kinds[notice.kind] += 1
        return new

    def counts(self) -> dict[str, Any]:
        """Return plain values: rows ``drawn`` by source, left out by source and reason, odd by source and kind."""
        return {
            "drawn": dict(self.drawn),
            "reasons": {source: dict(reasons) for source, reasons in self.reasons.items()},
            "notices": {source: dict(kinds) for source, kinds in self.notices.items()},
        }

    def complaint(self) -> str:
        """Return one sentence about the first source that lost too much, or an empty text."""
        for source, reasons in sorted(self.reasons.items()):
            lost, drawn = sum(reasons.values()), self.drawn[source]
            if drawn >= FEWEST and lost > self.allowed * drawn:
                listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
                return (
                    f"{source} lost {lost} of {drawn} rows ({listed}), more than data.max_skipped_share="
                    f"{self.allowed:g} allows; skipped.jsonl names them"
                )
        return ""
