"""A recipe by its name, or that of a run config, run folder or checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from uniaudio.build.encoders import find_checkpoint
from uniaudio.build.model import load_stage_recipes
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run, load_stored_run
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.errors import UserError
from uniaudio.train.checkpoint.folders import resolve_latest
from uniaudio.train.checkpoint.integrity import BASES, CONFIG


@dataclass(frozen=True)
class OpenedRecipe:
    """A recipe and what it came with.

    Args:
        config: the run config whose first stage it is of. checkpoint: the checkpoint's folder that holds the config.
    """

    recipe: Recipe
    config: RunConfig | None = None
    checkpoint: Path | None = None

    @property
    def longest_clip(self) -> float:
        """Seconds of the longest clip that the first stage trains on; infinite for a recipe, which states none."""
        return math.inf if self.config is None else self.config.find_longest_clip(self.config.stages[0])


def open_recipe(name: str) -> OpenedRecipe:
    """Open a recipe, or the recipe of the first stage of a run config, run folder or checkpoint.

    Args:
        name: a path or the name of a file in the folders that are searched.

    Raises:
        UserError: when there is none, or it has mistakes.
    """
    if resolve_latest(Path(name)).is_dir():
        return open_run_recipe(name)
    try:
        path = find_file("recipe", name)
    except UserError as problem:
        try:
            path = find_file("config", name)
        except UserError:
            raise problem from None
    keys = load_yaml(path)
    # a run config has stages or inherits them; a recipe says its name
    if "stages" in keys or ("base" in keys and "recipe" not in keys):
        config = load_run(name)
        return OpenedRecipe(load_recipe(config.stages[0].recipe, near=config.folder), config)
    return OpenedRecipe(load_recipe(str(path)))


def open_run_recipe(name: str) -> OpenedRecipe:
    """Open the recipe of the first stage of a run folder or checkpoint.

    Raises:
        UserError: when the folder holds no checkpoint.
    """
    folder = find_checkpoint(name, (CONFIG, BASES))
    if folder is None:
        raise UserError(
            f"{name} is a folder without a checkpoint; name a recipe, a run config or a run folder"
        )
    config = load_stored_run(folder / CONFIG, folder.parent.parent)
    return OpenedRecipe(load_stage_recipes(config)[0], config, folder)
