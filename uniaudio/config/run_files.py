"""Reading run configs: from a file with its bases and overrides, plain values or a run folder; their paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniaudio.config.base_files import lay_over_base, read_layers
from uniaudio.config.overrides import Overrides, apply_overrides
from uniaudio.config.path_variables import VARIABLE, allow_environment, expand_path
from uniaudio.config.records import build
from uniaudio.config.run import RunConfig
from uniaudio.config.search_paths import find_file, make_portable_name
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.config.trust import NO_TRUST, Trust, read_remembered_trust
from uniaudio.errors import UserError

MINI = "+mini"  # among the overrides: the config's miniature variant


def expand_paths(config: RunConfig, path: Path, environment: bool = True, name: str = "") -> RunConfig:
    """Resolve paths and recipes relative to the config file: a saved config means the same elsewhere.

    Args:
        environment: whether paths through environment variables are resolved too, rather than left as they are.
        name: how messages call the file; default its path.
    """
    texts: dict[str, str] = {}
    name = name or str(path)

    def expand_text_path(text: str, key: str) -> str:
        if VARIABLE.search(text) is None:
            return expand_path(text, path.parent, f"{name}: {key}")
        if not environment:
            return text
        resolved = expand_path(text, path.parent, f"{name}: {key}")
        texts[resolved] = text
        return resolved

    values = config.model_dump(mode="json")
    for key, encoder in values["encoders"].items():
        if encoder["path"]:
            encoder["path"] = expand_text_path(encoder["path"], f"encoders.{key}.path")
    decoder, guard = values["decoder"], values["guard"]
    decoder["path"] = expand_text_path(decoder["path"], "decoder.path")
    small = decoder["miniature"]
    if small is not None and small["extra_texts"] is not None:
        small["extra_texts"] = expand_text_path(small["extra_texts"], "decoder.miniature.extra_texts")
    for stage in values["stages"]:
        for part in (stage, stage["continual"]["ewc"] or {}):
            if part.get("recipe") is not None:
                part["recipe"] = make_portable_name("recipe", part["recipe"], path.parent)
    for key, folder in ({} if guard is None else guard["sets"]).items():
        guard["sets"][key] = expand_text_path(folder, f"guard.sets.{key}")
    changed = RunConfig.model_validate(values)
    changed._written = texts
    return changed


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


def make_plain(value: Any, key: str = "") -> Any:
    """Return nested values as YAML could hold them: paths as text, tuples as lists, numbers and arrays of numpy too.

    Args:
        key: where the value stands, for messages.

    Raises:
        UserError: for a value of another kind, such as a dtype of torch.
    """
    if isinstance(value, Mapping):
        return {str(name): make_plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item, f"{key}.{index}") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, str | int | float | list | None):
        raise UserError(f"config: {key.lstrip('.')}: give text, numbers, lists or mappings, not {value!r}")
    return value


def build_run(data: dict[str, Any], path: Path, overrides: Overrides, trust: Trust) -> RunConfig:
    """Return the run config of what a file says, and of overrides; see ``load_run``.

    Args:
        data: changed in place. path: of the file.
    """
    apply_overrides(
        data,
        make_plain(overrides) if isinstance(overrides, Mapping) else overrides,
        RunConfig,
    )
    if isinstance(data.get("adapter"), dict):
        data["adapter"].setdefault("kind", "stack")
    name = str(path) if path.is_file() else path.name
    config = expand_paths(build(RunConfig, data, name), path, name=name)
    stated = config.output_dir
    if stated.startswith("${"):
        output_dir = expand_path(stated, path.parent, f"{name}: output_dir")
        config._written[output_dir] = stated
    else:
        output_dir = os.path.expanduser(stated)  # relative to the working directory, not to the file
    config = config.model_copy(update={"output_dir": output_dir})
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
