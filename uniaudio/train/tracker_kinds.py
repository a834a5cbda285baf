"""Kinds of experiment trackers: each takes scalars, the config, tables and sample answers in its own way."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from uniaudio.config.run import RunConfig
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.config.training import TrackerName
from uniaudio.types import SAMPLE_RATE

SAMPLE_COLUMNS = ("set", "question", "right answer", "answer")


@dataclass(frozen=True)
class AnswerSample:
    """An answer of an evaluation to be looked at.

    Args:
        set: name of the evaluation set. clip: ``[S]`` int16 at 16 kHz, None where the question has none.
    """

    set: str
    id: str
    question: str
    reference: str
    answer: str
    clip: NDArray[np.int16] | None

    @property
    def texts(self) -> list[str]:
        """The values of ``SAMPLE_COLUMNS``."""
        return [self.set, self.question, self.reference, self.answer]

    @property
    def caption(self) -> str:
        """What stands beside the sound of the clip."""
        return f"{self.reference} | {self.answer}"


class RunTracker:
    """One tracker of accelerate, of a kind that takes scalars and the config.

    Args:
        config: of the run. run_id: which run of the tracker goes on; None: a new one.
    """

    def __init__(self, name: TrackerName, config: RunConfig, run_id: str | None) -> None:
        self.name, self.config, self.run_dir, self.run_id = name, config, Path(config.output_dir), run_id
        self.is_new = run_id is None
        self.run_name = config.train.run_name or self.run_dir.absolute().name
        self.tracker: Any = None

    def start(self, step: int) -> None:
        """Open the run of the tracker; the training begins or goes on behind ``step``."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # slow to import

        kind = LOGGER_TYPE_TO_CLASS[self.name]
        folder = [str(self.run_dir)] if kind.requires_logging_directory else []
        self.tracker = kind(self.config.train.project, *folder, **self.make_options(step))
        self.tracker.start()
        self.log_config()

    def make_options(self, step: int) -> dict[str, Any]:
        """Return what the tracker is made with besides the project."""
        return {}

    def log_config(self) -> None:
        """Store the resolved config; what came from the environment stays the name of its variable."""
        self.tracker.store_init_configuration(flatten_settings(self.config.resolve_values()))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(scalars), step=step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Store a table; nothing where the tracker has none."""

    def log_samples(self, samples: Sequence[AnswerSample], step: int) -> None:
        """Store answers with their clips, as far as the tracker takes them."""
        self.log_table("answers", SAMPLE_COLUMNS, [sample.texts for sample in samples], step)
        clips = {index: sample for index, sample in enumerate(samples) if sample.clip is not None}
        if clips:
            self.log_clips(clips, step)

    def log_clips(self, samples: Mapping[int, AnswerSample], step: int) -> None:
        """Store the clips of answers, by the number of the answer; nothing where the tracker takes none."""

    def finish(self) -> None:
        self.tracker.finish()

    def describe(self) -> str:
        """Say where the run can be looked at."""
        return f"project {self.config.train.project}"


class TensorBoardTracker(RunTracker):
    """Event files in ``tensorboard/`` of the run folder; rows behind the step of a resume are purged."""

    def start(self, step: int) -> None:
        from accelerate.tracking import TensorBoardTracker as Tracker

        self.clips: set[str] = set()  # whose sound is stored already
        self.tracker = Tracker("tensorboard", str(self.run_dir), purge_step=step + 1)
        self.tracker.start()
        if self.is_new:
            self.log_config()
        self.run_id = "tensorboard"

    def log_config(self) -> None:
        writer = self.tracker.tracker
        writer.add_text("config", f"```yaml\n{dump_yaml(self.config.resolve_values())}```")
        if self.config.train.tags:
            writer.add_text("tags", ", ".join(self.config.train.tags))
        values = flatten_settings(self.config.resolve_values())
        writer.add_hparams({k: v if v is not None else "null" for k, v in values.items()}, {}, run_name=".")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.tracker.tracker.add_text(name, format_markdown_table(columns, rows), step)

    def log_clips(self, samples: Mapping[int, AnswerSample], step: int) -> None:
        for sample in samples.values():
            if sample.clip is not None and sample.id not in self.clips:
                self.clips.add(sample.id)
                wave = sample.clip[None].astype(np.float32) / 32768
                self.tracker.tracker.add_audio(f"clips/{sample.id}", wave, step, SAMPLE_RATE)

    def describe(self) -> str:
        return f"tensorboard --logdir {self.run_dir / 'tensorboard'}"


class WandbTracker(RunTracker):
    """A run of Weights & Biases; ``WANDB_MODE=offline`` keeps it in ``wandb/`` of the run folder."""

    def make_options(self, step: int) -> dict[str, Any]:
        import wandb

        self.run_id = self.run_id or uuid.uuid4().hex[:8]
        settings = wandb.Settings(console="off", silent=True)
        return {
            "id": self.run_id,
            "resume": "allow",
            "name": self.run_name,
            "tags": list(self.config.train.tags),
            "dir": str(self.run_dir),
            "settings": settings,
        }

    def log_config(self) -> None:
        self.tracker.store_init_configuration(self.config.resolve_values())
        run = self.tracker.tracker
        # not its own counter of steps, which cannot go back to that of a checkpoint
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.tracker.log({**scalars, "step": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        data = [list(row) for row in rows]
        self.tracker.log({name: wandb.Table(columns=list(columns), data=data), "step": step})

    def log_clips(self, samples: Mapping[int, AnswerSample], step: int) -> None:
        import wandb

        clips = [wandb.Audio(each.clip, SAMPLE_RATE, caption=each.caption) for each in samples.values()]
        self.tracker.log({"clips": clips, "step": step})

    def describe(self) -> str:
        run = self.tracker.tracker
        # the address of a run that is offline is a warning
        return f"offline; upload with: wandb sync {Path(run.dir).parent}" if run.offline else run.url


class TrackioTracker(RunTracker):
    """A run of trackio, in its database on this machine unless the environment names a Space."""

    def make_options(self, step: int) -> dict[str, Any]:
        self.run_id = self.run_id or self.run_name
        return {
            "name": self.run_id,
            "resume": "never" if self.is_new else "allow",
            "embed": False,
            "config": {"tags": ", ".join(self.config.train.tags)},
        }

    def start(self, step: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # five lines about itself
            super().start(step)
        self.run_id = self.tracker.tracker.name

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import trackio

        table = trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self.tracker.log({name: table}, step=step)

    def log_clips(self, samples: Mapping[int, AnswerSample], step: int) -> None:
        import trackio

        for index, sample in samples.items():
            clip = trackio.Audio(sample.clip, caption=sample.caption, sample_rate=SAMPLE_RATE)
            self.tracker.log({f"clips/{sample.set}/{index}": clip}, step=step)

    def finish(self) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # that of accelerate leaves it to be finished once more when Python ends

    def describe(self) -> str:
        return f'trackio show --project "{self.config.train.project}"'


class MlflowTracker(RunTracker):
    """A run of MLflow; without ``MLFLOW_TRACKING_URI`` in the files of ``mlruns/`` of the working directory."""

    def start(self, step: int) -> None:
        folder = Path("mlruns").absolute().as_uri()
        if os.environ.setdefault("MLFLOW_TRACKING_URI", folder).startswith(("file:", "/", ".")):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database
        super().start(step)
        self.run_id = self.tracker.tracker.info.run_id

    def make_options(self, step: int) -> dict[str, Any]:
        tags = dict.fromkeys(self.config.train.tags, "true")
        return {"run_id": self.run_id, "run_name": self.run_name, "tags": tags}

    def log_config(self) -> None:
        import mlflow

        if self.is_new:  # its parameters can be set once
            values = flatten_settings(self.config.resolve_values())
            longest = mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
            self.tracker.store_init_configuration({k: v for k, v in values.items() if len(str(v)) <= longest})
        mlflow.log_text(dump_yaml(self.config.resolve_values()), "config.yaml")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.tracker.log({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in scalars.items()}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import mlflow

        table = {"columns": list(columns), "data": [list(row) for row in rows]}
        mlflow.log_dict(table, f"{name}/step-{step:06d}.json")

    def log_clips(self, samples: Mapping[int, AnswerSample], step: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for index, sample in samples.items():
                soundfile.write(Path(folder, f"{index}.wav"), sample.clip, SAMPLE_RATE, subtype="PCM_16")
            self.tracker.log_artifacts(folder, f"answers/step-{step:06d}")

    def describe(self) -> str:
        return f"mlflow ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}"


KINDS: dict[str, type[RunTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "mlflow": MlflowTracker,
}


def flatten_settings(values: Any, prefix: str = "") -> dict[str, str | int | float | bool | None]:
    """Return the settings of a config with their paths as names, ``stages.0.steps``."""
    if isinstance(values, Mapping | list) and values:
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        flat = [flatten_settings(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in pairs]
        return {key: value for part in flat for key, value in part.items()}
    plain = values is None or isinstance(values, str | int | float)
    return {prefix: values if plain else str(values)}


def format_markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out a table for TensorBoard's text page."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [
        [str("" if cell is None else cell).replace("|", "\\|").replace("\n", " ") for cell in line]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
