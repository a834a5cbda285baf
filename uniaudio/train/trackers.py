"""Experiment tracking through accelerate's trackers: which ones a run has, and one call for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.config.training import TrackerName
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.extras import has_package, require_package
from uniaudio.outputs import write_json
from uniaudio.train.tracker_kinds import KINDS, AnswerSample, RunTracker

RUN_IDS = "trackers.json"  # in the run folder: which run of each tracker a resumed run continues


def list_tracker_names(config: RunConfig) -> list[TrackerName]:
    """Return the trackers of a run; ``train.tensorboard`` stands for one of them where its package is installed."""
    board: list[TrackerName] = ["tensorboard"]
    names = board if config.train.tensorboard and has_package("tensorboard") else []
    return list(dict.fromkeys([*names, *config.train.trackers]))


def refuse_missing_trackers(config: RunConfig) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        UserError: naming the extra.
    """
    for name in config.train.trackers:
        require_package(name, f"train.trackers: {name}")


class ExperimentTrackers:
    """All trackers of a run, on its main process; one that fails later is left out with a warning.

    Args:
        step: behind which the run begins or goes on. warn: takes a sentence.

    Raises:
        UserError: when a tracker cannot be started.
    """

    def __init__(self, config: RunConfig, step: int, warn: Callable[[str], None]) -> None:
        self.warn = warn
        file = Path(config.output_dir) / RUN_IDS
        ids = read_run_ids(file) if step else {}
        self.trackers: list[RunTracker] = []
        for name in list_tracker_names(config):
            tracker = KINDS.get(name, RunTracker)(name, config, ids.get(name))
            fix = "fix it, or remove it from train.trackers"
            with convert_to_user_error(f"train.trackers: {name} could not be started", fix):
                tracker.start(step)
            self.trackers.append(tracker)
            if tracker.run_id is not None:
                ids[name] = tracker.run_id
        if ids:
            write_json(file, ids)

    def describe(self) -> list[str]:
        """Return for each tracker where the run can be looked at."""
        return [f"{tracker.name}: {tracker.describe()}" for tracker in self.trackers]

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        self.call_all(lambda tracker: tracker.log(scalars, step))

    def log_evaluation(
        self, results: Mapping[str, Mapping[str, Any]], samples: Sequence[AnswerSample], step: int
    ) -> None:
        """Log the scores of an evaluation as numbers and as a table, and some of its answers."""
        columns = ("set", "metric", "score", "low", "high", "right", "loss", "rows")
        rows = [
            [name, r.get("metric"), r.get("score"), *(r.get("interval") or (None, None))]
            + [r.get(key) for key in ("right", "loss", "examples")]
            for name, r in results.items()
        ]
        scalars = dict(flatten_numbers(results, "evaluation"))

        def log(tracker: RunTracker) -> None:
            tracker.log(scalars, step)
            tracker.log_table("evaluation", columns, rows, step)
            if samples:
                tracker.log_samples(samples, step)

        self.call_all(log)

    def call_all(self, work: Callable[[RunTracker], None]) -> None:
        """Call every tracker; training does not end for one that fails."""
        for tracker in tuple(self.trackers):
            try:
                with convert_to_user_error(f"{tracker.name} failed and is not used any more"):
                    work(tracker)
            except UserError as problem:
                self.trackers.remove(tracker)
                self.warn(str(problem))

    def finish(self) -> None:
        """Let every tracker write what it holds."""
        self.call_all(lambda tracker: tracker.finish())
        self.trackers.clear()


def read_run_ids(file: Path) -> dict[str, str]:
    """Return the runs of the trackers by their names; none where the file cannot be read."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in ids.items() if isinstance(v, str)} if isinstance(ids, dict) else {}


def flatten_numbers(row: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    """Return the numbers of a row with their paths as names."""
    pairs: list[tuple[str, float]] = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            pairs += flatten_numbers(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and key != "step":
            pairs.append((f"{prefix}/{key}", float(value)))
    return pairs
