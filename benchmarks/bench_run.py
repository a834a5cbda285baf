"""A whole miniature run, files to trained weights: ``uniaudio train`` against the stock transformers way.

    python benchmarks/bench_run.py [--quick] [--out FILE.json]
        [--peer-checkout FOLDER --peer-command "python train.py"]

Both sides read the same parquet files (FLAC clips of the mix of lengths, texts of three words a second), as often, with
one worker, in one process, float32, SDPA attention, AdamW and clipping at 1; eight clips make an optimizer step (on our
side on average, for its steps hold the same seconds of audio). Both train an audio tower of whisper-tiny's size with
frames at 25 per second and what stands behind it, through a frozen Qwen3 of eight small layers under the full
vocabulary; tower and language model begin with the same weights.

Qwen2-Audio   ``Qwen2AudioForConditionalGeneration`` and its processor, ``datasets`` streaming with ``shuffle``,
              soundfile in the worker, clips padded to 30 s, labels of -100 before the answer, logits everywhere; four
              clips at a time, two times a step, for memory
ours          the run that ``uniaudio train`` makes of a config and a recipe. Its adapter is an MLP, the peer's one
              linear map. It also writes its checkpoint, which only the wall time holds

``seconds_per_clip`` counts from the first request for data to the last update; ``wall_seconds`` and the memory of the
largest process are those of the whole command, imports and all.

``--peer-command`` runs in your checkout of any other framework, with the folder of the data in $UNIAUDIO_BENCH_DATA:
train-*.parquet, train-*.tar, both models in tower and lm, and facts.json with clips, epochs and clips of a step.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from corpus import encoded, write_parquet, write_tar
from measure import Benchmark, Run, main
from peer import IGNORED, new_peer, tower_config
from setting import mixed_length
from sizes import Sizes
from torch.utils.data import DataLoader
from transformers import AddedToken, AutoModel, AutoTokenizer, Qwen2AudioProcessor, WhisperFeatureExtractor

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.tiny.text_lm import TURN_END, train_tokenizer
from uniaudio.types import SAMPLE_RATE

SIZES = Sizes()
CASE = "mix"
CLIPS, EPOCHS, SHARDS = 96, 1, 4
QUICK_CLIPS, QUICK_SECONDS = 4, 3.0
STEP_CLIPS = 8  # of an optimizer step
PEER_CLIPS = 4  # at a time
WORKERS = 1
LR = 1e-4
WORDS_PER_SECOND = 3
BUFFER = 64  # rows that are shuffled together
QUESTION = "What is said?"
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")


def prepare(folder: Path, quick: bool) -> None:
    """Write the clips with their texts, both models' parts, and what a run of ours is described by."""
    draw = random.Random(0)
    count = QUICK_CLIPS if quick else CLIPS
    longest = QUICK_SECONDS if quick else 30.0
    seconds = [round(min(mixed_length(draw), longest), 2) for _ in range(count)]
    words = ["".join(draw.choices("aeioumnrst", k=draw.randint(3, 7))) for _ in range(200)]
    texts = [" ".join(draw.choices(words, k=max(2, int(WORDS_PER_SECOND * length)))) for length in seconds]
    clips = [encoded(length, "FLAC", seed) for seed, length in enumerate(seconds)]
    rows = [{"text": text, "duration": length} for text, length in zip(texts, seconds, strict=True)]
    for shard in range(SHARDS):
        name = f"train-{shard:05d}-of-{SHARDS:05d}"
        write_parquet(folder / f"{name}.parquet", clips[shard::SHARDS], rows[shard::SHARDS])
        write_tar(folder / f"{name}.tar", "flac", clips[shard::SHARDS], rows[shard::SHARDS])
    facts = {
        "clips": count,
        "epochs": EPOCHS,
        "clips_per_step": STEP_CLIPS,
        "audio_seconds": sum(seconds),
        "workers": WORKERS,
        "lr": LR,
        "sampling_rate": SAMPLE_RATE,
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    write_models(folder, words)
    write_our_files(folder, sum(seconds), count)


def write_models(folder: Path, words: list[str]) -> None:
    """Write the tower, the language model and its tokenizer, each as transformers stores them."""
    whisper = SIZES.new_encoder()
    tower = AutoModel.from_config(tower_config(whisper))
    tower.load_state_dict(whisper.state_dict())
    tower.save_pretrained(folder / "tower")
    SIZES.new_decoder().save_pretrained(folder / "lm")
    tokenizer = train_tokenizer([QUESTION, *[f" {word}" for word in words] * 3], 2000)
    tokenizer.save_pretrained(folder / "lm")


def write_our_files(folder: Path, seconds: float, count: int) -> None:
    """Write card, template, recipe and run config."""
    card = {
        "dataset": "clips",
        "load": {"parquet": "train-*.parquet"},
        "license": "none",
        "splits": {"train": {}},
    }
    template = {
        "task": "say",
        "domain": "speech",
        "inputs": ["text"],
        "prompts": [f"<audio>{QUESTION}"],
        "target": "{{ text }}",
    }
    recipe = {"recipe": "only", "train": [{"dataset": "clips", "template": "say"}]}
    budget = max(STEP_CLIPS * seconds / count, 30.0)
    run = {
        "encoders": {"tower": {"path": "tower", "lr": LR}},
        "adapter": {"kind": "stack", "rate": 25, "lr": LR},
        "decoder": {"path": "lm"},
        "data": {
            "workers": WORKERS,
            "streams": 1,
            "pool": count,
            "window": BUFFER,
            "max_seconds": 31,
            "log_ids": True,
        },
        "train": {"micro_batches": 1, "log_every": 10**6, "save_every": 10**6, "tensorboard": False},
        "stages": [
            {
                "name": "one",
                "recipe": "only",
                # a little less than all: sums of lengths are rounded
                "hours": (1 - 1e-4) * EPOCHS * seconds / 3600,
                "budget": {"audio_seconds": budget, "per_example": 0},
            }
        ],
    }
    for name, content in (("clips", card), ("say", template), ("only", recipe), ("run", run)):
        (folder / f"{name}.yaml").write_text(dump_yaml(content))


def figures(run: Run) -> dict[str, float]:
    """Train one side over all clips."""
    facts = json.loads((run.shared / "facts.json").read_text())
    return (ours if run.side == "ours" else peer)(run, facts)


def ours(run: Run, facts: dict[str, Any], overrides: Sequence[str] = ()) -> dict[str, float]:
    """Train as ``uniaudio train`` does, and read the run's own records."""
    from uniaudio.commands.train import run_training
    from uniaudio.config.run_files import load_run

    out = run.scratch / "run"
    code = run_training(load_run(run.shared / "run.yaml", [f"output_dir={out}", *overrides]), None)
    if code:
        raise SystemExit(f"the run ended with code {code}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (metrics_row,) = [row for row in rows if "loss" in row]  # one window over the whole run
    clips = sum(len(step) for step in metrics_row["ids"])
    trained_seconds = facts["epochs"] * facts["audio_seconds"]
    seconds = trained_seconds / metrics_row["audio_seconds_per_second"]
    return {
        "clips": clips,
        "steps": len(metrics_row["ids"]),
        "audio_seconds": trained_seconds,
        "seconds_per_clip": seconds / clips,
        "audio_seconds_per_second": metrics_row["audio_seconds_per_second"],
        "data_wait_share": metrics_row["data_wait_share"],
        "loss": metrics_row["loss"],
    }


def peer_processor(folder: Path) -> Qwen2AudioProcessor:
    """Return the stock processor over our tokenizer, which learns the marks of audio."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm", padding_side="right")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in AUDIO_TOKENS])
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)


class PeerCollate:
    """Rows to what the model takes: clips are decoded and padded, texts tokenized, prompts left without labels."""

    def __init__(self, processor: Qwen2AudioProcessor) -> None:
        self.processor = processor
        audio, begin, end = AUDIO_TOKENS
        self.prompt = f"<|im_start|>user\n{begin}{audio}{end}{QUESTION}{TURN_END}\n<|im_start|>assistant\n"

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        waves = [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows]
        answers = [row["text"] + TURN_END for row in rows]
        batch = self.processor(
            text=[self.prompt + answer for answer in answers],
            audio=waves,
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], IGNORED)
        sizes = batch["attention_mask"].sum(1).tolist()
        for row, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
            first = size - len(self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            labels[row, first:size] = batch["input_ids"][row, first:size]
        return {**batch, "labels": labels}


def peer_batches(
    folder: Path, processor: Qwen2AudioProcessor, epochs: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Stream the parquet files with ``datasets``, shuffled anew in every epoch."""
    import datasets

    files = sorted(map(str, folder.glob("train-*.parquet")))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    rows = rows.cast_column("audio", datasets.Audio(decode=False)).shuffle(seed=0, buffer_size=BUFFER)
    loader = DataLoader(
        rows,
        batch_size=PEER_CLIPS,
        num_workers=WORKERS,
        collate_fn=PeerCollate(processor),
        persistent_workers=True,
    )
    for epoch in range(epochs):
        rows.set_epoch(epoch)
        yield from loader


def noting_waits(batches: Iterator[Any], waits: list[float]) -> Iterator[Any]:
    """Pass batches on and note how long each was waited for."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - start)
        if batch is None:
            return
        yield batch


def peer(run: Run, facts: dict[str, Any]) -> dict[str, float]:
    """Train the stock model in a plain loop, as its Trainer would."""
    processor = peer_processor(run.shared)
    model = new_peer(SIZES.new_encoder(), SIZES.new_decoder(), processor.audio_token_id)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR)
    losses: list[float] = []
    waits: list[float] = []
    steps, clips = 0, 0
    batches = noting_waits(peer_batches(run.shared, processor, facts["epochs"]), waits)
    started = time.perf_counter()
    while step := list(islice(batches, STEP_CLIPS // PEER_CLIPS)):
        for batch in step:
            loss = model(**batch, use_cache=False).loss
            (loss / len(step)).backward()
            losses.append(loss.item())
            clips += len(batch["labels"])
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    seconds = time.perf_counter() - started
    trained_seconds = facts["epochs"] * facts["audio_seconds"]
    return {
        "clips": clips,
        "steps": steps,
        "audio_seconds": trained_seconds,
        "seconds_per_clip": seconds / clips,
        "audio_seconds_per_second": trained_seconds / seconds,
        "data_wait_share": sum(waits) / seconds,
        "loss": float(np.mean(losses)),
    }


if __name__ == "__main__":
    main(
        Benchmark(
            name="run",
            title="A whole run: files to trained weights",
            cases={CASE: ("Qwen2-Audio", "ours")},
            figures=figures,
            headline="seconds_per_clip",
            ratios={
                "times_faster": "seconds_per_clip",
                "times_faster_whole": "wall_seconds",
                "times_less_memory": "peak_gib",
            },
            prepare=prepare,
            whole=True,
            checkout=CASE,
        )
    )
