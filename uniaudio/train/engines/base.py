"""What the loop asks of an engine, whatever it shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # it reads the moments that are named here
    from uniaudio.train.checkpoint.reading import MomentFiles

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of every parameter


@dataclass(frozen=True)
class Whole:
    """One trained parameter, put together from all ranks, on the device.

    Args:
        weight: float32, as the parameter. moments: of AdamW, by their names; empty before the first update.
    """

    name: str
    weight: Tensor
    moments: Mapping[str, Tensor]


class Engine:
    """Runs one stage's model in one process; its subclasses run it in several: forward, exchange of gradients, update.

    Numbers are the same in every engine: weights, gradients and moments in float32; with bf16 the forward runs under
    autocast. Every rank must make the same calls in the same order.

    Args:
        plain: the model itself. optimizer: AdamW over its trained parameters.
    """

    name = "single"
    whole = True  # parameters can be read in full between steps, on every rank by itself
    gathers = False  # putting parameters and moments together takes all ranks at the same point

    def __init__(
        self, plain: nn.Module, optimizer: torch.optim.Optimizer, precision: torch.dtype | None
    ) -> None:
        self.plain = plain
        self.optimizer = optimizer
        self.precision = precision
        self.called: nn.Module = plain
        self.sizes = {name: p.numel() for name, p in plain.named_parameters() if p.requires_grad}

    def forward(self, *given: Any) -> Any:
        """Call the model in training."""
        with self.autocast():
            return self.called(*given)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward: autocast where the precision is not float32."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.plain.parameters()).device.type, self.precision)

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a micro-batch: ranks exchange gradients with the ``last`` one of a step."""
        return contextlib.nullcontext()

    def backward(self, objective: Tensor) -> None:
        """Add to the gradients."""
        objective.backward()

    def step(self, max_norm: float) -> float:
        """Clip the gradients to a norm, update the weights and clear the gradients; return the norm before clipping.

        Nothing is updated when the norm is not finite.
        """
        norm = float(self.clip_gradients(max_norm))
        if norm == norm and norm != float("inf"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Clip the gradients to a norm and return the norm that they had."""
        return nn.utils.clip_grad_norm_(self.plain.parameters(), max_norm)

    def list_trained(self) -> Iterator[Whole]:
        """Put the trained parameters together, one after the other."""
        for name, parameter in self.plain.named_parameters():
            if parameter.requires_grad:
                state = self.optimizer.state.get(parameter, {})
                moments = {kind: self.full(state[kind]) for kind in MOMENTS if kind in state}
                yield Whole(name, self.full(parameter.detach()), moments)

    def full(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor that may be spread over ranks."""
        return tensor

    def load_moments(self, saved: MomentFiles, updates: int) -> None:
        """Continue AdamW after so many updates."""
        for name, parameter in self.plain.named_parameters():
            if parameter.requires_grad and saved.has(name):
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(updates), device=self.get_step_device(parameter)),
                    **{kind: self.spread(saved.get(name, kind), parameter) for kind in MOMENTS},
                }

    def get_step_device(self, parameter: Tensor) -> torch.device:
        """Return where AdamW keeps its count of updates: on the device when it is fused."""
        fused = self.optimizer.param_groups[0].get("fused")
        return parameter.device if fused else torch.device("cpu")

    def spread(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor, laid out as the parameter is."""
        return tensor.to(parameter.device)

    def close(self) -> None:
        """Let go of the model before the next stage builds its own."""
        self.optimizer.state.clear()
