"""The untrained encoders that a run is compared with: with the run's settings, and at its best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from uniaudio.build.encoders import find_checkpoint, is_run
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import SOURCE, parse_model_spec, write_model_spec
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.evaluate.probing.suite_table import Reference
from uniaudio.model.encoders.registry import find_family
from uniaudio.model.model_files import RANDOM, RANDOM_WEIGHTS, fetch_model_config, read_model_config
from uniaudio.train.checkpoint.integrity import CONFIG


def find_reference(spec: str, trust: Trust = NO_TRUST) -> Reference | None:
    """Return the untrained encoders of a run: the first one of its config, which is the base of a fusion.

    Returns:
        None for a MODEL that is no run, and for a run whose encoder is a class of the user's own.

    Raises:
        UserError: when the encoder that the run started from cannot be read any more.
    """
    folder = find_checkpoint(parse_model_spec(spec).path, (CONFIG,))
    if folder is None:
        return None
    config = load_stored_run(folder / CONFIG, folder.parent.parent, trust)
    name, settings = next(iter(config.encoders.items()))
    if ":" in settings.kind:
        return None
    return Reference(
        write_model_spec(settings.path, settings), find_spec_at_best(settings, f"encoders.{name}")
    )


def find_spec_at_best(settings: EncoderConfig, where: str) -> str | None:
    """Return the MODEL that reads clips as its authors trained it.

    Returns:
        None for families of which nothing else is known than the settings, for runs and for random weights.
    """
    if is_run(settings.path) or settings.path.startswith(RANDOM):
        return None
    _, family = find_family(settings, where)
    stated = read_model_config(fetch_model_config(settings.path, settings.revision))
    if not family.pretrained_with or RANDOM_WEIGHTS.items() <= stated.items():
        return None
    source = EncoderConfig(path=settings.path, **{name: getattr(settings, name) for name in SOURCE})
    return write_model_spec(settings.path, source, **family.pretrained_with)


def add_references(
    models: Sequence[str], trust: Trust = NO_TRUST, add: bool = True
) -> tuple[list[str], dict[str, Reference]]:
    """Return models with the untrained encoders of the runs among them in front, and those encoders by run.

    An encoder that is among the models under another path keeps that name. A run that another one of them went on with
    is compared with nothing.

    Args:
        add: False: leave the models as they are.
    """
    stated = {model: one for model in models if (one := find_reference(model, trust)) is not None}
    continued = {find_same_model(one.start, models) for one in stated.values() if one.start is not None}
    references: dict[str, Reference] = {}
    added: list[str] = []
    for model, reference in stated.items():
        if model in continued:  # another run went on with it: there it is the start
            continue
        known = {spec: find_same_model(spec, [*models, *added]) for spec in reference.names}
        added += [spec for spec, name in known.items() if name is None and spec not in added]
        references[model] = reference.rename({spec: name for spec, name in known.items() if name is not None})
    return [*(added if add else ()), *models], references


def find_same_model(spec: str, models: Sequence[str]) -> str | None:
    """Return the one of some models that is a MODEL, however its path is written."""
    wanted = identify_model(spec)
    return next((model for model in models if identify_model(model) == wanted), None)


def identify_model(spec: str) -> tuple[str, Mapping[str, object]]:
    """Return a MODEL's folder or name, and its options, for comparison."""
    model = parse_model_spec(spec)
    path = str(Path(model.path).resolve()) if Path(model.path).is_dir() else model.path
    return path, {**model.options, **model.parts}
