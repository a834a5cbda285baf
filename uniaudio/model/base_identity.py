"""What a checkpoint records of the models that it was trained from, so that other ones are noticed when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from uniaudio.errors import convert_to_user_error
from uniaudio.model.model_files import EXTRACTOR_FILE, PROCESSOR_FILE, RANDOM, fetch_model_config

HASHES = CONTENT, FILES = "sha256", "files_sha256"  # keys of an identity
CODE = "code_sha256"  # another key, known once a model is built, see `hash_source_code`
EXTRACTOR_FILES = (EXTRACTOR_FILE, PROCESSOR_FILE)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model"),
    *("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"),
)
HASHED_WHOLE = 200 * 2**20  # bytes of a file of weights; of larger ones parts are read
FIRST = 2**20  # bytes at the beginning of a larger file that `sha256` is of
BLOCKS, BLOCK = 128, 2**16  # parts of a larger file that `files_sha256` is of, and bytes of each
LARGEST_HEADER = 100_000_000  # bytes that the safetensors format allows


def identify_base(path: str, revision: str | None, beside: Sequence[str] = EXTRACTOR_FILES) -> dict[str, str]:
    """Return the name of a Hub repository with its commit, or hashes of what is in a folder.

    ``sha256`` is a hash of config.json and the weights; of files over 200 MiB, of their size and first mebibyte.
    ``files_sha256`` is one of what that leaves out: the files ``beside`` the weights, and of larger files the header
    and 128 blocks spread evenly over them, 8 MiB in all, for nobody wants to wait for many gigabytes at every start. So
    other weights and other names or shapes are noticed, but not a few values that were changed between two blocks.

    Args:
        beside: names of files that are read together with the weights; those that are missing do not count.

    Raises:
        UserError: when it is neither a folder with a model nor a model of the Hub, or cannot be read.
    """
    folder = Path(path.removeprefix(RANDOM))
    if not folder.is_dir():
        return {"path": path, "revision": fetch_model_config(path, revision).name}  # under snapshots/COMMIT/
    with convert_to_user_error(f"{folder}: its config.json cannot be read"):
        content = hashlib.sha256((folder / "config.json").read_bytes())
    files = hashlib.sha256()
    with convert_to_user_error(f"{folder}: its files cannot be read"):
        for file in (folder / name for name in beside):
            if file.is_file():
                files.update(f"{file.name}:{file.stat().st_size}\n".encode())
                files.update(file.read_bytes())
        for file in sorted(folder.glob("*.safetensors")):
            if file.stat().st_size <= HASHED_WHOLE:
                content.update(file.read_bytes())
                continue
            first, parts = read_parts(file)
            name = f"{file.name}:{file.stat().st_size}".encode()
            content.update(name + first)
            files.update(name + parts)
    return {"path": path, CONTENT: content.hexdigest(), FILES: files.hexdigest()}


def read_parts(file: Path) -> tuple[bytes, bytes]:
    """Return the first mebibyte of a large file of weights, and its header with blocks from all over it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(FIRST)
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        parts = [stream.read(min(length, LARGEST_HEADER))]
        for number in range(BLOCKS):
            stream.seek(max(0, size - BLOCK) * number // (BLOCKS - 1))
            parts.append(stream.read(BLOCK))
    return first, b"".join(parts)
