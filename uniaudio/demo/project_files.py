"""The files of the demo: recipe, dataset cards and run config, such as a user would write by hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniaudio.config.strict_yaml import write_yaml
from uniaudio.errors import UserError
from uniaudio.tiny.checkpoints import save_miniature_whisper
from uniaudio.train.lock_file import LOCK
from uniaudio.train.run_lock import refuse_held_folder

# Set of the corpus -> (shipped template that asks it, weight in the recipe).
TASKS = {
    "sounds": ("environmental_sound", 1.0),
    "instruments": ("instrument", 1.0),
    "digits": ("spoken_digit", 1.0),
    "strings": ("digit_string", 3.0),
}

CONFIG = "demo.yaml"
MADE_HERE = (
    CONFIG,
    *("corpus", "recipe", "whisper", "decoder", "checkpoints", "tensorboard", LOCK, "config.yaml"),
    *("metrics.jsonl", "skipped.jsonl", "trackers.json", "probes.json", "answers.json", "report.html"),
)


def prepare_folder(out: Path) -> None:
    """Make a run folder that holds nothing but an empty config; what an earlier demo left in it is removed.

    Raises:
        UserError: when the folder holds anything that no demo makes, or no demo, or another demo trains in it.
    """
    refuse_held_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    left = [path for path in sorted(out.iterdir()) if not path.name.startswith(".")]
    if left and not (out / CONFIG).is_file():
        raise UserError(f"{out} is not empty and contains no demo; choose another folder with --out")
    if others := [path for path in left if path.name not in MADE_HERE]:
        raise UserError(
            f"{out} contains {others[0].name}, which is not part of a demo; move it, or choose another folder with "
            "--out"
        )
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (out / CONFIG).touch()  # a demo that is interrupted before it has a config is one, too


def write_files(out: Path, corpus: Mapping[str, Path], quick: bool) -> Path:
    """Write a miniature Whisper, the recipe with its cards and the run config; return the config's path."""
    whisper = save_miniature_whisper(out / "whisper", d_model=96, layers=2, heads=4)
    recipe = out / "recipe" / "demo.yaml"
    write_demo_recipe(recipe, corpus)
    config = out / CONFIG
    write_yaml(config, run_config(out, whisper, recipe, quick))
    return config


def write_demo_recipe(recipe: Path, corpus: Mapping[str, Path]) -> None:
    """Write the recipe and, in ``datasets/`` beside it, one card for each set of the corpus."""
    cards = recipe.parent / "datasets"
    cards.mkdir(parents=True, exist_ok=True)
    for name, folder in corpus.items():
        card = {
            "dataset": f"demo_{name}",
            "load": {"jsonl": str(folder.resolve())},
            "license": "CC0-1.0",
            "splits": {split: {"keep": f"split == '{split}'"} for split in ("train", "test")},
        }
        write_yaml(cards / f"demo_{name}.yaml", card)
    pairs = {name: {"dataset": f"demo_{name}", "template": TASKS[name][0]} for name in corpus}
    data = {
        "recipe": recipe.stem,
        "train": [{**pair, "weight": TASKS[name][1]} for name, pair in pairs.items()],
        "evaluate": list(pairs.values()),
    }
    write_yaml(recipe, data)


def run_config(out: Path, whisper: Path, recipe: Path, quick: bool) -> dict[str, Any]:
    """The run config of the demo, as ``uniaudio train`` would read it."""
    steps = 6 if quick else 2600
    text_model = {
        "hidden": 128,
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "intermediate": 256,
        "vocabulary": 512,
    }
    if quick:
        text_model = {
            "hidden": 32,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "intermediate": 64,
            "vocabulary": 300,
        }
    return {
        "output_dir": str(out),
        "encoders": {"whisper": {"path": str(whisper.resolve()), "lr": 1e-3}},
        "adapter": {"rate": 12.5, "lr": 2e-3},
        "decoder": {"miniature": {**text_model, "steps": 20 if quick else 600}},
        "data": {"workers": 0 if quick else 1, "pool": 128},
        "train": {"micro_batches": 1, "log_every": 2 if quick else 20, "save_every": 100_000},
        "stages": [
            {
                "name": "demo",
                "recipe": str(recipe.resolve()),
                "steps": steps,
                "warmup": steps // 20,
                "budget": {"audio_seconds": 14, "per_example": 0.5},
            }
        ],
        "evaluate": {"max_new_tokens": 12, "batch_seconds": 60},
    }
