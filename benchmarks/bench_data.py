"""The data engine against the usual ways, over the same files in one run.

    python benchmarks/bench_data.py [--quick] [--out FILE.json] [--work FOLDER]

mix      rows (audio still encoded) out of two small parquet sets that are gone through again and again: ``datasets``
         with ``shuffle``, ``interleave_datasets`` and a DataLoader, against a mixture. The longest wait counts too.
clips    training batches out of tars: a re-implementation of the data path described for xares-llm (a temporary file
         per clip, a sort buffer of 128, batches of four padded to the longest, all in the main process), against our
         loader with one and with two workers.
features the same two up to Whisper's log-mel: transformers' extractor in the main process, every clip padded to 30 s,
         against our mel over the packed batch.
decode   our decoding against soundfile and soxr in a bare loop.
growth   memory of the process after 10,000 and after 100,000 rows of a mixture.
resume   seconds from open sources to the first batch, deep inside a set of a million rows.

Every side runs in a fresh process, A B A B A B; the best of three counts.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measure import machine, wait_for_quiet
from rich.console import Console
from rich.table import Table

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.types import SAMPLE_RATE

SHARDS = 8
SETS = {"short": (1.0, "WAV", 4000), "long": (10.0, "FLAC", 1000)}  # seconds, format, rows
BUFFER = 200  # rows that are shuffled together, on both sides
WORDINGS = ["<audio>What is said?", "Write it down.<audio>"]
RUNS = 3


def encoded(seconds: float, format: str, seed: int, rate: int = SAMPLE_RATE) -> bytes:
    """Return noise as a 16-bit file."""
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(buffer, noise, rate, format=format, subtype="PCM_16")
    return buffer.getvalue()


def write_sets(folder: Path, share: float) -> None:
    """Write both sets as parquet and as tars, with cards, a template and recipes."""
    import pyarrow
    import pyarrow.parquet as pq

    for name, (seconds, format, count) in SETS.items():
        (folder / name).mkdir(parents=True)
        clips = [encoded(seconds, format, seed) for seed in range(20)]
        for shard in range(SHARDS):
            rows = [
                {
                    "audio": {"bytes": clips[i * 7 % 20], "path": f"{i}"},
                    "text": f"label {i}",
                    "duration": seconds,
                }
                for i in range(shard, round(count * share), SHARDS)
            ]
            file = folder / name / f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
            pq.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=100)
            with tarfile.open(folder / f"{name}-{shard}.tar", "w") as tar:
                for i, row in enumerate(rows):
                    columns = {"text": row["text"], "duration": seconds}
                    for ending, content in (
                        (format.lower(), row["audio"]["bytes"]),
                        ("json", json.dumps(columns)),
                    ):
                        info = tarfile.TarInfo(f"{shard}_{i}.{ending}")
                        data = content if isinstance(content, bytes) else content.encode()
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        for kind, place in (("parquet", name), ("webdataset", f"{name}-{{0..{SHARDS - 1}}}.tar")):
            card = {
                "dataset": f"{name}_{kind}",
                "load": {kind: place},
                "license": "none",
                "splits": {"train": {}},
            }
            (folder / f"{name}_{kind}.yaml").write_text(dump_yaml(card))
    template = {
        "task": "say",
        "domain": "speech",
        "inputs": ["text"],
        "prompts": WORDINGS,
        "target": "{{ text }}",
    }
    (folder / "say.yaml").write_text(dump_yaml(template))
    for kind in ("parquet", "webdataset"):
        lines = [{"dataset": f"{name}_{kind}", "template": "say"} for name in SETS]
        (folder / f"mix_{kind}.yaml").write_text(dump_yaml({"recipe": f"mix_{kind}", "train": lines}))
        (folder / f"short_{kind}_only.yaml").write_text(
            dump_yaml({"recipe": f"short_{kind}_only", "train": lines[:1]})
        )


def chat_format() -> Any:
    """Return the chat format of a small tokenizer: both sides use it."""
    from uniaudio.data.tokens import ChatFormat
    from uniaudio.miniature.tokenizer import train_tokenizer

    return ChatFormat(train_tokenizer([*WORDINGS, *(f"label {i}" for i in range(200))], 400))


def mixture(recipe_file: Path, **options: Any) -> Any:
    """Return the mixture of a recipe, with micro-batches of 60 s."""
    from uniaudio.data.recipe import load_recipe
    from uniaudio.data.source import open_source
    from uniaudio.data.stream import Mixture

    recipe = load_recipe(str(recipe_file))
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    settings = {"audio_seconds": 60.0, "per_example": 0.0, "max_seconds": 30.0, "pool": 128, "window": BUFFER}
    settings |= {"micro_batches": 1, "streams": 1, **options}
    return Mixture(recipe, sources, chat_format(), lambda n: -(-n // 1280), seed=0, **settings)


def paced(rows: Iterator[Any], count: int) -> dict[str, float]:
    """Take rows (or lists of them); return rows per second and the longest wait. The first row starts the clock."""
    taken, longest = 0, 0.0
    next(rows)
    gc.collect()
    gc.freeze()  # for both sides: else a collection over all imported modules falls into somebody's time
    started = last = time.perf_counter()
    for row in rows:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        taken += len(row) if isinstance(row, tuple) else 1
        if taken >= count:
            break
    return {"per_second": taken / (last - started), "longest_wait": longest}


def mix_usual(folder: Path, count: int) -> dict[str, float]:
    """Mix with ``datasets`` alone."""
    import datasets
    from torch.utils.data import DataLoader

    sets = [
        datasets.load_dataset(
            "parquet", data_files=sorted(map(str, (folder / n).iterdir())), split="train", streaming=True
        ).shuffle(seed=0, buffer_size=BUFFER)
        for n in SETS
    ]
    mixed = datasets.interleave_datasets(
        sets, probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted"
    ).repeat(None)
    return paced(iter(DataLoader(mixed, batch_size=None)), count)


def mix_ours(folder: Path, count: int) -> dict[str, float]:
    """Mix with a mixture: rows come planned, with their wording, in micro-batches."""
    return paced((batch.rows for batch in mixture(folder / "mix_parquet.yaml").stream(0)), count)


def clips_usual(folder: Path, count: int) -> dict[str, float]:
    """Follow the description up to the batches."""
    return paced(usual_batches(folder), count)


def usual_batches(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Yield padded batches of four: everything in this process, a temporary file per clip."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    format, draw = chat_format(), random.Random(0)

    def samples() -> Iterator[tuple[torch.Tensor, str]]:
        while True:
            for file in sorted(folder.glob("short-*.tar")):
                with tarfile.open(file, "r|") as tar:
                    audio = b""
                    for member in tar:
                        stream = tar.extractfile(member)
                        assert stream is not None
                        if not member.name.endswith("json"):
                            audio = stream.read()
                            continue
                        with tempfile.NamedTemporaryFile(suffix=".wav") as temporary:
                            temporary.write(audio)
                            temporary.flush()
                            wave, _ = soundfile.read(temporary.name, dtype="float32")
                        yield torch.from_numpy(wave), json.loads(stream.read())["text"]

    source = samples()
    while True:
        buffer = sorted(islice(source, 128), key=lambda sample: len(sample[0]))
        for start in range(0, 128, 4):
            part = buffer[start : start + 4]
            waves = pad_sequence([wave for wave, _ in part], batch_first=True)
            lengths = torch.tensor([len(wave) for wave, _ in part])
            texts = [f"{draw.choice(WORDINGS)}\n{text}" for _, text in part]
            ids = [torch.tensor(format.encode(text)) for text in texts]
            yield tuple(zip(waves, lengths, pad_sequence(ids, batch_first=True), strict=True))


def clips_ours(folder: Path, count: int, workers: int) -> dict[str, float]:
    """Take packed batches from the loader."""
    from uniaudio.data.loader import make_loader

    mix = mixture(folder / "short_webdataset_only.yaml", streams=2)
    steps = make_loader(mix, ("say",), 0, 1, workers, 8)
    return paced((step.micro[0].ids for step in steps), count)


def features_usual(folder: Path, count: int) -> dict[str, float]:
    """Follow the description up to the features."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=80)

    def extracted(batch: tuple[Any, ...]) -> tuple[Any, ...]:
        waves = [wave[:length].numpy() for wave, length, _ in batch]
        return tuple(extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features)

    return paced(map(extracted, usual_batches(folder)), count)


def features_ours(folder: Path, count: int) -> dict[str, float]:
    """Take packed batches from one worker and compute their features here."""
    from uniaudio.data.loader import make_loader
    from uniaudio.model.mel import LogMel

    mel = LogMel(80)
    mix = mixture(folder / "short_webdataset_only.yaml", streams=2)
    steps = make_loader(mix, ("say",), 0, 1, 1, 8)
    return paced((mel(step.micro[0].audio).rows() for step in steps), count)


def decode_usual(clips: list[bytes], seconds: float) -> dict[str, float]:
    """Decode in a bare loop."""
    import soxr

    def one(clip: bytes) -> None:
        wave, rate = soundfile.read(io.BytesIO(clip), dtype="float32")
        if rate != SAMPLE_RATE:
            soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")

    return timed(one, clips, seconds)


def decode_ours(clips: list[bytes], seconds: float) -> dict[str, float]:
    """Decode as training does."""
    from uniaudio.data.audio import decode

    return timed(lambda clip: decode(clip, 60.0, "clip"), clips, seconds)


def timed(action: Callable[[bytes], Any], clips: list[bytes], seconds: float) -> dict[str, float]:
    for clip in clips[:5]:
        action(clip)
    started = time.perf_counter()
    for clip in clips:
        action(clip)
    return {"per_second": len(clips) * seconds / (time.perf_counter() - started)}


def growth(folder: Path, count: int) -> dict[str, float]:
    """Return the memory of the process after a tenth of the rows and after all of them, in MiB."""
    marks, taken = {}, 0
    for batch in mixture(folder / "mix_webdataset.yaml").stream(0):
        taken += len(batch.rows)
        for mark in (count // 10, count):
            if taken >= mark and mark not in marks:
                marks[mark] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if taken >= count:
            break
    first, last = marks.values()
    return {"first_mib": first, "last_mib": last, "rows": count}


def resume(folder: Path, rows: int) -> dict[str, float]:
    """Open a manifest of many rows, and begin deep inside it; no file stands behind the rows, only their lengths."""
    from uniaudio.data.stream import StreamState

    place = folder / "many"
    place.mkdir(exist_ok=True)
    with (place / "manifest.jsonl").open("w") as stream:
        for i in range(rows):
            stream.write(f'{{"audio": "{i}.wav", "text": "label {i}", "duration": 1.0}}\n')
    card = {"dataset": "many", "load": {"jsonl": "many"}, "license": "none", "splits": {"train": {}}}
    (folder / "many.yaml").write_text(dump_yaml(card))
    line = {"dataset": "many", "template": "say"}
    (folder / "many_only.yaml").write_text(dump_yaml({"recipe": "many_only", "train": [line]}))
    started = time.perf_counter()
    mix = mixture(folder / "many_only.yaml")
    opened = time.perf_counter()
    next(mix.stream(0, StreamState(pool=rows * 7 // 10 // 128)))
    return {"open_seconds": opened - started, "resume_seconds": time.perf_counter() - opened, "rows": rows}


def side(name: str, folder: Path, quick: bool) -> dict[str, float]:
    """Run one side in this process."""
    share = 0.05 if quick else 1.0
    kind, _, which = name.partition(":")
    if kind == "mix":
        return (mix_usual if which == "usual" else mix_ours)(folder, round(7000 * share))
    if kind == "clips":
        count = round(12000 * share)
        return clips_usual(folder, count) if which == "usual" else clips_ours(folder, count, int(which[4:]))
    if kind == "features":
        return (features_usual if which == "usual" else features_ours)(folder, round(2000 * share))
    if kind.startswith("decode"):
        seconds, format, rate = {"decode16": (10.0, "FLAC", 16000), "decode44": (10.0, "FLAC", 44100)}[kind]
        clips = [encoded(seconds, format, seed, rate) for seed in range(20)] * max(1, round(10 * share))
        return (decode_usual if which == "usual" else decode_ours)(clips, seconds)
    return (
        growth(folder, round(100_000 * share))
        if kind == "growth"
        else resume(folder, round(1_000_000 * share))
    )


def child(name: str, folder: Path, quick: bool) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--side",
        name,
        "--work",
        str(folder),
        *(["--quick"] if quick else []),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"side {name} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


CASES = {  # case -> its sides; the first one is what the others are compared with
    "mix": ("usual", "ours"),
    "clips": ("usual", "ours1", "ours2"),
    "features": ("usual", "ours"),
    "decode16": ("usual", "ours"),
    "decode44": ("usual", "ours"),
    "growth": ("ours",),
    "resume": ("ours",),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run over few rows, to see that it works")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(side(arguments.side, arguments.work, arguments.quick)))
        return
    console = Console(width=max(110, Console().width))
    result: dict[str, Any] = {"benchmark": "data", "machine": machine(1), "cases": {}}
    result["quiet"] = arguments.quick or wait_for_quiet(console)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sets(folder, 0.1 if arguments.quick else 1.0)
        for case in arguments.cases:
            runs: dict[str, list[dict[str, float]]] = {which: [] for which in CASES[case]}
            for number in range(1 if arguments.quick or len(runs) == 1 else RUNS):
                for which in runs:
                    runs[which].append(child(f"{case}:{which}", folder, arguments.quick))
                    facts = ", ".join(f"{key} {value:,.3f}" for key, value in runs[which][-1].items())
                    console.print(f"{case}, run {number + 1}, {which}: {facts}", highlight=False)
            result["cases"][case] = {which: best(rows) for which, rows in runs.items()}
    console.print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def best(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return the figures of the fastest run, and the rates of all."""
    fastest = max(rows, key=lambda row: row.get("per_second", 0.0))
    return {**fastest, "runs": [row.get("per_second") for row in rows]}


def table(result: dict[str, Any]) -> Table:
    """Lay out every case and side."""
    shown = Table(title="data", title_justify="left")
    for column in ("case", "side", "per second", "times", "longest wait s", "other"):
        shown.add_column(column, justify="left" if column in ("case", "side", "other") else "right")
    for case, sides in result["cases"].items():
        first = next(iter(sides.values())).get("per_second")
        for which, row in sides.items():
            rate, wait = row.get("per_second"), row.get("longest_wait")
            other = [
                f"{key} {row[key]:,.2f}" for key in row if key not in ("per_second", "longest_wait", "runs")
            ]
            shown.add_row(
                case,
                which,
                f"{rate:,.0f}" if rate else "",
                f"{rate / first:.2f}x" if rate and first else "",
                f"{wait:.3f}" if wait is not None else "",
                ", ".join(other),
            )
    return shown


if __name__ == "__main__":
    main()
