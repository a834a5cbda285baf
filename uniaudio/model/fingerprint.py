"""What a checkpoint records of the weights it stands on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from uniaudio.errors import convert_to_user_error
from uniaudio.model.encoders.weights import fetch_model_config

HASHED_WHOLE = (
    200 * 2**20
)  # bytes; of larger files the size and the first mebibyte (the safetensors header) count


def identify_base(path: str, revision: str | None) -> dict[str, str]:
    """Return a content hash of a folder's config and tensors, or a Hub name with its commit.

    Raises:
        UserError: when it is neither a folder with a model nor a model of the Hub, or cannot be read.
    """
    name = path.removeprefix("random:")
    folder = Path(name)
    if not folder.is_dir():
        return {"path": path, "revision": fetch_model_config(path, revision).name}  # under snapshots/COMMIT/
    with convert_to_user_error(f"{folder}: its config.json cannot be read"):
        digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        if file.stat().st_size <= HASHED_WHOLE:
            digest.update(file.read_bytes())
        else:
            digest.update(f"{file.name}:{file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(2**20))
    return {"path": path, "sha256": digest.hexdigest()}
