"""A recipe by its own name or out of a run config."""

from __future__ import annotations

from pathlib import Path

from uniaudio.config.run import RunConfig, load_run
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.errors import UserError


def open_recipe(name: str) -> tuple[Recipe, RunConfig | None]:
    """Return a recipe, and the run config where ``name`` is one: then the recipe is that of its first stage.

    Raises:
        UserError: when there is neither.
    """
    path = Path(name)
    if path.is_file() and "stages" in load_yaml(path):
        config = load_run(name)
        return load_recipe(config.stages[0].recipe, near=config.folder), config
    try:
        return load_recipe(str(find_file("recipe", name))), None
    except UserError as problem:
        try:
            config = load_run(name)
        except UserError:
            raise problem from None
        return load_recipe(config.stages[0].recipe, near=config.folder), config
