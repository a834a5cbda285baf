"""Reading run configs: from a file with its bases and overrides, from plain values, and from a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniaudio.config.overrides import Overrides, apply_overrides, lay_over_base, read_layers
from uniaudio.config.path_variables import allow_environment
from uniaudio.config.records import build
from uniaudio.config.run import RunConfig
from uniaudio.config.run_paths import expand_paths
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.config.trust import NO_TRUST, Trust, read_remembered_trust

MINI = "+mini"  # among the overrides: the config's miniature variant


def load_run(path_or_name: str | Path, overrides: Overrides = (), trust: Trust = NO_TRUST) -> RunConfig:
    """Read a run config, its bases and the overrides ``key.sub=value``; ``+mini`` takes ``mini/NAME.yaml`` beside it.

    Args:
        trust: what the user allows; what was allowed to the run in its ``output_dir`` before is added.

    Raises:
        UserError: naming file and key.
    """
    path = find_file("config", str(path_or_name))
    if MINI in overrides:
        path = find_file("config", str(path.parent / "mini" / path.name))
        overrides = [override for override in overrides if override != MINI]
    data = read_layers(path, "config")
    folder = "runs/mini" if path.parent.name == "mini" else "runs"
    return build_run({"output_dir": f"{folder}/{path.stem}", **data}, path, overrides, trust)


def parse_run(
    values: Mapping[str, Any], folder: Path, overrides: Overrides = (), trust: Trust = NO_TRUST
) -> RunConfig:
    """Make a run config of plain values, as a file would hold them; see ``load_run``.

    Args:
        folder: in which relative paths and names are looked up first.

    Raises:
        UserError: naming the key.
    """
    path = folder / "config"  # no file: messages say "config: key"
    return build_run(lay_over_base(make_plain(values), path, "config"), path, overrides, trust)


def make_plain(value: Any) -> Any:
    """Return nested values as YAML could hold them: paths as text, tuples as lists, numbers of numpy as numbers."""
    if isinstance(value, Mapping):
        return {str(key): make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def build_run(data: dict[str, Any], path: Path, overrides: Overrides, trust: Trust) -> RunConfig:
    """Return the run config of what a file says, and of overrides; see ``load_run``.

    Args:
        data: changed in place. path: of the file.
    """
    apply_overrides(
        data,
        make_plain(overrides) if isinstance(overrides, Mapping) else overrides,
        list(RunConfig.model_fields),
    )
    if isinstance(data.get("adapter"), dict):
        data["adapter"].setdefault("kind", "stack")
    name = str(path) if path.is_file() else path.name
    config = expand_paths(build(RunConfig, data, name), path, name=name)
    config = config.model_copy(update={"output_dir": os.path.expanduser(config.output_dir)})
    config._folder = path.parent
    config._trust = trust | (
        read_remembered_trust(Path(config.output_dir), config.collect_trust_settings()) or NO_TRUST
    )
    return config


def load_stored_run(file: Path, run: Path, trust: Trust = NO_TRUST) -> RunConfig:
    """Read the ``config.yaml`` that a run or a checkpoint stored, which may be somebody else's.

    ``${env:NAME}`` is resolved in it, and in the recipes and cards that it names, for runs made on this machine alone.

    Args:
        run: the run folder. trust: what the user allows; what was allowed to this very run before is added.

    Raises:
        UserError: naming file and key.
    """
    stored = build(RunConfig, load_yaml(file), str(file))
    written = expand_paths(stored, file, environment=False)
    known = read_remembered_trust(run, written.collect_trust_settings())
    with allow_environment(known is not None):
        config = expand_paths(stored, file)
    config._folder = file.parent
    config._trust = trust | (known or NO_TRUST)
    config._reads_environment = known is not None
    return config
