"""Run configs of the smallest size, with all that they name: what is rehearsed on several hosts.

``miniature_run.py notes|sources FOLDER RUN``: write a config, and train it in this process into a run folder.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from uniaudio.config.decoder import MiniatureConfig
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.tiny.checkpoints import save_miniature_whisper
from uniaudio.tiny.run_assets import write_clips
from uniaudio.tiny.text_lm import build_text_lm, train_tokenizer

QUESTION = "Which note is it?"
SOURCES, SHARDS, MANY = 50, 3, 16  # sources and tars of the run of many processes, and its micro-batches
SPLITS = {"train": {"keep": "split == 'train'"}, "test": {"keep": "split == 'test'"}}


def write_run(
    folder: Path, cards: dict[str, Any], steps: int, micro_batches: int, data: dict[str, Any]
) -> Path:
    """Write models, cards, template, recipe and config.

    Args:
        cards: ``load`` of the cards, by name; the last one is drawn as often as ten others. data: settings.

    Returns:
        The config. Its losses are those of any number of processes that divides ``micro_batches``.
    """
    save_miniature_whisper(folder / "whisper", d_model=32, layers=2)
    tokenizer = train_tokenizer([QUESTION, "60 61 62 63"], 300)
    settings = MiniatureConfig(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    build_text_lm(settings, len(tokenizer), *ends).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    for name, load in cards.items():
        card = {"dataset": name, "load": load, "license": "CC0-1.0", "splits": SPLITS}
        (folder / f"{name}.yaml").write_text(dump_yaml(card))
    entries = [{"dataset": name, "template": "note"} for name in cards]
    drawn = [*entries[:-1], {**entries[-1], "weight": 10}]
    files = {
        "note": {
            "task": "note",
            "domain": "music",
            "inputs": ["midi"],
            "prompts": [f"<audio>{QUESTION}"],
            "target": "{{ midi }}",
        },
        "all_notes": {"recipe": "all_notes", "train": drawn, "evaluate": entries[:1]},
        "run": {
            "output_dir": str(folder / "out"),
            "encoders": {"whisper": {"path": "whisper", "lr": 1e-3}},
            "adapter": {"lr": 1e-3},
            "decoder": {"path": "lm"},
            "data": {"workers": 0, "log_ids": True, **data},
            "train": {
                "micro_batches": micro_batches,
                "log_every": 1,
                "save_every": 4,
                "keep_last": 10,
                "tensorboard": False,
            },
            "stages": [
                {
                    "name": "one",
                    "recipe": "all_notes",
                    "steps": steps,
                    "warmup": 1,
                    "budget": {"audio_seconds": 4},
                }
            ],
        },
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(dump_yaml(content))
    return folder / "run.yaml"


def write_notes_run(folder: Path) -> Path:
    """Write a run over one manifest, of four micro-batches in a step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clips(folder / "notes", [{"midi": 60 + number % 4} for number in range(64)])
    return write_run(folder, {"notes": {"jsonl": "notes"}}, 10, 4, {"pool": 16})


def write_sources_run(folder: Path) -> Path:
    """Write a run of 16 micro-batches in a step over 50 manifests and three tars, of which no row comes twice."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clips(folder / "notes", [{"midi": 60 + number % 4} for number in range(64)])
    rows = [json.loads(line) for line in (folder / "notes" / "manifest.jsonl").read_text().splitlines()]
    cards: dict[str, Any] = {}
    for number in range(SOURCES):
        place = folder / f"source_{number:02d}"
        place.mkdir()
        moved = [{**row, "audio": f"../notes/{row['audio']}"} for row in rows]
        (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
        cards[place.name] = {"jsonl": place.name}
    (folder / "tars").mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for row in rows[number::SHARDS]:
                clip = folder / "notes" / row["audio"]
                facts = json.dumps({"midi": row["midi"], "split": row["split"]}).encode()
                member = tarfile.TarInfo(f"{clip.stem}.json")
                member.size = len(facts)
                tar.addfile(member, io.BytesIO(facts))
                tar.add(clip, clip.name)
    cards["tars"] = {"webdataset": "tars"}
    return write_run(folder, cards, 2, MANY, {"pool": 1, "streams": MANY})


if __name__ == "__main__":
    from uniaudio.commands.train import run_training

    kind, folder, run_dir = sys.argv[1:]
    write = {"notes": write_notes_run, "sources": write_sources_run}[kind]
    sys.exit(run_training(load_run(write(Path(folder)), [f"output_dir={run_dir}"]), None))
