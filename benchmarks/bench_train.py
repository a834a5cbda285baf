"""What the loop, checkpoints and engines cost.

    python benchmarks/bench_train.py [--quick] [--cases CASE ...] [--out FILE.json]

loop: the training loop against forward, backward, clipping and AdamW over the same tensors, written bare.
checkpoint: how long the loop stands still for a checkpoint in the background, against writing it at once.
two processes: steps of two processes of one thread under DDP, ZeRO-1, 2, 3 and FSDP2.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_step import examples_of, new_adapter
from measure import Benchmark, Run, main, peak_gib
from sizes import Sizes

from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.collate import collate
from uniaudio.data.loader import join_states
from uniaudio.distributed import is_main, rank, shutdown_process_group, world_size
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.train.activation_checkpointing import Recomputing
from uniaudio.train.checkpoint.background_writer import CheckpointWriter, HostCopies, take_snapshot
from uniaudio.train.checkpoint.writing import begin_checkpoint, finish_checkpoint, write_share
from uniaudio.train.engines.accelerator import make_accelerator
from uniaudio.train.engines.base import Engine
from uniaudio.train.optim import build_optimizer
from uniaudio.train.stages import train_stages
from uniaudio.types import Batch

LENGTHS = (2.0, 4.0, 6.0, 8.0)  # seconds of the clips of a micro-batch
WARM = 3  # steps before the clock starts


def model_and_batches() -> tuple[AudioLM, list[Batch]]:
    """Return Whisper tiny (random weights) in front of a small Qwen3, and four micro-batches that lie ready."""
    from bench_step import WrittenIds

    sizes = Sizes()
    encoder, lm = WhisperAudioEncoder(sizes.new_encoder()), sizes.new_decoder()
    model = AudioLM(encoder, new_adapter(sizes), TextDecoder(lm))
    examples = examples_of(list(LENGTHS) * 4, sizes)
    groups = [examples[i : i + 4] for i in range(0, len(examples), 4)]
    return model, [collate(group, WrittenIds(), model.count_slots, ("asr",)) for group in groups]


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
        self.request_times: list[float] = []

    def seconds(self) -> float:
        """Return the mean of the steps after the warm ones."""
        times = self.request_times[WARM:]
        return (times[-1] - times[0]) / (len(times) - 1)


def our_loop(steps: int, folder: Path) -> dict[str, Any]:
    """Train with the package's loop over batches that lie ready."""
    config = config_in(folder, steps)
    accelerator = make_accelerator(config)
    model, batches = model_and_batches()
    model.to(accelerator.device)
    clock = Clock()

    def iterate_steps() -> Any:
        source = cycle(batches[rank() :: world_size()] or batches)
        state = SimpleNamespace(to_json=lambda: position)
        while True:
            clock.request_times.append(time.perf_counter())
            micro = tuple(islice(source, 2))
            yield SimpleNamespace(micro=micro, skips=(), notices=(), drawn={}, cost=1.0, state=state)

    models: Any = SimpleNamespace(
        build=lambda: model,
        bases={},
        choose_recomputing=lambda stage, engine: Recomputing(),
        write_start=lambda: None,
    )
    position: dict[str, Any] = {"n": 1, "streams": {}}
    data: Any = SimpleNamespace(
        open_steps=lambda *_: (position, iterate_steps()), join_states=join_states, tasks=("asr",)
    )
    train_stages(models, data, models, config, accelerator)
    return {"seconds": clock.seconds(), "peak_gib": peak_gib()}


def bare_loop(steps: int, folder: Path) -> dict[str, Any]:
    """The same tensors through forward, backward, clipping and AdamW, and nothing else."""
    config = config_in(folder, steps)
    model, batches = model_and_batches()
    model.train()
    optimizer = build_optimizer(model, config, config.stages[0], torch.device("cpu"))
    source = cycle(batches)
    clock = Clock()
    for _ in range(steps):
        clock.request_times.append(time.perf_counter())
        micro = tuple(islice(source, 2))
        tokens = sum(batch.answer_tokens for batch in micro)
        for batch in micro:
            (model(batch).total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"seconds": clock.seconds(), "peak_gib": peak_gib()}


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
            writer.wait_for_copies()
            stood.append(time.perf_counter() - done + begun - started)
            engine.step(1.0)
            writer.wait()
        else:
            begin_checkpoint(folder / "run", step)
            snapshot = take_snapshot(engine, {}, {}, step, {"stage": 0}, engine.sizes, copies)
            write_share(folder / "run", snapshot, 0, 1)
            finish_checkpoint(folder / "run", snapshot, 1, config, {})
            stood.append(time.perf_counter() - started)
    size = sum(file.stat().st_size for file in (folder / "run/checkpoints" / f"step-{times:06d}").iterdir())
    return {"seconds": min(stood), "checkpoint_mib": size / 2**20, "trained": sum(engine.sizes.values())}


CASES = {
    "loop": ("bare", "loop"),
    "checkpoint": ("at once", "in the background"),
    "two processes": ("ddp", "zero1", "zero2", "zero3", "fsdp2"),
}
ALONE = {
    "bare": bare_loop,
    "loop": our_loop,
    "at once": checkpoint_at_once,
    "in the background": checkpoint_behind,
}


def launch(side: str) -> tuple[list[str], int] | None:
    """Start an engine's side as two processes of one thread."""
    if side in ALONE:
        return None
    file = Path(__file__).resolve().parent.parent / "configs/accelerate" / f"{side}.yaml"
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    return [accelerate, "launch", "--config_file", str(file), "--num_processes", "2"], 1


def figures(run: Run) -> dict[str, float] | None:
    """Measure one side; under an engine only the first process tells."""
    figures = ALONE.get(run.side, our_loop)(run.steps, run.scratch)
    tells = is_main()
    shutdown_process_group()
    return figures if tells else None


if __name__ == "__main__":
    main(
        Benchmark(
            name="train",
            title="Loop, checkpoints and engines",
            cases=CASES,
            figures=figures,
            ratios={"times_faster": "seconds"},
            steps=(30, 6),
            launch=launch,
        )
    )
