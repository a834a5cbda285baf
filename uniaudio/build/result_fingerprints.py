"""Which weights a result was measured on: fingerprints that are stored with results and compared with a run's own."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uniaudio.build.encoders import AVERAGED, find_checkpoint, identify_encoder
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import parse_model_spec, split_options
from uniaudio.errors import UserError
from uniaudio.model.base_identity import HASHES, identify_base
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.model_hash import hash_model
from uniaudio.run_records import list_step_folders
from uniaudio.train.checkpoint.folders import is_complete
from uniaudio.train.checkpoint.integrity import CONFIG, EMA


def fingerprint_checkpoint(spec: str) -> str:
    """Return the SHA-256 of a checkpoint's trained tensors and of what they stand on, as hexadecimal text.

    It depends on the files alone, so a run that was moved or copied keeps it.

    Args:
        spec: a run or checkpoint folder; ``:ema`` behind it takes its moving averages.

    Raises:
        UserError: when there is no whole checkpoint, or it holds no averages.
    """
    folder = find_checkpoint(spec)
    if folder is None:
        raise UserError(f"{spec} is neither a checkpoint nor a run folder with a complete checkpoint")
    path = f"{folder}{AVERAGED}" if spec.endswith(AVERAGED) else str(folder)
    return identify_encoder(EncoderConfig(path=path))["sha256"]


def fingerprint_model(spec: str, encoder: AudioEncoder) -> str:
    """Return the fingerprint of a run's checkpoint; of another model, and of a run whose settings the options of the
    MODEL change, a SHA-256 of the loaded encoder's content.
    """
    model = parse_model_spec(spec)
    if model.has_options or find_checkpoint(model.path, (CONFIG,)) is None:
        return hash_model(encoder)
    return fingerprint_checkpoint(spec)


def fingerprint_models(encoders: Mapping[str, AudioEncoder]) -> dict[str, str]:
    """Return the fingerprint of every model by its name, as results of probes hold them."""
    return {spec: fingerprint_model(spec, encoder) for spec, encoder in encoders.items()}


def fingerprint_base(path: str) -> str:
    """Return the commit of a model of the Hub, of a folder a SHA-256 of all that identifies it."""
    identity = identify_base(path, None)
    hashes = [identity[key] for key in HASHES if key in identity]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else identity["revision"]


def sign_answers(results: Mapping[str, dict[str, Any]], spec: str) -> dict[str, dict[str, Any]]:
    """Return results of evaluation sets with the name and the fingerprint of the model that gave the answers."""
    path, options = split_options(spec)
    is_run = find_checkpoint(path) is not None
    fingerprint = fingerprint_checkpoint(path) if is_run else fingerprint_base(path)
    if options:  # the same weights, but clips are read otherwise
        fingerprint = hashlib.sha256(f"{fingerprint}?{options}".encode()).hexdigest()
    return {name: {**result, "model": spec, "fingerprint": fingerprint} for name, result in results.items()}


def match_checkpoints(run: Path, fingerprints: Collection[str]) -> dict[str, str]:
    """Return which checkpoint of a run has which of some fingerprints: ``{fingerprint: "step-000123"}``.

    The newest are compared first, and no more of them than are needed; ``:ema`` behind a name stands for its averages.
    """
    missing = set(fingerprints)
    matches: dict[str, str] = {}
    for folder in reversed(list_step_folders(run / "checkpoints")):
        if not missing:
            break
        if is_complete(folder):
            for ending in ("", AVERAGED) if (folder / EMA).is_file() else ("",):
                fingerprint = fingerprint_checkpoint(f"{folder}{ending}")
                if fingerprint in missing:
                    matches[fingerprint] = f"{folder.name}{ending}"
                    missing.remove(fingerprint)
    return matches
