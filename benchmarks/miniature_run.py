"""A run config of the smallest size, with all that it names: what is rehearsed on several hosts."""

from __future__ import annotations

from pathlib import Path

from uniaudio.config.run import MiniatureConfig
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.tiny.run_assets import write_clips
from uniaudio.tiny.text_lm import build_text_lm
from uniaudio.tiny.tokenizer import train_tokenizer
from uniaudio.tiny.whisper import save_miniature_whisper

QUESTION = "Which note is it?"


def write_miniature_run(folder: Path, micro_batches: int = 4, steps: int = 4) -> Path:
    """Write clips, models, card, template, recipe and config.

    Returns:
        The config. Its losses are those of any number of processes that divides ``micro_batches``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_clips(folder / "notes", [{"midi": 60 + number % 4} for number in range(64)])
    save_miniature_whisper(folder / "whisper", d_model=32, layers=2)
    tokenizer = train_tokenizer([QUESTION, "60 61 62 63"], 300)
    settings = MiniatureConfig(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    build_text_lm(settings, len(tokenizer), *ends).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    files = {
        "notes": {
            "dataset": "notes",
            "load": {"jsonl": "notes"},
            "license": "CC0-1.0",
            "splits": {"train": {"keep": "split == 'train'"}, "test": {"keep": "split == 'test'"}},
        },
        "note": {
            "task": "note",
            "domain": "music",
            "inputs": ["midi"],
            "prompts": [f"<audio>{QUESTION}"],
            "target": "{{ midi }}",
        },
        "notes_recipe": {
            "recipe": "notes_recipe",
            "train": [{"dataset": "notes", "template": "note"}],
            "evaluate": [{"dataset": "notes", "template": "note"}],
        },
        "run": {
            "output_dir": str(folder / "out"),
            "encoders": {"whisper": {"path": "whisper", "lr": 1e-3}},
            "adapter": {"lr": 1e-3},
            "decoder": {"path": "lm"},
            "data": {"workers": 0, "pool": 16, "log_ids": True},
            "train": {
                "micro_batches": micro_batches,
                "log_every": 1,
                "save_every": 2,
                "keep_last": 10,
                "tensorboard": False,
            },
            "stages": [
                {
                    "name": "one",
                    "recipe": "notes_recipe",
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
