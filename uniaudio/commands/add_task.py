"""From a finished run to one with another stage: config, recipe with replay, and the checkpoints to go on from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.config.base_files import read_layers
from uniaudio.config.overrides import apply_overrides
from uniaudio.config.path_variables import allow_environment
from uniaudio.config.records import build
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run, load_stored_run
from uniaudio.config.search_paths import make_portable_name
from uniaudio.config.stages import Stage
from uniaudio.config.strict_yaml import write_yaml
from uniaudio.config.trust import remember_run
from uniaudio.data.labels import OPEN
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.outputs import remove_on_failure
from uniaudio.train.checkpoint.folders import find_stage_ends
from uniaudio.train.checkpoint.integrity import COMPLETE
from uniaudio.train.run_lock import hold_run_folder, refuse_filled_folder, refuse_held_folder

KEPT = ("decoder", "fisher", "metrics.jsonl", "guard.json")  # of the old run, beside its checkpoints


def add_task(
    run: Path,
    recipe: str,
    out: Path,
    steps: int | None,
    replay: float,
    old: Sequence[str],
    overrides: Sequence[str] = (),
) -> Path:
    """Write ``out`` so that ``uniaudio train OUT/config.yaml --resume`` trains the new stage; return the config.

    The new stage is like the last one but for its recipe and steps, and no ``train.max_steps`` of the old run ends it.
    The ends of the old stages go along, so that ``uniaudio forgetting`` tells of all of them.

    Args:
        replay: share of draws that goes to ``old`` recipes, evenly; by default to those of all stages.
        overrides: ``key.sub=value`` of the new stage.

    Raises:
        UserError: when the run is not finished, ``out`` holds anything, or the new stage does not fit.
    """
    refuse_filled_folder(out)
    ends, complaints = find_stage_ends(run, None)
    damage = "".join(f"; {complaint}" for complaint in complaints)
    if not ends:
        raise UserError(
            f"{run} has no finished stage to continue from{damage}; let `uniaudio train` finish one"
        )
    config = load_stored_run(ends[max(ends)] / "config.yaml", run)
    if missing := [stage.name for index, stage in enumerate(config.stages) if index not in ends]:
        raise UserError(
            f"{run}: stage {missing[0]} is not finished, or the checkpoint at its end is damaged{damage}; continue the "
            "run with --resume first, or copy the checkpoint again"
        )
    refuse_held_folder(run)  # what it trains on would be copied while it changes
    out = out.absolute()
    name = load_recipe(recipe).name
    with hold_run_folder(out):
        refuse_filled_folder(out)
        with remove_on_failure(out):
            with allow_environment(config.reads_environment):
                written = write_recipe(recipe, out, replay, old, config)
            stage = make_next_stage(config, name, written, steps, overrides)
            # a cap of the old run would end the new one where that ended
            train = config.train.model_copy(update={"max_steps": None})
            stages = (*config.stages, stage)
            grown = config.model_copy(update={"output_dir": str(out), "stages": stages, "train": train})
            copy_run(run, ends, out)
            grown.save(out / "config.yaml")
            if config.reads_environment:  # of a run made here; others stay somebody else's
                remember_run(out, grown.collect_trust_settings(), config.trust)
            load_run(str(out / "config.yaml"))  # names and numbers are checked as for any config
    return out / "config.yaml"


def copy_run(run: Path, ends: Mapping[int, Path], out: Path) -> None:
    """Copy the checkpoints at the ends of a run's stages, and what belongs beside them."""
    for path in ends.values():
        shutil.copytree(path, out / "checkpoints" / path.name, copy_function=link_or_copy)
    (out / "checkpoints" / "latest").write_text(ends[max(ends)].name + "\n")
    for part in KEPT:
        if (run / part).is_dir():
            shutil.copytree(run / part, out / part)
        elif (run / part).is_file():
            shutil.copy2(run / part, out / part)


def write_recipe(recipe: str, out: Path, replay: float, old: Sequence[str], config: RunConfig) -> str:
    """Return what names the new stage's recipe; with replay it is a new file with the lines of the given one."""
    near = Path.cwd()
    given = make_portable_name("recipe", recipe, near)
    if not replay:
        return given
    olds = [make_portable_name("recipe", name, near) for name in old] or list(
        dict.fromkeys(stage.recipe for stage in config.stages)
    )
    opened = load_recipe(given)
    name = f"{opened.name}_with_replay"
    data = make_portable_lines(opened.path)
    data |= {"recipe": name}
    data["replay"] += [{"recipe": each, "share": replay / len(olds)} for each in olds]
    path = out / f"{name}.yaml"
    write_yaml(path, data)
    load_recipe(str(path))
    return str(path)


def make_portable_lines(path: Path) -> dict[str, Any]:
    """Return what a recipe file says, with names and paths that mean the same in any other folder."""
    near = path.parent.resolve()
    cards = near / "datasets" if (near / "datasets").is_dir() else near
    data = read_layers(path, "recipe")
    for line in (*data["train"], *data.get("evaluate", ())):
        line["dataset"] = make_portable_name("dataset", line["dataset"], cards)
        templates = line["template"]
        names = [
            make_portable_name("template", each, near)
            for each in ([templates] if isinstance(templates, str) else templates)
        ]
        line["template"] = names[0] if isinstance(templates, str) else names
        if "labels" in line:
            line["labels"] = make_portable_labels(line["labels"], near)
    data["replay"] = [
        {**line, "recipe": make_portable_name("recipe", line["recipe"], near)}
        for line in data.get("replay", ())
    ]
    return data


def make_portable_labels(labels: Any, near: Path) -> Any:
    """Return `labels` of a line with full paths of the files that hold them."""
    if isinstance(labels, dict):
        return {column: make_portable_labels(stated, near) for column, stated in labels.items()}
    return str(near / Path(labels).expanduser()) if isinstance(labels, str) and labels != OPEN else labels


def make_next_stage(
    config: RunConfig, name: str, recipe: str, steps: int | None, overrides: Sequence[str]
) -> Stage:
    """Return a stage like the last one with another recipe.

    Raises:
        UserError: for overrides that do not fit.
    """
    data = config.stages[-1].model_dump(mode="json")
    names = [stage.name for stage in config.stages]
    data |= {"name": name if name not in names else f"{name}_{len(names)}", "recipe": recipe}
    if steps is not None:
        data |= {"steps": steps, "hours": None, "warmup": min(data["warmup"], steps)}
    apply_overrides(data, overrides, Stage)
    return build(Stage, json.loads(json.dumps(data)), "add-task --set")


def link_or_copy(source: str, target: str) -> None:
    """Share a file's blocks where the disk can; files of a checkpoint are never changed in place."""
    if Path(source).name == COMPLETE:
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
