"""What the loop is given: the models of a run, the data of its stages, and an evaluator."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from uniaudio.data.loader import StepBatch
from uniaudio.data.skipped_rows import Skip
from uniaudio.train.activation_checkpointing import Recomputing
from uniaudio.train.adaptive_mixture import AdaptiveMixture
from uniaudio.train.engines.base import Engine
from uniaudio.train.tracker_kinds import AnswerSample
from uniaudio.types import Batch


class Models(Protocol):
    """Builds the model of every stage from the weights named in the config."""

    @property
    def bases(self) -> Mapping[str, Mapping[str, str]]:
        """The identities of the starting weights, by part."""
        ...

    def build(self) -> nn.Module:
        """Return a new model with the starting weights, on the device that the engine wants it on."""
        ...

    def choose_recomputing(self, stage: int, engine: Engine) -> Recomputing:
        """Let parts of the model of a stage recompute their activations, and return which."""
        ...

    def write_start(self) -> None:
        """Write what the run folder keeps of the run's beginning; called in the main process, all checks done."""
        ...


class TrainingData(Protocol):
    """The data of all stages. Batches depend on the model: on the audio tokens of a clip, on cached frames."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The K task names, in the order of the indices in batches."""
        ...

    def open_steps(
        self, stage: int, model: nn.Module, balance: AdaptiveMixture, state: dict[str, Any] | None
    ) -> tuple[dict[str, Any], Generator[StepBatch, None, None]]:
        """Return a position, and the endless steps of a stage for this rank from there on.

        Args:
            balance: the adaptive mixture. state: the position to go on from, None for the beginning.

        Raises:
            UserError: when the data are not those that ``state`` is a position of.
        """
        ...

    def join_states(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the one position, from that of every rank, that any number of ranks can go on from."""
        ...

    def iterate_examples(self, stage: int, model: nn.Module, recipe: str | None) -> Iterator[Batch]:
        """Yield batches of one row of a named recipe, or that of the stage before; the same on all ranks."""
        ...

    def take_skips(self) -> Sequence[Skip]:
        """Return the rows that ``iterate_examples`` left out since the last call; the same on all ranks."""
        ...

    def encode_in_text(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of an answer as it is written within a sentence."""
        ...

    def list_entry_tasks(self, stage: int) -> Mapping[str, Sequence[str]]:
        """Return the tasks of each entry of a stage's recipe."""
        ...


class Evaluator(Protocol):
    """Evaluates the model between steps. With ``shared`` the ranks may share the examples out; all of them call."""

    def evaluate(self, model: nn.Module, shared: bool) -> tuple[dict[str, Any], list[AnswerSample]]:
        """Return the scores of the evaluation sets, for the metrics, and some answers, for the trackers."""
        ...

    def compute_validation_losses(
        self, stage: int, model: nn.Module, count: int, shared: bool
    ) -> tuple[dict[str, float], list[str]]:
        """Return the loss per answer token of each task of a stage, over ``count`` examples of every set.

        Returns:
            The losses by task, and a sentence for each set that is left out.
        """
        ...

    def check_guard(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return a sentence for each guarded set that got worse than the config allows, or cannot be scored any more,
        and sentences about clips that were left out.
        """
        ...
