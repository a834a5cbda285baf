"""Runs in Python: train one, look at one, and what the commands do with one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from uniaudio.api.models import TrainedModel, load_model
from uniaudio.build.embedder import Embedder, load_embedder
from uniaudio.build.run_config import open_run
from uniaudio.commands.check import check_run
from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.export import export_checkpoint
from uniaudio.commands.probe import run_probe
from uniaudio.commands.report import Wanted, report_runs
from uniaudio.commands.train import run_training
from uniaudio.config.overrides import Overrides
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import Trust
from uniaudio.data.clips_from_python import AudioInput
from uniaudio.distributed import barrier, shutdown_process_group
from uniaudio.errors import UserError, require_number
from uniaudio.launched_processes import end_with_parent, is_launched
from uniaudio.outputs import check_file_option, check_folder_option
from uniaudio.run_records import has_reached_end, list_step_folders, read_metrics
from uniaudio.train.checkpoint.folders import is_complete
from uniaudio.types import SAMPLE_RATE

ConfigInput = str | Path | Mapping[str, Any] | RunConfig


class Run:
    """A run folder: its metrics, and what can be done with its newest checkpoint.

    Args:
        folder: of a run that has begun.

    Raises:
        UserError: when the folder holds no run.

    Example:
        >>> run = uniaudio.Run("runs/birds")
        >>> run.is_finished, run.step
        (True, 6)
        >>> losses = run.metrics[["step", "loss"]]
        >>> scores = run.evaluate()["my_birds:bird_call"]
        >>> scores["examples"]
        20
        >>> answer = run.ask("dog.flac", "Which bird is calling?", max_new_tokens=8)

    Attributes:
        folder: the run folder.
    """

    def __init__(
        self, folder: str | Path, *, trust_remote_code: bool = False, allow_code: bool = False
    ) -> None:
        self.folder = Path(folder).expanduser()
        self._trust = Trust(trust_remote_code, allow_code)
        if not (self.folder / "metrics.jsonl").is_file() and not (self.folder / "checkpoints").is_dir():
            raise UserError(f"{self.folder} is not a run folder: it has no metrics.jsonl")

    @property
    def config(self) -> RunConfig:
        """The resolved config of the run."""
        return load_stored_run(self.folder / "config.yaml", self.folder, self._trust)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of ``metrics.jsonl``: of training, and events such as ``evaluation`` (see docs/formats.md)."""
        return read_metrics(self.folder / "metrics.jsonl")[0]

    @property
    def metrics(self) -> Any:
        """The training rows as a ``pandas.DataFrame``, one for every ``train.log_every`` steps.

        Columns are named by their keys, nested ones as ``tasks/bird_call`` or ``lr/whisper``.
        """
        import pandas

        return pandas.json_normalize([row for row in self.rows if "event" not in row], sep="/")

    @property
    def evaluations(self) -> Any:
        """The evaluations in training (``train.evaluate_every``) as a ``pandas.DataFrame``: one row for a step and set.

        Columns: ``step``, ``set``, ``metric``, ``score`` and the other figures.
        """
        import pandas

        rows = [
            {"step": row["step"], "set": name, **figures}
            for row in self.rows
            if row.get("event") == "evaluation"
            for name, figures in row.get("results", {}).items()
        ]
        return pandas.json_normalize(rows, sep="/")

    @property
    def step(self) -> int:
        """Steps that its rows tell of."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end; otherwise ``uniaudio.train(..., resume=True)`` continues it."""
        return has_reached_end(self.rows)

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of its whole checkpoints, the oldest first; each is a model for ``load_model`` and others."""
        return [path for path in list_step_folders(self.folder / "checkpoints") if is_complete(path)]

    def evaluate(
        self,
        recipe: str | Path | None = None,
        *,
        out: str | Path | None = None,
        max_examples: int | None = None,
        protocol: Literal["own", "xares-llm"] = "own",
        labels: bool = True,
        batch_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Generate and score answers on the evaluation sets of a recipe, as ``uniaudio eval`` does.

        Under a launcher every process must call it; they share the rows.

        Args:
            recipe: default: that of the last stage. out: JSON file to write; ``answers.json`` in the run folder is
                what ``report`` reads. max_examples: rows of each set. labels: score the labels of closed sets, too.

        Returns:
            Results by evaluation set (docs/evaluation-answers.md).

        Raises:
            UserError: as the command.
        """
        if max_examples is not None:
            require_number("max_examples", max_examples)
        if batch_seconds is not None:
            require_number("batch_seconds", batch_seconds, is_whole=False)
        file = check_file_option(to_path(out))
        name = str(self.folder)
        keep_group_until_exit()
        return run_evaluation(
            name,
            None if recipe is None else str(recipe),
            file,
            max_examples,
            protocol,
            labels,
            batch_seconds,
            self._trust,
            keep_group=True,
        )

    def probe(
        self,
        data: Mapping[str, str | Path] | None = None,
        *,
        suite: str | None = None,
        against: str | Path | Sequence[str | Path] = (),
        protocol: Literal["masked", "xares"] = "masked",
        layers: bool = False,
        seeds: int = 3,
        references: bool = True,
        whiten: bool = False,
        out: str | Path | None = None,
    ) -> dict[str, Any]:
        """Train probes on the frozen embeddings of the run's encoder, as ``uniaudio probe`` does.

        Args:
            data: labelled folders by name. suite: in their place, a suite by name or path. against: other models.
            layers: also probe every hidden state. references: also probe the untrained encoder.
            whiten: whiten embeddings first, to see how much of a difference is only the size of features.
            out: JSON file to write; ``probes.json`` in the run folder is what ``report`` reads.

        Returns:
            Scores by task, model and probe under ``scores`` (docs/evaluation-probes.md).

        Raises:
            UserError: as the command.
        """
        require_number("seeds", seeds)
        if not isinstance(data, Mapping | None):
            raise UserError(f"data: give names and folders, such as {{'birds': 'data/birds'}}, not {data!r}")
        folders = [f"{name}={folder}" for name, folder in (data or {}).items()]
        others = [against] if isinstance(against, str | Path) else against
        models = [str(self.folder), *map(str, others)]
        file = check_file_option(to_path(out))
        return run_probe(
            models, folders, suite, protocol, file, seeds, layers, self._trust, references, whiten
        )

    @cached_property
    def model(self) -> TrainedModel:
        """The model of the newest checkpoint, loaded when it is first used."""
        return self.load_model()

    def load_model(self, device: str | torch.device | None = None) -> TrainedModel:
        """Load encoder, adapter and decoder of the newest checkpoint, see ``uniaudio.load_model``."""
        trust = self._trust
        return load_model(self.folder, device, trust_remote_code=trust.remote_code, allow_code=trust.code)

    def load_encoder(self, device: str | torch.device | None = None, *, trainable: bool = False) -> Embedder:
        """Load the encoder of the newest checkpoint, see ``uniaudio.load_encoder``."""
        return load_embedder(str(self.folder), device, None, self._trust, trainable)

    def ask(
        self, audio: AudioInput, text: str, *, sampling_rate: int = SAMPLE_RATE, max_new_tokens: int = 256
    ) -> str:
        """Ask the newest checkpoint a question about a clip, see ``TrainedModel.ask``; the model stays loaded."""
        return self.model.ask(audio, text, sampling_rate=sampling_rate, max_new_tokens=max_new_tokens)

    def export(
        self,
        out: str | Path,
        to: Literal["hf", "xares", "xares-llm", "mteb", "hear", "onnx"] = "hf",
        *,
        push_to_hub: str | None = None,
    ) -> Path:
        """Write the encoder as a transformers model, an entry of a benchmark or an ONNX file, and return its folder.

        Args:
            out: a new folder. push_to_hub: ``OWNER/NAME`` to upload an ``hf`` folder to.

        Raises:
            UserError: as ``uniaudio export``.
        """
        folder = check_folder_option(Path(out))
        assert folder is not None
        export_checkpoint(str(self.folder), folder, to, push_to_hub, self._trust)
        return folder

    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML page of the run, by default ``report.html`` in its folder, and return its path.

        Raises:
            UserError: as ``uniaudio report``.
        """
        return report_runs([self.folder], check_file_option(to_path(out)), Wanted())

    def __repr__(self) -> str:
        state = "finished" if self.is_finished else "not finished"
        return f"Run({str(self.folder)!r}, step {self.step}, {state})"


def keep_group_until_exit() -> None:
    """Let the processes of a launch end their exchange together when the script ends: they can meet only once."""
    atexit.unregister(shutdown_process_group)
    atexit.register(shutdown_process_group)


def to_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def train(
    config: ConfigInput,
    overrides: Overrides = (),
    resume: bool | Literal["auto"] = False,
    callbacks: Sequence[object] = (),
    *,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> Run:
    """Train an encoder as a run config says, in this process or in all that a launcher started; return the run.

    SIGTERM or the first Ctrl-C (in a notebook: interrupting the kernel) saves a checkpoint and returns a run that is
    not finished.

    Args:
        config: a path, a name found in ``configs/``, the content of a config file as a mapping, or a ``RunConfig``.
        overrides: texts ``key.sub=value`` as on the command line, or a mapping of such keys to values.
        resume: ``True`` continues the run in ``output_dir``; ``"auto"`` does if there is one.
        callbacks: objects with any of the methods of ``Callback``.
        trust_remote_code: let Python code that comes with a model run. allow_code: import classes that the config
            names as ``module:Class``.

    Raises:
        UserError: for every mistake that the command ``uniaudio train`` ends with.

    Example:
        >>> run = uniaudio.train("configs/birds.yaml", {"train.max_steps": 2, "output_dir": "runs/short"})
        >>> run
        Run('runs/short', step 2, finished)
        >>> run = uniaudio.train("configs/birds.yaml", ["output_dir=runs/short"], resume=True)
        >>> run.step
        6
    """
    keep_group_until_exit()
    if is_launched():
        end_with_parent(f"process {os.environ.get('RANK', '0')} of a launch")
    if resume not in (True, False, None, "auto"):
        raise UserError(f"resume: {resume!r} is not one of True, False and 'auto'")
    opened = open_run(config, overrides, Trust(trust_remote_code, allow_code))
    run_training(
        opened, "auto" if resume == "auto" else "yes" if resume else None, callbacks, keep_group=True
    )
    barrier()  # the main process writes the last rows that every process reads from the run folder
    return Run(opened.output_dir, trust_remote_code=opened.trust.remote_code, allow_code=opened.trust.code)


def check(
    config: ConfigInput,
    overrides: Overrides = (),
    *,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> None:
    """Find mistakes in a run config and its data without loading a model, and print what ``uniaudio check`` prints.

    Args:
        config, overrides, trust_remote_code, allow_code: as for ``train``; without, what needs code is not looked at.

    Raises:
        UserError: for the first mistake.

    Example:
        >>> uniaudio.check("configs/birds.yaml")
        >>> uniaudio.check("configs/birds.yaml", {"train.max_stesp": 2})
        Traceback (most recent call last):
        uniaudio.errors.UserError: configs/birds.yaml: train.max_stesp: unknown key (did you mean 'max_steps'?)
    """
    check_run(open_run(config, overrides, Trust(trust_remote_code, allow_code)))
