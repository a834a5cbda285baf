"""A frozen encoder whose frames are kept on disk: an epoch without that, the first one with it, and a later one.

    python benchmarks/bench_features.py [--quick] [--out FILE.json]

The run of ``bench_run.py`` with its audio tower frozen, so that only the adapter is trained in front of the frozen
decoder: FLAC clips of the mix of lengths, one worker, one process, float32.

computed       the encoder runs on every clip
first epoch    frames are written to disk beside the steps
later epochs   all frames are known: nothing of the encoder runs

``seconds_per_clip`` counts from the first request for data to the last update. The three must give the same loss.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import bench_run
from measure import Benchmark, Run, main

CASE = "mix"
COMPUTED, FIRST, LATER = "computed", "first epoch", "later epochs"
KNOWN = "known"  # folder of a cache that holds all clips
FROZEN = ["encoders.tower.train=frozen"]
CACHED = [*FROZEN, "encoders.tower.cache=true"]


def prepare(folder: Path, quick: bool) -> None:
    """Write the clips and models of ``bench_run.py``, and run once to fill a cache."""
    bench_run.prepare(folder, quick)
    facts = json.loads((folder / "facts.json").read_text())
    os.environ["UNIAUDIO_CACHE"] = str(folder / KNOWN)
    bench_run.ours(Run(CASE, FIRST, quick, 1, folder, folder), facts, CACHED)
    del os.environ["UNIAUDIO_CACHE"]
    kept = len(list((folder / KNOWN).glob("features/*/*/*")))
    if kept != facts["clips"]:
        raise SystemExit(f"{kept} of {facts['clips']} clips were kept: is there room in {folder}?")


def figures(run: Run) -> dict[str, float]:
    """Train one side over all clips."""
    facts = json.loads((run.shared / "facts.json").read_text())
    os.environ["UNIAUDIO_CACHE"] = str(run.shared / KNOWN if run.side == LATER else run.scratch / KNOWN)
    return bench_run.ours(run, facts, FROZEN if run.side == COMPUTED else CACHED)


if __name__ == "__main__":
    main(
        Benchmark(
            name="features",
            title="Frames of a frozen encoder: computed, or kept on disk",
            cases={CASE: (COMPUTED, FIRST, LATER)},
            figures=figures,
            headline="seconds_per_clip",
            ratios={"times_faster": "seconds_per_clip"},
            same={CASE: (COMPUTED, FIRST, LATER)},
            prepare=prepare,
        )
    )
