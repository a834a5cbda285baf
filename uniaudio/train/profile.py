"""Where the time of a step goes: a torch profiler trace, and a table of time by part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from uniaudio.model.fusion.encoder import CompositeEncoder
from uniaudio.model.mel import LogMel
from uniaudio.outputs import write_json
from uniaudio.train.loggers import Tracker

MARK = "uniaudio::"  # before the names of parts in a trace
BACKWARD = "autograd::engine::evaluate_function: "
EXCHANGES = ("gloo:", "nccl:", "c10d::")
WARM = 5  # steps of a stage before the profiler looks: allocators and workers have settled
LOOKED_AT = 3  # steps in the trace


class StepProfile:
    """Looks at three steps after the first five and writes ``profile/`` in the run folder; then it is out of the way.

    Every part is named in the trace: by hooks on the modules, and in the loop by ``part``. What the backward does is
    counted to the part whose forward recorded it (the profiler numbers both alike).

    Args:
        wanted: whether to look at all; the main process of a run whose config says ``train.profile: true``.
    """

    def __init__(self, wanted: bool, run_dir: Path, tracker: Tracker) -> None:
        self.wanted, self.folder, self.tracker = wanted, run_dir / "profile", tracker
        self.steps = 0
        self.looking: profile | None = None
        self.hooks: list[Any] = []

    def part(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a part of the step."""
        return contextlib.nullcontext() if self.looking is None else record_function(MARK + name)

    def count_step(self, model: nn.Module) -> None:
        """Count a step; begin or end the look when it is time.

        Args:
            model: the plain model, whose parts get names while the profiler looks.
        """
        if not self.wanted:
            return
        self.steps += 1
        if self.steps == WARM:
            self.begin(model)
        elif self.steps == WARM + LOOKED_AT:
            self.end()

    def close(self) -> None:
        """Say where a run came to its end before there was a profile."""
        if not self.wanted:
            return
        if self.looking is not None:
            self.looking.__exit__(None, None, None)
        self.wanted, self.looking = False, None
        self.tracker.warn(
            f"train.profile: no profile was written, because the run did fewer than {WARM + LOOKED_AT} steps"
        )

    def begin(self, model: nn.Module) -> None:
        for name, module in iterate_parts(model):
            self.hooks += mark_calls(name, module)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            activities.append(ProfilerActivity.CUDA)
        self.looking = profile(activities=activities, acc_events=True)
        self.looking.__enter__()
        self.started = time.perf_counter()

    def end(self) -> None:
        assert self.looking is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        done, self.looking, self.wanted = self.looking, None, False
        done.__exit__(None, None, None)
        for hook in self.hooks:
            hook.remove()
        on_device = torch.cuda.is_available()
        parts = sum_time_by_part(done.events() or [], on_device)
        facts = {
            "steps": LOOKED_AT,
            "seconds_per_step": seconds / LOOKED_AT,
            "clock": "cuda" if on_device else "cpu",
            "parts": {name: {k: v / LOOKED_AT for k, v in row.items()} for name, row in parts.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(self.folder / "trace.json.gz"))
        write_json(self.folder / "parts.json", facts)
        self.tracker.console.print(build_parts_table(facts))
        self.tracker.say(f"{self.folder / 'trace.json.gz'}: open it in a viewer for Chrome traces")


def iterate_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of an ``AudioLM`` whose calls get names; an inner name counts before the one around it."""
    yield "decoder", model
    encoder: Any = model.encoder
    if isinstance(encoder, CompositeEncoder):
        yield "fusion", encoder
        yield from ((f"encoder {name}", part) for name, part in encoder.encoders.items())
    else:
        yield "encoder", encoder
    yield from (("mel", module) for module in encoder.modules() if isinstance(module, LogMel))
    yield "adapter", model.adapter  # type: ignore[misc]


def mark_calls(name: str, module: nn.Module) -> list[Any]:
    """Let every call of a module stand under a name in the trace; return the hooks."""
    open_marks: list[record_function] = []

    def before(*_: Any) -> None:
        open_marks.append(record_function(MARK + name))
        open_marks[-1].__enter__()

    def after(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def sum_time_by_part(events: Iterable[Any], on_device: bool) -> dict[str, dict[str, float]]:
    """Add up the time of a profile's events: ``{part: {"forward", "backward"}}`` in seconds.

    Args:
        on_device: count the device's time rather than the host's. Waiting for data is the host's in any case, and so
            is ``communication``, the time of exchanges from their start to their end: they may run beside the rest.
    """
    events = [event for event in events if event.device_type.name == "CPU"]
    forward_part = {}
    for event in events:
        if event.sequence_nr >= 0 and backward_of(event) is None and (name := name_of_mark(event)):
            forward_part[event.sequence_nr] = name
    times: dict[str, dict[str, float]] = {}
    for event in events:
        if event.name.startswith(EXCHANGES):
            name, direction, spent = "communication", "forward", event.cpu_time_total
        elif name_of_mark(event) == "data":
            name, direction, spent = "data", "forward", event.self_cpu_time_total
        else:
            number = backward_of(event)
            direction = "forward" if number is None else "backward"
            name = (name_of_mark(event) if number is None else forward_part.get(number)) or "rest"
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        row = times.setdefault(name, {"forward": 0.0, "backward": 0.0})
        row[direction] += spent / 1e6
    return times


def name_of_mark(event: Any) -> str | None:
    """Return the innermost named part that an event lies in."""
    while event is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
        event = event.cpu_parent
    return None


def backward_of(event: Any) -> int | None:
    """Return the number of the forward operation whose backward an event belongs to."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return int(event.sequence_nr)
        event = event.cpu_parent
    return None


def build_parts_table(facts: dict[str, Any]) -> Table:
    """Lay out milliseconds a step, forward and backward, and the share of each part in the step."""
    whole = facts["seconds_per_step"]
    title = f"time by part: {whole * 1e3:.1f} ms per step ({facts['clock']} time, {facts['steps']} steps)"
    table = Table(title=title, title_justify="left")
    for column in ("part", "forward ms", "backward ms", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, row in sorted(facts["parts"].items(), key=lambda item: -sum(item[1].values())):
        both = row["forward"] + row["backward"]
        table.add_row(
            name, f"{row['forward'] * 1e3:.2f}", f"{row['backward'] * 1e3:.2f}", f"{both / whole:.1%}"
        )
    return table
