"""Where embeddings lie on disk: under the content of the model, of the clips and of the way they were pooled."""

from __future__ import annotations

import hashlib
from pathlib import Path

from uniaudio.config.search_paths import cache_root


def cache_file(model: str, data: str, pooling: str, layer: int | None) -> Path:
    """Return where embeddings lie: ``$UNIAUDIO_CACHE/embeddings/MODEL/NAME.safetensors``.

    Args:
        model, data: digests of the model and of the clips. pooling: what was done to the frames.
        layer: number of a hidden state, None for the frames themselves.
    """
    name = hashlib.sha256(f"{data}\n{pooling}\n{layer}".encode()).hexdigest()
    return cache_root() / "embeddings" / model[:16] / f"{name[:32]}.safetensors"
