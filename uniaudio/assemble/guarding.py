"""Guarded sets: probed where a run begins and again while it goes."""

from __future__ import annotations

import json
from pathlib import Path

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import GuardConfig
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.evaluate.forgetting import broken_guards
from uniaudio.evaluate.labelled import LabelledSet, load_labelled
from uniaudio.evaluate.table import probe_models
from uniaudio.model.encoders.base import AudioEncoder

REFERENCE = "guard.json"  # in the run folder: the scores where the run began
SEEDS = 3


def guarded_sets(config: RunConfig) -> list[LabelledSet]:
    """Read the guarded sets of a run.

    Raises:
        UserError: when one is no labelled folder.
    """
    if config.guard is None:
        return []
    return [load_labelled(name, Path(folder)) for name, folder in config.guard.sets.items()]


def guard_scores(encoder: AudioEncoder, sets: list[LabelledSet], settings: GuardConfig) -> dict[str, float]:
    """Return the accuracy of the guard's probe on every guarded set."""
    scores = probe_models({"now": encoder}, sets, SEEDS, kinds=(settings.probe,))
    return {name: models["now"][settings.probe]["mean"] for name, models in scores.items()}


def keep_reference(encoder: AudioEncoder, sets: list[LabelledSet], config: RunConfig, run_dir: Path) -> None:
    """Measure the encoder that a run starts from and store its scores."""
    assert config.guard is not None
    run_dir.mkdir(parents=True, exist_ok=True)
    scores = {"probe": config.guard.probe, "scores": guard_scores(encoder, sets, config.guard)}
    (run_dir / REFERENCE).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def read_reference(settings: GuardConfig, run_dir: Path) -> dict[str, float]:
    """Return the scores of the guarded sets where the run began.

    Raises:
        UserError: when they are missing, cannot be read, or are of another probe.
    """
    path = run_dir / REFERENCE
    if not path.is_file():
        raise UserError(f"{path} is missing: guard a run from its start on")
    with convert_to_user_error(f"{path} cannot be read", "leave `guard` out, or start a new run"):
        reference = json.loads(path.read_text(encoding="utf-8"))
        probe, scores = reference["probe"], dict(reference["scores"])
    if probe != settings.probe:
        raise UserError(f"guard.probe is {settings.probe}, but the run began with {probe}")
    return scores


def guard_complaints(
    encoder: AudioEncoder, sets: list[LabelledSet], settings: GuardConfig, run_dir: Path
) -> list[str]:
    """Return a sentence for each guarded set that lost more than the guard allows since the run began.

    Raises:
        UserError: as ``read_reference``.
    """
    reference = read_reference(settings, run_dir)
    known = {name: reference[name] for name in settings.sets if name in reference}
    return broken_guards(known, guard_scores(encoder, sets, settings), settings.max_drop)
