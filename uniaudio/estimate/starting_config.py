"""A first run config for new data: sizes that suit its clips and the machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uniaudio.build.encoders import find_checkpoint
from uniaudio.config.data_loading import DataConfig
from uniaudio.config.path_variables import make_absolute
from uniaudio.config.strict_yaml import dump_inline_yaml
from uniaudio.errors import UserError
from uniaudio.model.model_files import read_model_config
from uniaudio.train.checkpoint.integrity import CONFIG
from uniaudio.units import GIB

GPU_MODELS = ("openai/whisper-small", "Qwen/Qwen3-0.6B")  # encoder and decoder where none is named
CPU_MODELS = ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
BUDGET_PER_GIB = 6.0  # seconds of audio in a micro-batch, of whisper-small with a decoder of 0.6 B
GPU_BUDGETS, CPU_BUDGET = (60.0, 600.0), 24.0  # seconds of audio
PER_EXAMPLE = 1.0  # seconds that an example costs for its text
PASSES = 20  # over the training rows
GPU_STEPS, CPU_STEPS = (200, 2000), (50, 300)  # fewest and most
GUESSED_SECONDS = 10.0  # of clips whose length is not known
LONGEST = 30.0  # seconds of a clip that is trained on as a whole where it can be cut
SHORT = 15.0  # seconds: Whisper was never trained on clips that end so early
MOST_WORKERS = 8
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SKIPPED, MOST_SKIPPED = (
    0.04,
    0.95,
)  # share of unusable rows above which the config allows them; most that is allowed


@dataclass(frozen=True)
class HostMachine:
    """The machine of this process: CPU cores and GiB of memory, GPUs and GiB of the smallest."""

    cores: int
    memory_gib: float
    gpus: int
    gpu_gib: float

    @classmethod
    def measure(cls) -> HostMachine:
        """Look at this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        sizes = [torch.cuda.get_device_properties(i).total_memory / GIB for i in range(gpus)]
        return cls(cores, memory, gpus, min(sizes, default=0.0))

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU(s) of {self.gpu_gib:.0f} GiB" if self.gpus else "no GPU"
        return f"{self.cores} CPU core(s), {self.memory_gib:.0f} GiB of memory, {gpus}"


@dataclass(frozen=True)
class StartingSizes:
    """What the first run of new data is like.

    Args:
        budget: seconds of audio in a micro-batch. micro_batches: of a step on one device. steps: of the run.
        passes: over the training rows; None where their number is not known.
        max_skipped_share: of rows that cannot be used, where it has to be said.
        pool: rows that are sorted by length together, where the usual pools would hold a row several times.
    """

    budget: float
    micro_batches: int
    steps: int
    passes: float | None
    workers: int
    max_skipped_share: float | None = None
    pool: int | None = None

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return max(1, self.steps // 10)


def choose_sizes(
    machine: HostMachine, lengths: Sequence[float], rows: int | None, unusable: float, can_cut: bool
) -> StartingSizes:
    """Return the sizes for clips of some lengths.

    Args:
        lengths: of some clips in seconds. rows: that are trained on. unusable: share of rows that cannot be used.
        can_cut: long clips are cut into windows.
    """
    mean = float(np.mean(lengths)) if lengths else GUESSED_SECONDS
    longest = float(np.quantile(lengths, 0.99)) if lengths else LONGEST
    longest = min(longest, LONGEST) if can_cut else longest
    budget = (
        min(max(BUDGET_PER_GIB * machine.gpu_gib, GPU_BUDGETS[0]), GPU_BUDGETS[1])
        if machine.gpus
        else CPU_BUDGET
    )
    budget = math.ceil(max(budget, longest + PER_EXAMPLE))
    micro_batches = machine.gpus or 2
    examples = micro_batches * budget / (min(mean, longest) + PER_EXAMPLE)
    fewest, most = GPU_STEPS if machine.gpus else CPU_STEPS
    wanted = most if rows is None else math.ceil(PASSES * rows / examples)
    steps = min(max(wanted, fewest), most)
    workers = min(max(machine.cores - 1, 0), MOST_WORKERS)
    # of few rows the part that is trained on may hold more of the unusable ones
    margin = max(unusable / 4, 3 * math.sqrt(unusable * (1 - unusable) / rows) if rows else 0.0)
    skipped = min(MOST_SKIPPED, math.ceil(100 * (unusable + margin)) / 100) if unusable > SKIPPED else None
    usual = DataConfig()
    pool = max(1, rows // usual.streams) if rows and rows < usual.pool * usual.streams else None
    return StartingSizes(
        budget, micro_batches, steps, None if not rows else steps * examples / rows, workers, skipped, pool
    )


def choose_models(machine: HostMachine, encoder: str | None, decoder: str | None) -> tuple[str, str]:
    """Return encoder and decoder: those that are named, else usual ones that the machine can train with.

    Raises:
        UserError: for a folder that is not there or holds no model.
    """
    usual = GPU_MODELS if machine.gpus else CPU_MODELS
    for option, path in (("--encoder", encoder), ("--decoder", decoder)):
        if path is None or (HUB_NAME.fullmatch(path) and not Path(path).is_dir()):
            continue
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"{option} {path}: there is no such folder, and Hub names are written OWNER/NAME")
        if not (folder / "config.json").is_file() and find_checkpoint(str(folder), (CONFIG,)) is None:
            raise UserError(f"{option} {path}: the folder is neither a model (no config.json) nor a run")
    return make_portable(encoder) or usual[0], make_portable(decoder) or usual[1]


def make_portable(path: str | None) -> str | None:
    """Return a folder as a path that means the same from anywhere; a Hub name stays as it is."""
    if path is None or not Path(path).expanduser().is_dir():
        return path
    return str(make_absolute(Path(path).expanduser()))


def is_whisper(encoder: str) -> bool:
    """Return whether an encoder is a Whisper: by its config where it is at hand, else by its name."""
    folder = Path(encoder)
    if (folder / "config.json").is_file():
        return read_model_config(folder).get("model_type") == "whisper"
    return "whisper" in encoder.lower()


def render_config(
    name: str,
    encoder: str,
    decoder: str,
    machine: HostMachine,
    sizes: StartingSizes,
    short: bool,
    is_evaluated: bool,
) -> str:
    """Return the run config as YAML with comments.

    Args:
        short: clips are much shorter than Whisper's 30 s. is_evaluated: the recipe has an evaluation set.
    """
    every = max(1, sizes.steps // 5)
    train = {"micro_batches": sizes.micro_batches, "log_every": 5, "save_every": every}
    if is_evaluated:
        train["evaluate_every"] = every
    data: dict[str, float] = {"workers": sizes.workers}
    comments = ["# workers: processes that read and decode clips."]
    if sizes.pool is not None:
        data["pool"] = sizes.pool
        comments.append("# pool: rows that are sorted by length together; few enough that none occurs twice.")
    if sizes.max_skipped_share is not None:
        data["max_skipped_share"] = sizes.max_skipped_share
        comments.append("# max_skipped_share: higher than usual, because many rows cannot be used.")
    about_data = "\n".join(comments)
    about = "" if sizes.passes is None else f", about {sizes.passes:.2g} passes over the training rows"
    return f"""\
# The model and its training, for {machine}.
# Any key can be changed here, or on the command line: uniaudio train configs/{name}.yaml stages.0.steps=500
{render_encoder(encoder, short)}
# The adapter turns the encoder's frames into 12.5 audio tokens per second for the decoder.
adapter: {{kind: stack, rate: 12.5, lr: 1e-3}}
# The language model that reads the audio tokens; it stays frozen.
decoder: {{path: {dump_inline_yaml([decoder], 10_000)[1:-1]}}}
{about_data}
data: {dump_inline_yaml(data)}
# micro_batches: micro-batches of one optimizer step, over all devices.
train: {dump_inline_yaml(train)}
stages:
  # {sizes.steps} steps{about}. audio_seconds is the size of a micro-batch, to which each
  # example adds the seconds of its clip and, for its text, per_example: lower it if memory runs out
  # (`uniaudio train --tune-batch` searches for the largest that fits).
  - name: joint
    recipe: {dump_inline_yaml(name)}
    steps: {sizes.steps}
    warmup: {sizes.warmup}
    budget: {{audio_seconds: {sizes.budget:g}, per_example: {PER_EXAMPLE:g}}}
"""


def render_encoder(encoder: str, short: bool) -> str:
    """Return the key ``encoders`` of the run config, see ``render_config``."""
    name = "whisper" if is_whisper(encoder) else Path(encoder).name
    key = re.sub(r"\W+", "_", name).strip("_") or "encoder"
    settings = f"path: {dump_inline_yaml([encoder], 10_000)[1:-1]}, train: full, lr: 2e-5"
    comment = ""
    if short and is_whisper(encoder):
        settings += ", pad_to: 30, pad_stride: 16, tail_frames: 2"
        comment = (
            "# Whisper was pretrained with silence after each clip; here the clips of a batch share it.\n"
        )
    return f"{comment}encoders:\n  {key}: {{{settings}}}"
