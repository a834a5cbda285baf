"""What the loop is given: steps of data, a way to build the model, and what is asked of it between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from uniaudio.train.adaptive_mixture import Balance
from uniaudio.train.engines.base import Engine
from uniaudio.train.recomputing import Recomputing
from uniaudio.types import Batch


class Steps(Protocol):
    """One step of one rank: micro-batches, their cost in budgets, what was left out and drawn, the position behind."""

    @property
    def micro(self) -> tuple[Batch, ...]: ...
    @property
    def skips(self) -> tuple[Any, ...]: ...
    @property
    def drawn(self) -> Mapping[str, int]: ...
    @property
    def cost(self) -> float: ...
    @property
    def state(self) -> Any: ...
    @property
    def notices(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class TrainParts:
    """What the loop is given.

    Args:
        build: a new model with the weights that the config names, on the device.
        open_steps: (stage index, model, adaptive mixture, position in the data as JSON or None) to the endless steps.
        join_states: the positions of all ranks to the one that any number of ranks can continue from.
        tasks: the K task names. bases: identities of the starting weights.
        write_start: writes what a run keeps of its beginning, in the main process, when everything is checked.
        has_auxiliary: the model may return auxiliary losses; the same on all ranks.
        examples: (stage index, model, recipe or None) to batches of one example of an earlier recipe.
        entry_tasks: stage index to the tasks of each entry of its recipe.
        validation: (stage index, model, examples per set, shared) to the loss per answer token of each task.
        recompute: (stage index, engine) to what of its model makes its activations again, from then on.
        guard: the model to the score of every guarded set.
        evaluate: called with (model, shared) every ``train.evaluate_every`` steps. It and ``validation`` are called on
            every rank; ``shared``: the ranks may share the examples out.
    """

    build: Callable[[], nn.Module]
    open_steps: Callable[[int, nn.Module, Balance, dict[str, Any] | None], Iterator[Steps]]
    join_states: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    tasks: tuple[str, ...]
    bases: Mapping[str, Mapping[str, str]]
    write_start: Callable[[], None] = lambda: None
    has_auxiliary: bool = False
    examples: Callable[[int, nn.Module, str | None], Iterator[Batch]] = lambda stage, model, recipe: iter(())
    entry_tasks: Callable[[int], Mapping[str, Sequence[str]]] = lambda stage: {}
    validation: Callable[[int, nn.Module, int, bool], dict[str, float]] = lambda stage, model, count, shared: {}
    recompute: Callable[[int, Engine], Recomputing] = lambda stage, engine: Recomputing()
    guard: Callable[[nn.Module], list[str]] | None = None
    evaluate: Callable[[nn.Module, bool], dict[str, Any]] | None = None
