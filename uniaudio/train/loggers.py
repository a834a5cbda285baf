"""What a run writes while it goes: metrics.jsonl, skipped.jsonl, experiment trackers, and a progress bar."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn

from uniaudio.config.run import RunConfig
from uniaudio.console import WorkProgress, format_duration, format_number, make_console
from uniaudio.errors import UserError, escape_text
from uniaudio.launched_processes import LAUNCH_COMMAND, is_launched
from uniaudio.outputs import replace_text
from uniaudio.run_records import describe_undefined_scores, is_count, parse_record
from uniaudio.train.tracker_kinds import AnswerSample
from uniaudio.train.trackers import ExperimentTrackers, flatten_numbers, list_tracker_names

NARROW = 80  # columns of a terminal that has room for all figures


class Tracker:
    """Records of one run on the main process; on the others every call does nothing.

    Args:
        start_step: steps that are done already; rows after them (of a run that was killed later) are dropped.
        total_steps: what the progress bar counts to; None: nobody knows yet.
        trackers: names the config whose experiment trackers are started; None: none.
    """

    def __init__(
        self,
        run_dir: Path,
        main: bool,
        start_step: int,
        total_steps: int | None,
        trackers: RunConfig | None = None,
    ) -> None:
        self.run_dir, self.main, self.total_steps = run_dir, main, total_steps
        self.metrics = run_dir / "metrics.jsonl"
        self.console = make_console()
        self.experiments: ExperimentTrackers | None = None
        if main:
            run_dir.mkdir(parents=True, exist_ok=True)
            for records in (self.metrics, run_dir / "skipped.jsonl"):
                keep_rows(records, start_step)
        if main and trackers is not None and list_tracker_names(trackers):
            self.experiments = ExperimentTrackers(trackers, start_step, self.warn)
            for sentence in self.experiments.describe():
                self.say(sentence)
        columns = (
            TextColumn("{task.fields[figures]}", markup=False),
            *((TimeElapsedColumn(),) if self.console.width >= NARROW else ()),
            TimeRemainingColumn(),
            TextColumn("{task.fields[waiting]}", markup=False),
        )
        self.bar = WorkProgress(self.console, "steps", main, columns)
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=total_steps, completed=start_step, figures="", waiting=""
        )

    def advance(self) -> None:
        """Count one step."""
        self.bar.advance(self.task)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row of training figures; it needs ``step`` and ``loss``."""
        if not self.main:
            return
        self.write(row)
        loss = "left out" if row["loss"] is None else f"loss {row['loss']:.4f}"
        figures = (
            f"{loss}  {format_number(row.get('audio_seconds_per_second', 0))} audio-s/s  "
            f"data wait {row.get('data_wait_share', 0):.0%}"
        )
        self.bar.update(self.task, description=row.get("stage", "training"), figures=figures)
        if not self.console.is_terminal:
            step = f"step {row['step']}{f'/{self.total_steps}' if self.total_steps else ''}"
            remaining = format_duration(self.bar.tasks[0].time_remaining)
            self.console.print(f"{step}  {figures}  eta {remaining}")
        if self.experiments is not None:
            self.experiments.log(dict(flatten_numbers(row, "train")), row["step"])

    def log_evaluation(
        self, step: int, results: Mapping[str, Mapping[str, Any]], samples: Sequence[AnswerSample]
    ) -> None:
        """Append and print the scores of the evaluation sets; the trackers get some of the answers as well."""
        self.log_event("evaluation", step=step, results=results)
        for name, result in results.items():
            self.say(f"step {step}  {escape_text(name)}  {describe_scores(result)}")
            for note in describe_undefined_scores(name, result):
                self.warn(escape_text(note))
        if self.experiments is not None:
            self.experiments.log_evaluation(results, samples, step)

    @contextmanager
    def show_waiting(self, what: str, plain: bool = False) -> Iterator[None]:
        """Say beside the bar what is being waited for.

        Args:
            plain: say it where there is no terminal as well; for what takes long.
        """
        self.bar.update(self.task, waiting=what)
        if plain and not self.console.is_terminal:
            self.say(what)
        yield
        self.bar.update(self.task, waiting="")

    def say(self, sentence: str, style: str = "") -> None:
        """Print what a person should know now."""
        if self.main:
            self.console.print(sentence, style=style, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print what went wrong and was got over."""
        self.say(sentence, "yellow")

    def log_event(self, name: str, **facts: Any) -> None:
        """Append a row that is no training row: ``{"event": name, ...}``."""
        if self.main:
            self.write({"event": name, **facts})

    def write(self, row: Mapping[str, Any]) -> None:
        append_text(self.metrics, json.dumps(row) + "\n")

    def write_skips(self, step: int, skips: Sequence[Any]) -> None:
        """Append the rows left out in a step to ``skipped.jsonl``; every rank tells of its own, one line each."""
        if skips:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            rows = "".join(json.dumps({"step": step, **asdict(skip)}) + "\n" for skip in skips)
            append_text(self.run_dir / "skipped.jsonl", rows)

    def close(self) -> None:
        """Stop the bar and the trackers."""
        if self.main:  # it ends with an empty line
            self.bar.stop()
        if self.experiments is not None:
            self.experiments.finish()


def append_text(path: Path, text: str) -> None:
    """Append to a file of a run.

    Raises:
        UserError: when the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as problem:
        raise UserError(f"{path} could not be written ({problem}); checkpoints are intact") from problem


def describe_scores(result: Mapping[str, Any]) -> str:
    """Return metric, accuracy by label likelihoods and loss of an evaluation set, where it has them."""
    score = result["score"]
    figures = [f"{result['metric']} undefined" if score is None else f"{result['metric']} {score:.3f}"]
    if labels := result.get("labels"):
        by = result["metric"] if result["metric"] in labels else "accuracy"
        figures.append(f"by label {labels[by]:.3f}")
    if result.get("loss") is not None:
        figures.append(f"loss {result['loss']:.4f}")
    return "  ".join(figures)


def describe_stop(run_dir: Path, step: int) -> str:
    """Say that a run was stopped in order, and the command that continues it."""
    config = shlex.quote(str(run_dir / "config.yaml"))
    command = f"uniaudio train {config} --resume"
    if is_launched():
        launch = os.environ.get(LAUNCH_COMMAND)
        command = "the same command and --resume" if launch is None else launch.format(config)
    return f"stopped at step {step}, saved; continue with: {command}"


def describe_end(config: RunConfig, step: int) -> str:
    """Say where the results of a finished run are, and what comes next."""
    run_dir = Path(config.output_dir)
    folder = shlex.quote(str(run_dir))
    following = [f"uniaudio report {folder}"]
    if not any(":" in each.kind or each.trust_remote_code for each in config.encoders.values()):
        following.append(f"uniaudio export {folder} {shlex.quote(run_dir.name)}_encoder")
    return f"finished at step {step}; results are in {run_dir}; next: {' or '.join(following)}"


def print_finished_run(run_dir: Path, main: bool, step: int) -> None:
    """Say that nothing is left to do; the row that says so is written if a kill came before it."""
    if not main:
        return
    make_console().print(f"{run_dir}: already finished at step {step}", soft_wrap=True)
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else []
    if not any('"finished"' in line for line in lines):
        tracker = Tracker(run_dir, main, step, step)
        tracker.log_event("finished", step=step)
        tracker.close()


def keep_rows(path: Path, last_step: int) -> None:
    """Keep the rows up to a step, so that a continued run does not tell of the same steps twice."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        row = parse_record(line)  # the last line of a killed run is none
        if row is None or not is_count(row.get("step")) or row["step"] > last_step:
            continue
        if row.get("event") != "finished":
            kept.append(line + "\n")
    replace_text(path, "".join(kept))
