"""Callbacks of users: objects whose methods training calls, given from Python or named in the config."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from uniaudio.config.nearest import suggest_name
from uniaudio.config.trust import Trust, import_code
from uniaudio.errors import UserError, convert_to_user_error, escape_text, read_first_line

EVENTS = ("on_stage", "on_step", "on_log", "on_evaluate", "on_save")


@dataclass(frozen=True)
class CallbackEvent:
    """What a callback receives.

    Args:
        step: optimizer steps done, of the whole run. stage: name of the stage.
        metrics: figures of the event, see ``Callback``.
        model: encoder, adapter and decoder as the engine holds them; its mode is restored behind the call.
        folder: of the run. is_main: whether this is the main process.
        stop: call it to save a checkpoint and end the run before the next step, as after SIGTERM.
    """

    step: int
    stage: str
    metrics: Mapping[str, Any]
    model: nn.Module
    folder: Path
    is_main: bool
    stop: Callable[[], None]


class Callback:
    """The calls that training makes; a callback is any object with some of these methods.

    All are called on every process of a run, but ``on_save``. A call must not exchange anything between processes
    unless it does so on all of them. Training waits for it, and the random numbers that it draws change nothing in the
    run.

    Example:
        >>> class StopWhenGood(uniaudio.Callback):
        ...     def on_log(self, event):
        ...         if event.metrics["loss"] < 6.0:
        ...             event.stop()
        >>> options = {"output_dir": "runs/stopped", "train.log_every": 1}
        >>> run = uniaudio.train("configs/birds.yaml", options, callbacks=[StopWhenGood()])
        >>> run.is_finished, run.step
        (False, 1)
    """

    def on_stage(self, event: CallbackEvent) -> None:
        """A stage begins or goes on. Metrics: its engine, processes and trained parameters."""

    def on_step(self, event: CallbackEvent) -> None:
        """An optimizer step is done. Metrics: ``loss`` of this process, ``grad_norm``, ``lr`` by component,
        ``answer_tokens`` and ``audio_seconds`` of all processes; a norm that was not finite is None.
        """

    def on_log(self, event: CallbackEvent) -> None:
        """A row of metrics was written, every ``train.log_every`` steps and with a checkpoint. Metrics: that row."""

    def on_evaluate(self, event: CallbackEvent) -> None:
        """The evaluation sets were answered, every ``train.evaluate_every`` steps. Metrics: the results by set."""

    def on_save(self, event: CallbackEvent) -> None:
        """A checkpoint is whole; on the main process alone, up to some steps after ``event.step``, for checkpoints are
        written while training goes on. Metrics: ``checkpoint``, its folder.
        """


class UserCallbacks:
    """Calls the callbacks of a run.

    Args:
        callbacks: from ``collect_callbacks``. folder: of the run. stop: see ``CallbackEvent``.
    """

    def __init__(
        self, callbacks: Sequence[object], folder: Path, is_main: bool, stop: Callable[[], None]
    ) -> None:
        self.callbacks, self.folder, self.is_main, self.stop = callbacks, folder, is_main, stop
        self.stage = ""
        self.model: nn.Module | None = None

    def enter_stage(self, stage: str, model: nn.Module | None) -> None:
        """Note which stage and model the next events are of; None: the model is freed."""
        self.stage, self.model = stage, model

    def has(self, event: str) -> bool:
        """Return whether anybody waits for an event."""
        return any(hasattr(callback, event) for callback in self.callbacks)

    def call(self, event: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Call a method of all callbacks that have it.

        Raises:
            UserError: for an exception in one, naming the callback, and the line of its code.
        """
        if not self.has(event):
            return
        assert self.model is not None
        given = CallbackEvent(
            step, self.stage, dict(metrics), self.model, self.folder, self.is_main, self.stop
        )
        modes = {module: module.training for module in self.model.modules()}
        for callback in self.callbacks:
            if hasattr(callback, event):
                self.call_one(callback, event, given)
        for module, mode in modes.items():
            module.training = mode

    def call_one(self, callback: object, event: str, given: CallbackEvent) -> None:
        """Call a method of one callback, see ``call``."""
        name = f"callback {type(callback).__name__}.{event}"
        try:
            with convert_to_user_error(name):
                getattr(callback, event)(given)
        except UserError as problem:
            cause = problem.__cause__ or problem
            frames = traceback.extract_tb(cause.__traceback__)
            ours = max((i for i, frame in enumerate(frames) if frame.filename == __file__), default=-1)
            place = frames[min(ours + 1, len(frames) - 1)]  # in the callback, not in what it called
            reason = escape_text(f"{type(cause).__name__}: {read_first_line(cause)}")
            raise UserError(
                f"{name} failed at step {given.step} ({reason}, {Path(place.filename).name} line "
                f"{place.lineno}); fix it, and continue the run from its last checkpoint with "
                "--resume (resume=True in Python)"
            ) from cause


def collect_callbacks(given: Sequence[object], names: Sequence[str], trust: Trust) -> list[object]:
    """Return the callbacks of a run, those of its config made as ``Class()``.

    Args:
        given: from Python; objects, or classes that are made without arguments. names: ``module:Class`` of the config.

    Raises:
        UserError: when code of the config was not allowed or cannot be imported, or an object has no method that
            training calls, or one beginning with ``on_`` that it does not know.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"callbacks: give a list of objects, not {type(given).__name__}")
    callbacks = []
    for callback in given:
        with convert_to_user_error(
            f"callbacks: {callback} cannot be created", "give an object of that class"
        ):
            callbacks.append(callback() if isinstance(callback, type) else callback)
    for number, name in enumerate(names):
        kind = import_code(name, f"train.callbacks.{number}", trust)
        with convert_to_user_error(f"train.callbacks.{number}: {name}() cannot be created"):
            callbacks.append(kind())
    for callback in callbacks:
        methods = [name for name in dir(callback) if name.startswith("on_")]
        unknown = [name for name in methods if name not in EVENTS]
        if unknown or not methods:
            what = f"{unknown[0]}: no such event" if unknown else "it has none of the callback methods"
            near = suggest_name(unknown[0], EVENTS) if unknown else ""
            raise UserError(f"callback {type(callback).__name__}: {what}{near}; known: {', '.join(EVENTS)}")
    return callbacks
