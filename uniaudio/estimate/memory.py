"""The bytes of a trained parameter on one GPU under every engine, those of the copies that continual-learning methods
keep, and what of its memory is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import nn

from uniaudio.config.stages import Stage
from uniaudio.train.continual.l2_sp_ewc import find_anchored_parameters

PARTS = ("weights", "frozen", "gradients", "optimizer", "continual", "activations", "logits")
# bytes of a trained parameter on one GPU: (whole on it, spread over all) of weights, gradients, moments and, in
# ZeRO-1 and 2, DeepSpeed's float32 copy of the weights that it updates; docs/scaling.md has the same table
ENGINES = {
    "single": ((4, 0), (4, 0), (8, 0)),
    "ddp": ((4, 0), (4, 0), (8, 0)),
    "zero1": ((4, 0), (4, 0), (0, 12)),
    "zero2": ((4, 0), (0, 4), (0, 12)),
    "zero3": ((0, 4), (0, 4), (0, 8)),
    "fsdp2": ((0, 4), (0, 4), (0, 8)),
}
SPREADS_FROZEN = ("zero3", "fsdp2")  # engines that spread the frozen weights too
SPREADS_AS = {"zero0": "ddp"}  # engines that spread as another one does
MARGIN = 0.9  # of a device's memory: engines' buffers, fragments and dearer micro-batches take the rest


def compute_parameter_bytes(
    engine: str, gpus: int, trained: int, frozen: int
) -> tuple[float, float, float, float]:
    """Return the bytes of weights, frozen weights, gradients and optimizer on one of so many GPUs.

    Args:
        trained: parameters. frozen: bytes of the others.
    """
    engine = SPREADS_AS.get(engine, engine)
    spread = 1 if engine == "single" else gpus
    weights, gradients, moments = (trained * (whole + shared / spread) for whole, shared in ENGINES[engine])
    return weights, frozen / (spread if engine in SPREADS_FROZEN else 1), gradients, moments


@dataclass(frozen=True)
class ContinualCopies:
    """What the continual-learning methods of a stage keep beside the model.

    Args:
        whole: bytes on every GPU. averaged: parameters with a moving average in float32.
    """

    whole: int = 0
    averaged: int = 0

    @classmethod
    def of(cls, model: nn.Module, stage: Stage) -> Self:
        """Add them up for the model of a stage, which need not have values.

        Distillation keeps a copy of the encoder. A penalty keeps the parameters' values at the start of the stage and
        their difference from those now, for its backward; EWC keeps Fisher information, too.

        Raises:
            UserError: when a penalty holds no parameter that is trained.
        """
        ways, where = stage.continual, f"stages.{stage.name}.continual"
        whole = 0
        if ways.distill is not None:
            whole += sum(p.untyped_storage().nbytes() for p in model.get_submodule("encoder").parameters())
        for name, penalty, tensors in (("l2sp", ways.l2sp, 2), ("ewc", ways.ewc, 3)):
            if penalty is not None:
                held = find_anchored_parameters(model, penalty.on, f"{where}.{name}").values()
                whole += tensors * sum(p.nbytes for p in held)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(whole, trained if ways.ema is not None else 0)

    def compute_bytes(self, engine: str, gpus: int) -> float:
        """Return the bytes on one of so many GPUs: averages are spread as the trained weights are."""
        return self.whole + compute_parameter_bytes(engine, gpus, self.averaged, 0)[0]
