"""The GPU table in the form of all stored results, so that what moved since the last time can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results import Result, gathered

Row = Mapping[str, Any]
# column of a row -> figure; a row has one value of each, the best of its runs
COLUMNS = {"s": "seconds", "GiB": "peak_gib", "clips/s": "per_second"}
RATIOS = ("seconds", "per_second", "audio_seconds_per_second")  # of a case's sides, whichever they have


def as_result(sections: Mapping[str, Sequence[Row]], machine: Mapping[str, Any], quick: bool) -> Result:
    """Return what two sides of a row were measured at; rows that compare nothing are left out.

    Args:
        sections: of the table, title -> rows. machine: with ``gpu`` where there was one, which then stands for the
            processor.
    """
    cases = {}
    for rows in sections.values():
        for row in rows:
            if runs := sides_of(row):
                shared = [figure for figure in RATIOS if all(figure in side[0] for side in runs.values())]
                cases[row["name"]] = gathered(runs, {"times_faster": shared[0]})
    return {
        "benchmark": "gpu",
        "title": "One GPU",
        "machine": {**machine, "processor": machine.get("gpu", machine["processor"])},
        "quick": quick,
        "quiet": True,
        "settings": {"budget": machine["budget"]},
        "headline": "audio_seconds_per_second",
        "cases": cases,
    }


def sides_of(row: Row) -> dict[str, list[dict[str, float]]]:
    """Return the figures of both sides of a row, the one that is compared with first; nothing where it has no two."""
    if "stock" in row and "ours" in row:
        return {side: [of_a_step(row[side])] for side in ("stock", "ours")}
    off, on = (
        {figure: row[f"{side} {column}"] for column, figure in COLUMNS.items() if f"{side} {column}" in row}
        for side in ("off", "on")
    )
    return {"off": [off], "on": [on]} if off and on else {}


def of_a_step(side: Row) -> dict[str, float]:
    """Return the figures of one side's step; sides differ in clips, so what counts is the rate."""
    return {
        "audio_seconds_per_second": side["hours"],
        "peak_gib": side["peak_gib"],
        "clips": side["clips"],
        "audio_seconds": side["audio_seconds"],
    }
