"""Train universal audio encoders by asking them questions through a frozen language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from uniaudio.build.embedder import Embedder

__version__ = "0.1.0"


def load_encoder(
    path_or_name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
    allow_code: bool = False,
) -> Embedder:
    """Load an encoder to use: a run, a checkpoint, an exported folder, or a known model by folder or Hub name.

    Nothing heavy is imported before this is called.

    Args:
        path_or_name: as for ``uniaudio embed``; ``RUN:ema`` takes moving averages, ``random:PATH`` random weights.
        device: default CUDA where there is one, else the CPU. dtype: of the weights, default float32.
        trust_remote_code: let Python code that comes with the model run.
        allow_code: let a run import encoder classes that its config names as ``module:Class``.

    Raises:
        UserError: when it is none of these, or needs code that was not allowed.

    Example:
        >>> import uniaudio
        >>> encoder = uniaudio.load_encoder("runs/joint")  # doctest: +SKIP
        >>> encoder.embed(["dog.flac", "rain.wav"]).shape  # doctest: +SKIP
        (2, 768)
    """
    from uniaudio.build.embedder import load_embedder
    from uniaudio.config.trust import Trust

    return load_embedder(str(path_or_name), device, dtype, Trust(trust_remote_code, allow_code))
