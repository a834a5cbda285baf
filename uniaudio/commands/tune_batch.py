"""``uniaudio tune-batch``: the largest budget of a micro-batch that fits the device's memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import torch
from rich.console import Console

from uniaudio.build.model import build_model, load_stage_recipes
from uniaudio.build.stage_data import StageData
from uniaudio.checks.stages import sketch_stages
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console
from uniaudio.data.loader import make_loader
from uniaudio.errors import UserError
from uniaudio.tiny.text_lm import build_miniature_decoder
from uniaudio.train.engines.accelerator import make_accelerator
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.precision import choose_precision
from uniaudio.units import GIB

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
    """Return the peak memory in GiB of forward and backward over real micro-batches of the first stage, in this
    process.
    """
    accelerator = make_accelerator(config)
    recipes = load_stage_recipes(config)
    small = config.decoder.miniature
    decoder = config.decoder.path if small is None else str(build_miniature_decoder(small, recipes))
    loaded = build_model(config, decoder, accelerator.device)
    data = StageData(config, recipes, loaded.format)
    steps = islice(make_loader(data.open_mixture(0, loaded.model), data.tasks, 0, 1, 0, 2), LOOKED_AT)
    batch = max(
        (b for step in steps for b in step.micro), key=lambda b: b.audio_seconds + len(b.tokens.values) / 1e3
    )
    model = loaded.model.train()
    engine = Engine(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), choose_precision(config)
    )
    # two moments in float32
    optimizer_bytes = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    for _ in range(2):
        loss = engine.forward(batch.to(accelerator.device))
        engine.backward(loss.total / max(loss.answer_tokens, 1))
    if accelerator.device.type == "cuda":
        used = float(torch.cuda.max_memory_allocated(accelerator.device))
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return (used + optimizer_bytes) / GIB


def measure_peak_in_child(
    name: str, overrides: list[str], budget: float, trust: Trust = NO_TRUST
) -> float | None:
    """Measure one budget in a process of its own: memory of an earlier one must not count. None: it did not fit."""
    setting = f"stages.0.budget.audio_seconds={budget}"
    command = [
        sys.executable,
        "-m",
        "uniaudio.commands.tune_batch",
        json.dumps([trust.remote_code, trust.code]),
        name,
        *overrides,
        setting,
        "train.micro_batches=1",
    ]
    quiet = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode == 0:
        return float(json.loads(done.stdout.splitlines()[-1])["peak_gib"])
    if done.returncode == -9 or "out of memory" in done.stderr.lower() or "can't allocate" in done.stderr:
        return None
    raise UserError(f"a trial step with {budget:g} s failed: {done.stderr.strip().splitlines()[-1]}")


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
    """Print and return the largest ``stages.0.budget.audio_seconds`` that fits.

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
    first = config.data.max_seconds or min(30.0, config.stages[0].budget.audio_seconds)

    def peak(budget: float) -> float | None:
        with console.status(f"trying micro-batches of {budget:g} s"):
            peak_gib = measure_peak_in_child(name, overrides, budget, trust)
        text = "did not fit" if peak_gib is None else f"{peak_gib:.2f} GiB"
        console.print(f"{budget:8.1f} s: {text}")
        return peak_gib

    budget, _ = find_largest_budget(peak, limit, first, most)
    console.print(
        f"stages.0.budget.audio_seconds={budget:.0f} fits into {limit:.1f} GiB",
        style="green",
    )
    return budget


def tune_overrides(name: str, overrides: list[str], trust: Trust = NO_TRUST) -> list[str]:
    """Search the budget before a run and return the overrides with it, for every stage.

    Raises:
        UserError: under a launcher of several processes, which would each find their own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--tune-batch searches in one process; run `uniaudio tune-batch` first and set the budget that it prints"
        )
    budget = int(tune_batch(name, overrides, None, 4000, trust=trust))
    stages = range(len(load_run(name, overrides).stages))
    return [*overrides, *(f"stages.{index}.budget.audio_seconds={budget}.0" for index in stages)]


if __name__ == "__main__":
    try:
        allowed = Trust(*json.loads(sys.argv[1]))
        print(json.dumps({"peak_gib": measure_step_peak(load_run(sys.argv[2], sys.argv[3:], allowed))}))
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        sys.exit(2)
