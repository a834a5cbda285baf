"""How long a GPU waits for its data: full steps over FLAC files that worker processes read, decode and pack."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_models import Clips, answer_length, clips_of, new_engine, new_model, our_step
from gpu_timing import Setting, free

from uniaudio.model.audio_lm import AudioLM
from uniaudio.types import Batch

Row = dict[str, Any]
WORKERS, PREFETCH = 8, 2
STEPS = 4  # for every run of another row
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
QUESTION = "What is said?"
VOCABULARY = 400


def waiting_for_data(setting: Setting) -> Iterator[Row]:
    """Yield the share of the time in which the step waits for the loader of a run, its first steps left out."""
    try:
        from corpus import encoded

        from uniaudio.config.strict_yaml import dump_yaml
        from uniaudio.data.loader import make_loader
        from uniaudio.data.mixture import Mixture
        from uniaudio.data.prompt_tokens import ChatFormat
        from uniaudio.data.recipe import load_recipe
        from uniaudio.data.sources.source_kinds import open_source
        from uniaudio.tiny.text_lm import train_tokenizer
    except ImportError as absent:
        yield {"name": "waiting for data", "verdict": f"left out: needs {absent.name}"}
        return
    free(setting.device)
    model = new_model(setting, setting.decoders[0])
    clips = clips_of("mix", setting.budget, model.decoder.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        for index, seconds in enumerate(clips.lengths):
            (Path(folder) / f"{index}.flac").write_bytes(encoded(seconds, "FLAC", index))
        for name, text in described(clips).items():
            (Path(folder) / name).write_text(text if isinstance(text, str) else dump_yaml(text))
        recipe = load_recipe(str(Path(folder) / "only.yaml"))
        workers = min(WORKERS, max(1, (os.cpu_count() or 1) - 1))
        mixture = Mixture(
            recipe=recipe,
            sources=[open_source(entry.dataset, entry.split) for entry in recipe.train],
            format=ChatFormat(train_tokenizer([QUESTION, *(f" {word}" for word in WORDS)], VOCABULARY)),
            count_slots=model.count_slots,
            seed=0,
            audio_seconds=setting.budget,
            per_example=0.0,
            max_seconds=31.0,
            micro_batches=1,
            streams=workers,
        )
        loader = make_loader(mixture, ("asr",), 0, 1, workers, PREFETCH)
        batches = (step.micro[0] for step in loader)
        yield {
            "name": f"{setting.encoder} + {setting.decoders[0]}, {workers} workers",
            **paced(setting, model, batches),
        }


def described(clips: Clips) -> dict[str, Any]:
    """Return the files of a data set and of a recipe over it; texts have a word for every answer token."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=answer_length(seconds))) for seconds in clips.lengths]
    rows = [
        json.dumps({"audio": f"{index}.flac", "duration": seconds, "text": text})
        for index, (seconds, text) in enumerate(zip(clips.lengths, texts, strict=True))
    ]
    return {
        "manifest.jsonl": "\n".join(rows),
        "clips.yaml": {
            "dataset": "clips",
            "load": {"jsonl": "manifest.jsonl"},
            "license": "none",
            "splits": {"train": {}},
        },
        "asr.yaml": {
            "task": "asr",
            "domain": "speech",
            "inputs": ["text"],
            "prompts": [f"<audio>{QUESTION}"],
            "target": "{{ text }}",
        },
        "only.yaml": {"recipe": "only", "train": [{"dataset": "clips", "template": "asr"}]},
    }


def paced(setting: Setting, model: AudioLM, batches: Iterator[Batch]) -> Row:
    """Take steps over batches as they come; the norm of each step is read, so a step has ended when the next begins."""
    engine = new_engine(setting, model)
    waited = seconds_of_audio = 0.0
    started = time.perf_counter()
    steps = STEPS * setting.runs
    for number in range(setting.warm_up + steps):
        if number == setting.warm_up:
            waited = seconds_of_audio = 0.0
            started = time.perf_counter()
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        our_step(engine, batch, setting.device)()
        seconds_of_audio += batch.audio_seconds
    seconds = time.perf_counter() - started
    return {
        "wait share": waited / seconds,
        "audio-h/GPU-h": seconds_of_audio / seconds,
        "step s": seconds / steps,
    }
