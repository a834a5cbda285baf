"""A recipe by its name, or that of a run config, run folder or checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from uniaudio.build.encoders import find_checkpoint
from uniaudio.build.model import load_stage_recipes
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run, load_stored_run
from uniaudio.config.search_paths import find_recipe_or_config
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
        name: a path or the name of a file in the folders that are searched. A folder of that name that holds no
            checkpoint, such as one with clips, does not hide the file.

    Raises:
        UserError: when there is none, or it has mistakes.
    """
    is_folder = resolve_latest(Path(name)).is_dir()
    if is_folder and (checkpoint := find_checkpoint(name, (CONFIG, BASES))) is not None:
        config = load_stored_run(checkpoint / CONFIG, checkpoint.parent.parent)
        return OpenedRecipe(load_stage_recipes(config)[0], config, checkpoint)
    try:
        path = find_recipe_or_config(name)
    except UserError:
        if is_folder:
            raise UserError(
                f"{name} is a folder without a checkpoint; name a recipe, a run config or a run folder"
            ) from None
        raise
    keys = load_yaml(path)
    # a run config has stages or inherits them; a recipe says its name
    if "stages" in keys or ("base" in keys and "recipe" not in keys):
        config = load_run(path)
        return OpenedRecipe(load_recipe(config.stages[0].recipe, near=config.folder), config)
    return OpenedRecipe(load_recipe(str(path)))
