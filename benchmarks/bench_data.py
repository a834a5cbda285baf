"""The data engine against the usual ways, over the same files in one run.

    python benchmarks/bench_data.py [--quick] [--cases CASE ...] [--out FILE.json]

mix      rows (audio still encoded) out of two small parquet sets that are gone through again and again: ``datasets``
         with ``shuffle``, ``interleave_datasets`` and a DataLoader, against a mixture. The longest wait counts too.
clips    training batches out of tars: a re-implementation of the data path described for xares-llm, none of whose code
         runs here (a temporary file per clip, a sort buffer of 128, batches of four padded to the longest, all in the
         main process), against our loader with one and with two workers.
features the same two up to Whisper's log-mel: transformers' extractor in the main process, every clip padded to 30 s,
         against our mel over the packed batch.
decode   our decoding against soundfile and soxr in a bare loop.
growth   memory of the process after 10,000 and after 100,000 rows of a mixture.
resume   seconds from open sources to the first batch, deep inside a set of a million rows.
"""

from __future__ import annotations

import gc
import io
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
from corpus import encoded, write_parquet, write_tar
from measure import Benchmark, Run, main, peak_gib

from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.types import SAMPLE_RATE

SHARDS = 8
SETS = {"short": (1.0, "WAV", 4000), "long": (10.0, "FLAC", 1000)}  # seconds, format, rows
BUFFER = 200  # rows that are shuffled together, on both sides
WORDINGS = ["<audio>What is said?", "Write it down.<audio>"]
DESCRIBED = "re-implementation of the data path described for xares-llm"
ONE_WORKER, TWO_WORKERS = "ours, one worker", "ours, two workers"
WORKERS = {ONE_WORKER: 1, TWO_WORKERS: 2}


def write_sets(folder: Path, share: float) -> None:
    """Write both sets as parquet and as tars, with cards, a template and recipes."""
    for name, (seconds, format, count) in SETS.items():
        (folder / name).mkdir(parents=True)
        clips = [encoded(seconds, format, seed) for seed in range(20)]
        for shard in range(SHARDS):
            numbers = range(shard, round(count * share), SHARDS)
            rows = [clips[i * 7 % 20] for i in numbers]
            columns = [{"text": f"label {i}", "duration": seconds} for i in numbers]
            write_parquet(folder / name / f"train-{shard:05d}-of-{SHARDS:05d}.parquet", rows, columns)
            write_tar(folder / f"{name}-{shard}.tar", format.lower(), rows, columns)
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
    from uniaudio.data.prompt_tokens import ChatFormat
    from uniaudio.tiny.text_lm import train_tokenizer

    return ChatFormat(train_tokenizer([*WORDINGS, *(f"label {i}" for i in range(200))], 400))


def mixture(recipe_file: Path, **options: Any) -> Any:
    """Return the mixture of a recipe, with micro-batches of 60 s."""
    from uniaudio.data.mixture import Mixture
    from uniaudio.data.recipe import load_recipe
    from uniaudio.data.sources.source_kinds import open_source

    recipe = load_recipe(str(recipe_file))
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    settings: dict[str, Any] = {"audio_seconds": 60.0, "per_example": 0.0, "max_seconds": 30.0, "pool": 128}
    settings |= {"window": BUFFER, "micro_batches": 1, "streams": 1, **options}
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
    return {"per_second": taken / (last - started), "longest_wait_seconds": longest}


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
    return paced((batch.rows for batch in mixture(folder / "mix_parquet.yaml").iterate_stream(0)), count)


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
    for batch in mixture(folder / "mix_webdataset.yaml").iterate_stream(0):
        taken += len(batch.rows)
        for mark in (count // 10, count):
            if taken >= mark and mark not in marks:
                marks[mark] = peak_gib() * 2**10
        if taken >= count:
            break
    first, last = marks.values()
    return {"last_mib": last, "first_mib": first, "rows": count}


def resume(folder: Path, scratch: Path, rows: int) -> dict[str, float]:
    """Open a manifest of many rows, and begin deep inside it; no file stands behind the rows, only their lengths."""
    from uniaudio.data.mixture import StreamState

    place = scratch / "many"
    place.mkdir()
    with (place / "manifest.jsonl").open("w") as stream:
        for i in range(rows):
            stream.write(f'{{"audio": "{i}.wav", "text": "label {i}", "duration": 1.0}}\n')
    card = {"dataset": "many", "load": {"jsonl": "many"}, "license": "none", "splits": {"train": {}}}
    (scratch / "many.yaml").write_text(dump_yaml(card))
    line = {"dataset": "many", "template": str(folder / "say.yaml")}
    (scratch / "many_only.yaml").write_text(dump_yaml({"recipe": "many_only", "train": [line]}))
    started = time.perf_counter()
    mix = mixture(scratch / "many_only.yaml")
    opened = time.perf_counter()
    next(mix.iterate_stream(0, StreamState(pool=rows * 7 // 10 // 128)))
    return {"resume_seconds": time.perf_counter() - opened, "open_seconds": opened - started, "rows": rows}


CASES = {
    "mix": ("usual", "ours"),
    "clips": (DESCRIBED, ONE_WORKER, TWO_WORKERS),
    "features": (DESCRIBED, "ours"),
    "decode16": ("usual", "ours"),
    "decode44": ("usual", "ours"),
    "growth": ("ours",),
    "resume": ("ours",),
}


def figures(run: Run) -> dict[str, float]:
    """Measure one side in this process."""
    share, folder, usual = (0.05 if run.quick else 1.0), run.shared, run.side in ("usual", DESCRIBED)
    if run.case == "mix":
        return (mix_usual if usual else mix_ours)(folder, round(7000 * share))
    if run.case == "clips":
        count = round(12000 * share)
        return clips_usual(folder, count) if usual else clips_ours(folder, count, WORKERS[run.side])
    if run.case == "features":
        return (features_usual if usual else features_ours)(folder, round(2000 * share))
    if run.case in ("decode16", "decode44"):
        rate = {"decode16": 16_000, "decode44": 44_100}[run.case]
        clips = [encoded(10.0, "FLAC", seed, rate) for seed in range(20)] * max(1, round(10 * share))
        return (decode_usual if usual else decode_ours)(clips, 10.0)
    if run.case == "growth":
        return growth(folder, round(100_000 * share))
    return resume(folder, run.scratch, round(1_000_000 * share))


if __name__ == "__main__":
    main(
        Benchmark(
            name="loader",
            title="Data",
            cases=CASES,
            figures=figures,
            headline="per_second",
            ratios={"times_faster": "per_second"},
            prepare=lambda folder, quick: write_sets(folder, 0.1 if quick else 1.0),
            threads=1,
        )
    )
