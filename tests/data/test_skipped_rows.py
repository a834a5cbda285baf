"""When too many rows were left out, judged over all ranks."""

import json
from dataclasses import dataclass

import pytest

from uniaudio.data.skipped_rows import Skip, SkipLedger


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
@pytest.mark.parametrize(("lost", "stops"), [(40, False), (60, True)])
def test_the_share_does_not_depend_on_the_number_of_ranks(ranks, lost, stops):
    """Rank 0 alone tells of rows that could not be planned: 4 % or 6 % of 1000, where 5 % are allowed."""
    ledgers = [SkipLedger(0.05) for _ in range(ranks)]
    for index in range(1000 - lost):
        ledgers[index % ranks].add({"tones": 1}, [])
    ledgers[0].add({"tones": lost}, [Skip("tones", "0", "missing file", "")] * lost)
    together = SkipLedger(0.05, *(json.loads(json.dumps(ledger.counts())) for ledger in ledgers))
    assert together.drawn["tones"] == 1000
    assert bool(together.explain_problem()) is stops
    if stops:
        assert together.explain_problem().startswith("tones lost 60 of 1000 rows (60 missing file)")


def test_a_handful_of_rows_is_not_judged():
    ledger = SkipLedger(0.05)
    ledger.add({"tones": 9}, [Skip("tones", "0", "missing file", "")])
    assert ledger.explain_problem() == ""
    ledger.add({"tones": 1}, [])
    assert ledger.explain_problem().startswith("tones lost 1 of 10 rows")


@dataclass
class Notice:
    source: str = "tones"
    kind: str = "anti-phase channels"


def test_notices_are_new_once_for_each_source_and_kind_and_add_up_over_ranks_and_resumes():
    ledger = SkipLedger(0.05)
    first = Notice()
    assert ledger.add({"tones": 3}, [], [first, Notice(), Notice(kind="clipped samples")]) == [
        first,
        Notice(kind="clipped samples"),
    ]
    assert ledger.add({"tones": 1}, [], [Notice()]) == []
    other = SkipLedger(0.05)
    other.add({"tones": 1}, [], [Notice()])
    counts = [json.loads(json.dumps(part.counts())) for part in (ledger, other)]
    together = SkipLedger(0.05, *counts)
    assert together.counts()["notices"] == {"tones": {"anti-phase channels": 4, "clipped samples": 1}}
    assert together.add({}, [], [Notice()]) == []
    assert together.explain_problem() == ""
    del counts[0]["notices"]  # a checkpoint of an earlier version
    assert SkipLedger(0.05, counts[0]).notices == {}


def test_the_first_skip_of_each_reason_is_reported_once_for_every_source():
    ledger = SkipLedger(0.05)
    skips = [Skip("a", str(i), reason, "x") for i, reason in enumerate(["one", "two", "one"])]
    skips.append(Skip("b", "9", "one", ""))
    assert [(skip.source, skip.row) for skip in ledger.find_first_skips(skips)] == [
        ("a", "0"),
        ("a", "1"),
        ("b", "9"),
    ]
    ledger.add({"a": 3}, skips)
    assert ledger.find_first_skips([*skips, Skip("b", "10", "two", "")]) == [Skip("b", "10", "two", "")]
    assert SkipLedger(0.05, ledger.counts()).find_first_skips(skips) == []
    assert (
        skips[0].sentence == "dataset a: row 0 is skipped: one (x); further ones are listed in skipped.jsonl"
    )
