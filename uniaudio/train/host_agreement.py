"""What all processes of a run must have alike: software, config, recipe files, data. Machines differ by accident."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import uniaudio
from uniaudio.config.base_files import read_layers
from uniaudio.config.run import RunConfig
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.mixture import Mixture
from uniaudio.data.recipe import Recipe
from uniaudio.distributed import gather_objects, world_size
from uniaudio.errors import UserError
from uniaudio.train.resume import find_differences

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "numpy", "tokenizers", "safetensors")
SHOWN_DIFFERENCES = 3
# keys of the config that are a matter of each machine; of weights and data the content is compared
OF_A_MACHINE = ("output_dir", "path", "sets", "cache", "workers", "prefetch")


def require_agreement(what: str, facts: Mapping[str, Any], fix: str) -> None:
    """Refuse a run whose processes differ. Every rank must call it at the same point.

    Only a hash of the facts is exchanged as long as all are equal.

    Args:
        what: the facts are about, for the message. facts: plain values. fix: what to do about a difference.

    Raises:
        UserError: on all ranks, naming both machines and both values of what differs.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    if len(set(gather_objects(digest))) == 1:
        return
    first, *others = gather_objects((socket.gethostname(), facts))
    for rank, (host, values) in enumerate(others, 1):
        differences = list(find_differences(first[1], values))
        if not differences:
            continue
        shown = [f"{key} is {there!r} and {here!r}" for key, there, here in differences[:SHOWN_DIFFERENCES]]
        if more := len(differences) - len(shown):
            shown.append(f"and {more} more")
        raise UserError(
            f"{what} of process 0 on {first[0]} and process {rank} on {host} differ: {'; '.join(shown)}; {fix}"
        )


def describe_software() -> dict[str, str]:
    """Return the versions of what computes a run, with the commit and the content of this package."""
    versions = {"python": platform.python_version(), "uniaudio": describe_package()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@cache
def describe_package() -> str:
    """Return version, commit (of a checkout) and a hash of the files of this package."""
    folder = Path(uniaudio.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    commit = ""
    if (folder.parent / ".git").exists() and shutil.which("git"):
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        commit = f", commit {done.stdout.strip()}" if done.returncode == 0 else ""
    return f"{uniaudio.__version__}{commit}, files {digest.hexdigest()[:8]}"


def describe_config(config: RunConfig) -> dict[str, Any]:
    """Return a config without what may be another on each machine."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: strip(item) for key, item in value.items() if key not in OF_A_MACHINE}
            recipe = kept.get("recipe")  # may be a path
            return {**kept, "recipe": Path(recipe).stem} if isinstance(recipe, str) else kept
        return [strip(item) for item in value] if isinstance(value, list) else value

    values: dict[str, Any] = strip(config.resolve_values())
    return values


def describe_recipes(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Return what the files of recipes, templates and cards say, by their names; not where the data lie."""
    files: dict[str, Any] = {}
    for recipe in recipes:
        files[f"recipe {recipe.path.name}"] = load_yaml(recipe.path)
        for entry in (*recipe.train, *recipe.evaluate):
            card = read_layers(entry.dataset.path, "dataset")
            files[f"card {entry.dataset.path.name}"] = {k: v for k, v in card.items() if k != "load"}
            for template in entry.templates:
                files[f"template {template.path.name}"] = load_yaml(template.path)
    return files


def require_same_run(config: RunConfig, recipes: Sequence[Recipe], accelerator: Accelerator) -> None:
    """Refuse processes of another engine, with other software, another config or other files of a recipe.

    Raises:
        UserError: on all ranks, see ``require_agreement``.
    """
    if world_size() == 1:
        return
    plugin = accelerator.state.deepspeed_plugin
    engine = accelerator.distributed_type.value
    facts = {
        "engine": engine if plugin is None else f"{engine} ZeRO-{plugin.zero_stage}",
        "software": describe_software(),
        "config": describe_config(config),
        "files": describe_recipes(recipes),
    }
    require_agreement("the starts", facts, "use the same on all machines")


def require_same_weights(bases: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse processes that start from other weights."""
    facts = {part: {key: text for key, text in base.items() if key != "path"} for part, base in bases.items()}
    require_agreement("the starting weights", facts, "copy the weights of one machine to the others")


def require_same_data(mixture: Mixture) -> None:
    """Refuse processes whose data differ: rows, their order, used columns, shards. The audio itself is not read."""
    facts = {
        entry.name: {"rows": source.size, "content": mixture.source_fingerprints[entry.name]}
        for entry, source in zip(mixture.recipe.train, mixture.sources, strict=True)
    }
    require_agreement("the data", facts, "copy the data of one machine to the others")
