"""Paths in a run config: resolved relative to its file, and recipes by names that are found from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.config.path_variables import VARIABLE, expand_path
from uniaudio.config.run import RunConfig
from uniaudio.config.search_paths import make_portable_name
from uniaudio.config.stages import Stage


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

    encoders = {
        name: encoder.model_copy(update={"path": expand_text_path(encoder.path, f"encoders.{name}.path")})
        if encoder.path
        else encoder
        for name, encoder in config.encoders.items()
    }
    decoder = config.decoder.model_copy(
        update={"path": expand_text_path(config.decoder.path, "decoder.path")}
    )
    small = decoder.miniature
    if small is not None and small.extra_texts is not None:
        extra = expand_text_path(small.extra_texts, "decoder.miniature.extra_texts")
        decoder = decoder.model_copy(update={"miniature": small.model_copy(update={"extra_texts": extra})})
    stages = tuple(make_recipes_portable(stage, path.parent) for stage in config.stages)
    guard = config.guard
    if guard is not None:
        sets = {name: expand_text_path(folder, f"guard.sets.{name}") for name, folder in guard.sets.items()}
        guard = guard.model_copy(update={"sets": sets})
    changed = config.model_copy(
        update={"encoders": encoders, "decoder": decoder, "stages": stages, "guard": guard}
    )
    changed._written = texts
    return changed


def make_recipes_portable(stage: Stage, near: Path) -> Stage:
    """Let a stage name its recipes so that they are found from any folder."""
    changes: dict[str, Any] = {"recipe": make_portable_name("recipe", stage.recipe, near)}
    ewc = stage.continual.ewc
    if ewc is not None and ewc.recipe is not None:
        ewc = ewc.model_copy(update={"recipe": make_portable_name("recipe", ewc.recipe, near)})
        changes["continual"] = stage.continual.model_copy(update={"ewc": ewc})
    return stage.model_copy(update=changes)
