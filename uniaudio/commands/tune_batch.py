"""``uniaudio tune-batch``: the largest budget of a micro-batch that fits the device's memory."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from uniaudio.build.model import build_model, load_stage_recipes
from uniaudio.build.stage_data import StageData
from uniaudio.checks.stages import sketch_stages
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run, load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console
from uniaudio.data.loader import make_loader
from uniaudio.errors import UserError
from uniaudio.launched_processes import make_module_command
from uniaudio.model.audio_lm import AudioLM
from uniaudio.tiny.text_lm import build_miniature_decoder
from uniaudio.train.engines.accelerator import make_accelerator
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.precision import choose_precision
from uniaudio.train.trainable import TrainableParameters, enter_stage
from uniaudio.units import GIB, MAXRSS_UNIT

LOOKED_AT = 6  # micro-batches of real data; the dearest of them counts
PRECISION = 0.05  # of the budget: where the search ends
RESERVE = 0.9  # of the memory: fragments, and batches dearer than those looked at


def find_largest_budget(
    peak: Callable[[float], float | None], limit: float, first: float, most: float
) -> tuple[float, dict[float, float | None]]:
    """Search the largest budget whose peak memory stays within a limit: doubled until it does not fit, then halved.

    Args:
        peak: GiB that a step with a budget takes, or None when it does not fit at all. most: where to stop.

    Returns:
        The budget, and all that was tried.

    Raises:
        UserError: when not even ``first`` fits.
    """
    tried: dict[float, float | None] = {}

    def fits(budget: float) -> bool:
        tried[budget] = peak_gib = peak(budget)
        return peak_gib is not None and peak_gib <= limit

    if not fits(first):
        raise UserError(
            f"not even a micro-batch of {first:g} s fits into {limit:.1f} GiB; use a smaller model "
            "or shorter clips"
        )
    good, bad = first, None
    while bad is None and good < most:
        following = min(2 * good, most)
        if fits(following):
            good = following
        else:
            bad = following
    while bad is not None and bad - good > PRECISION * good:
        middle = (good + bad) / 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good, tried


def measure_step_peak(config: RunConfig) -> float:
    """Return the peak memory in GiB of forward and backward over real micro-batches, of the stage that takes most.

    The stages are entered one after another in this process, as they train: each may train other parts.
    """
    accelerator = make_accelerator(config)
    recipes = load_stage_recipes(config)
    small = config.decoder.miniature
    decoder = config.decoder.path if small is None else str(build_miniature_decoder(small, recipes))
    loaded = build_model(config, decoder, accelerator.device)
    data = StageData(config, recipes, loaded.format)
    structure = TrainableParameters.of(loaded.model)
    peaks = []
    for stage in range(len(config.stages)):
        loaded.model.zero_grad()
        enter_stage(loaded.model, structure, config, stage)
        peaks.append(measure_stage_peak(config, stage, loaded.model, data, accelerator.device))
    return max(peaks)


def measure_stage_peak(
    config: RunConfig, stage: int, model: AudioLM, data: StageData, device: torch.device
) -> float:
    """Return the peak memory in GiB with a model as a stage trains it; on a CPU, that of the process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = islice(make_loader(data.open_mixture(stage, model), data.tasks, 0, 1, 0, 2), LOOKED_AT)
    batch = max(
        (b for step in steps for b in step.micro), key=lambda b: b.audio_seconds + len(b.tokens.values) / 1e3
    )
    model.train()
    engine = Engine(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), choose_precision(config)
    )
    # two moments in float32
    optimizer_bytes = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    for _ in range(2):
        loss = engine.forward(batch.to(device))
        engine.backward(loss.total / max(loss.answer_tokens, 1))
    if device.type == "cuda":
        used = float(torch.cuda.max_memory_allocated(device))
    else:
        used = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT)
    return (used + optimizer_bytes) / GIB


def measure_peak_in_child(
    name: str, overrides: list[str], budget: float, trust: Trust = NO_TRUST
) -> float | None:
    """Measure one budget in a process of its own: memory of an earlier one must not count. None: it did not fit.

    Args:
        overrides: of the config, the budget among them.
    """
    command = [
        *make_module_command("uniaudio.commands.tune_batch"),
        json.dumps([trust.remote_code, trust.code]),
        name,
        *overrides,
        "train.micro_batches=1",
    ]
    quiet = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode == 0:
        return float(json.loads(done.stdout.splitlines()[-1])["peak_gib"])
    if done.returncode == -9 or "out of memory" in done.stderr.lower() or "can't allocate" in done.stderr:
        return None
    said = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
    raise UserError(f"a trial step with {budget:g} s failed: {said[-1]}")


def set_budgets(config: RunConfig, seconds: float | None = None) -> list[str]:
    """Return the overrides that give every stage a budget; None: the one that it has in the config."""
    return [
        f"stages.{index}.budget.audio_seconds={seconds or stage.budget.audio_seconds}"
        for index, stage in enumerate(config.stages)
    ]


def get_device_memory() -> float:
    """Return the GiB of the first CUDA device, else those of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def tune_batch(
    name: str,
    overrides: list[str],
    memory: float | None,
    most: float,
    console: Console | None = None,
    trust: Trust = NO_TRUST,
) -> float:
    """Print and return the largest ``budget.audio_seconds`` that fits in every stage.

    Args:
        memory: GiB to stay within, default nine tenths of the device's. most: the largest budget to try.

    Raises:
        UserError: as ``sketch_stages`` and ``find_largest_budget``, and for a trial step that fails for another reason.
    """
    console = console or make_console()
    config = load_run(name, overrides, trust)
    config.require_trust()
    sketch_stages(config)
    limit = memory if memory is not None else RESERVE * get_device_memory()
    first = config.data.max_seconds or min(30.0, *(stage.budget.audio_seconds for stage in config.stages))

    def peak(budget: float) -> float | None:
        with console.status(f"trying micro-batches of {budget:g} s"):
            peak_gib = measure_peak_in_child(name, [*overrides, *set_budgets(config, budget)], budget, trust)
        text = "did not fit" if peak_gib is None else f"{peak_gib:.2f} GiB"
        console.print(f"{budget:8.1f} s: {text}")
        return peak_gib

    largest, _ = find_largest_budget(peak, limit, first, most)
    budget = max(math.floor(largest), min(largest, 1.0))  # whole seconds
    console.print(
        f"{' '.join(set_budgets(config, budget))} fits into {limit:.1f} GiB",
        style="green",
    )
    return budget


def tune_overrides(
    name: str, overrides: list[str], trust: Trust = NO_TRUST, begun: Path | None = None
) -> list[str]:
    """Search the budget before a run and return the overrides with it, for every stage.

    Args:
        begun: the folder of a run that goes on: it keeps its budgets, for with others it would draw other data.

    Raises:
        UserError: under a launcher of several processes, which would each find their own.
    """
    if begun is not None:
        return [*overrides, *set_budgets(load_stored_run(begun / "config.yaml", begun))]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--tune-batch searches in one process; run `uniaudio tune-batch` first and set the budget that it prints"
        )
    budget = tune_batch(name, overrides, None, 4000, trust=trust)
    return [*overrides, *set_budgets(load_run(name, overrides), budget)]


if __name__ == "__main__":
    try:
        allowed = Trust(*json.loads(sys.argv[1]))
        print(json.dumps({"peak_gib": measure_step_peak(load_run(sys.argv[2], sys.argv[3:], allowed))}))
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        sys.exit(2)
