"""What the loop, checkpoints and engines cost.

    python benchmarks/bench_train.py [--quick] [--out FILE.json]

loop: the training loop against forward, backward, clipping and AdamW over the same tensors, written bare.
checkpoint: how long the loop stands still for a checkpoint in the background, against writing it at once.
engines: steps of two processes under DDP, ZeRO-1, 2, 3 and FSDP2, each in processes of its own.
Fresh processes, in turns, the minimum of three. Prints tables; the last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_step import examples_of, new_adapter
from measure import machine, wait_for_quiet
from rich.console import Console
from rich.table import Table
from setting import small_qwen, whisper_tiny

from uniaudio.assemble.training import joined_states
from uniaudio.config.run import RunConfig, load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.batch import collate
from uniaudio.distributed import is_main, rank, world_size
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.train.checkpoint import begin_checkpoint, finish_checkpoint, write_share
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.launch import make_accelerator
from uniaudio.train.loop import train
from uniaudio.train.optim import build_optimizer
from uniaudio.train.parts import TrainParts
from uniaudio.train.writer import CheckpointWriter, HostCopies, take_snapshot
from uniaudio.types import Batch

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
LENGTHS = (2.0, 4.0, 6.0, 8.0)  # seconds of the clips of a micro-batch
WARM = 3  # steps before the clock starts


def model_and_batches() -> tuple[AudioLM, list[Batch]]:
    """Return Whisper tiny (random weights) in front of a small Qwen3, and four micro-batches that lie ready."""
    from bench_step import WrittenIds

    model = AudioLM(WhisperAudioEncoder(whisper_tiny()), new_adapter(), TextDecoder(small_qwen()))
    examples = examples_of(list(LENGTHS) * 4)
    groups = [examples[i : i + 4] for i in range(0, len(examples), 4)]
    return model, [collate(group, WrittenIds(), model.slots_for, ("asr",)) for group in groups]


def config_in(folder: Path, steps: int) -> RunConfig:
    """Return a run config of so many steps that saves nothing before its end."""
    data = {
        "output_dir": str(folder / "run"),
        "encoders": {"whisper": {"path": "none", "lr": 1e-5}},
        "train": {
            "micro_batches": world_size() * 2,
            "log_every": 10,
            "save_every": 100000,
            "tensorboard": False,
        },
        "stages": [{"name": "one", "recipe": "none", "steps": steps, "budget": {"audio_seconds": 60}}],
    }
    (folder / "run.yaml").write_text(dump_yaml(data))
    return load_run(str(folder / "run.yaml"))


class Clock:
    """Notes when each step was asked for: the time between two is that of a whole step."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def seconds(self) -> float:
        """Return the mean of the steps after the warm ones."""
        times = self.asked[WARM:]
        return (times[-1] - times[0]) / (len(times) - 1)


def our_loop(steps: int, folder: Path) -> dict[str, Any]:
    """Train with the package's loop over batches that lie ready."""
    config = config_in(folder, steps)
    accelerator = make_accelerator(config)
    model, batches = model_and_batches()
    model.to(accelerator.device)
    clock = Clock()

    def open_steps(*_: Any) -> Any:
        own = cycle(batches[rank() :: world_size()] or batches)
        while True:
            clock.asked.append(time.perf_counter())
            state = SimpleNamespace(to_json=lambda: {"n": 1, "streams": {}})
            yield SimpleNamespace(micro=tuple(islice(own, 2)), skips=(), drawn={}, cost=1.0, state=state)

    parts = TrainParts(lambda: model, open_steps, joined_states, ("asr",), {})
    train(parts, config, accelerator, resume=False)
    return {
        "seconds": clock.seconds(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def bare_loop(steps: int, folder: Path) -> dict[str, Any]:
    """The same tensors through forward, backward, clipping and AdamW, and nothing else."""
    config = config_in(folder, steps)
    model, batches = model_and_batches()
    model.train()
    optimizer = build_optimizer(model, config, config.stages[0], torch.device("cpu"))
    own = cycle(batches)
    clock = Clock()
    for _ in range(steps):
        clock.asked.append(time.perf_counter())
        micro = tuple(islice(own, 2))
        tokens = sum(batch.answer_tokens for batch in micro)
        for batch in micro:
            (model(batch).total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "seconds": clock.seconds(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def checkpoint_at_once(steps: int, folder: Path) -> dict[str, Any]:
    """Copy, write, flush and rename while the loop stands still."""
    return timed_checkpoints(folder, background=False)


def checkpoint_behind(steps: int, folder: Path) -> dict[str, Any]:
    """Copy, then let the thread write."""
    return timed_checkpoints(folder, background=True)


def timed_checkpoints(folder: Path, background: bool, times: int = 3) -> dict[str, Any]:
    """Return the least time that the loop stands still for a checkpoint of the model between two updates."""
    config = config_in(folder, 1)
    model, batches = model_and_batches()
    engine = Engine(
        model.train(), build_optimizer(model, config, config.stages[0], torch.device("cpu")), None
    )
    engine.backward(engine.forward(batches[0]).total)
    engine.step(1.0)
    writer = CheckpointWriter(folder / "run", config, {})
    copies, stood = HostCopies(), []
    for step in range(1, times + 1):
        started = time.perf_counter()
        if background:
            writer.save(engine, {}, {}, step, {"stage": 0}, {})
            begun = time.perf_counter()
            engine.backward(engine.forward(batches[0]).total)
            done = time.perf_counter()
            writer.before_update()
            stood.append(time.perf_counter() - done + begun - started)
            engine.step(1.0)
            writer.wait()
        else:
            begin_checkpoint(folder / "run", step)
            snapshot = take_snapshot(engine, {}, {}, step, {"stage": 0}, copies)
            write_share(folder / "run", snapshot, 0, 1)
            finish_checkpoint(folder / "run", snapshot, 1, config, {})
            stood.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in (folder / "run/checkpoints" / f"step-{times:06d}").iterdir())
    return {"seconds": min(stood), "mib": size / 2**20, "trained": sum(engine.sizes.values())}


SIDES = {
    "bare": bare_loop,
    "loop": our_loop,
    "at once": checkpoint_at_once,
    "behind": checkpoint_behind,
}


def child(side: str, steps: int, engine: str | None = None) -> dict[str, Any]:
    """Run one side in processes of its own: one with all cores, or two with one thread each under an engine."""
    script = [str(Path(__file__).resolve()), "--side", side, "--steps", str(steps)]
    threads = 1 if engine else len(os.sched_getaffinity(0))
    launch = [sys.executable]
    if engine:
        file = Path(__file__).resolve().parent.parent / "configs/accelerate" / f"{engine}.yaml"
        accelerate = Path(sys.executable).with_name("accelerate")
        launch = [str(accelerate), "launch", "--config_file", str(file), "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:  # the ranks of a run share it
        command = [*launch, *script, "--folder", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        raise SystemExit(f"{side} {engine or ''} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def fastest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    best = min(rows, key=lambda row: row["seconds"])
    return {**best, "runs": [row["seconds"] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps or (6 if arguments.quick else 30)
    if arguments.side:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        found = SIDES[arguments.side](steps, arguments.folder)
        if is_main():
            print(json.dumps(found), flush=True)
        os._exit(0)  # gloo's threads may outlive the interpreter's own clean-up and abort it
    console = Console(width=110)
    quiet = arguments.quick or wait_for_quiet(console)
    rounds = 1 if arguments.quick else 3
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        for side in SIDES:
            rows.setdefault(side, []).append(child(side, steps))
        for engine in ENGINES:
            rows.setdefault(engine, []).append(child("loop", steps, engine))
        console.print(f"round {number + 1} of {rounds} done", style="dim")
    best = {name: fastest(found) for name, found in rows.items()}
    table = Table(title="the least of all rounds", title_justify="left")
    for column in ("what", "seconds", "against", "ratio", "peak GiB"):
        table.add_column(column, justify="left" if column in ("what", "against") else "right")
    pairs = {"loop": "bare", "behind": "at once", **dict.fromkeys(ENGINES[1:], "ddp")}
    for name, found in best.items():
        other = pairs.get(name)
        ratio = f"{found['seconds'] / best[other]['seconds']:.3f}" if other else ""
        memory = f"{found['peak_gib']:.2f}" if "peak_gib" in found else ""
        table.add_row(name, f"{found['seconds']:.4f}", other or "", ratio, memory)
    console.print(table)
    result = {
        "benchmark": "train",
        "machine": machine(len(os.sched_getaffinity(0))),
        "quiet": quiet,
        "overhead_of_the_loop": best["loop"]["seconds"] / best["bare"]["seconds"] - 1,
        "checkpoint_stands_still": best["behind"]["seconds"] / best["at once"]["seconds"],
        "best": best,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
