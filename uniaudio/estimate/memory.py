"""The bytes of a trained parameter on one GPU under every engine, and what of its memory is used."""

from __future__ import annotations

PARTS = ("weights", "frozen", "gradients", "optimizer", "activations", "logits")
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
