"""Submissions to the benchmark suites X-ARES and XARES-LLM: one Python file beside an exported encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from uniaudio.export import xares_encoder, xares_llm_encoder

FILE = "uniaudio_encoder.py"
ENCODER = "encoder"  # the folder that AutoModel loads, beside the file
SUITES: Mapping[str, ModuleType] = {"xares": xares_encoder, "xares-llm": xares_llm_encoder}
CLASS = "UniaudioEncoder"


def write_suite_file(folder: Path, suite: str) -> Path:
    """Write the file of a suite into a folder whose ``encoder/`` holds an exported encoder.

    The class ends in ``Encoder``, as both suites want, and carries the first digits of the hash of the weights.
    """
    weights = (folder / ENCODER / "model.safetensors").read_bytes()
    name = f"Uniaudio{hashlib.sha256(weights).hexdigest()[:8]}Encoder"
    source = SUITES[suite].__file__
    assert source is not None
    file = folder / FILE
    file.write_text(Path(source).read_text(encoding="utf-8").replace(CLASS, name), encoding="utf-8")
    return file
