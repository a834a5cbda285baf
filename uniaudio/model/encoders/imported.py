"""Encoder classes of the user's own, which a config names as ``module:Class``."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor

from uniaudio.config.encoders import LISTENING, EncoderConfig, select_given
from uniaudio.config.trust import Trust, import_code
from uniaudio.errors import UserError, escape_text, read_first_line
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.model_hash import INSTALLED, view_bytes

GUIDE = "docs/fusion.md, 'Your own encoder', has an example"
HERE = Path(__file__).parents[2]  # the folder of this package


def import_encoder_class(config: EncoderConfig, where: str, trust: Trust) -> type[AudioEncoder]:
    """Return the user's own encoder class from a module that Python can import.

    Raises:
        UserError: when a setting was given that it would not see, its code was not allowed, there is no such module or
            class, or it is no ``AudioEncoder``.
    """
    for name in select_given(config, ("revision", *LISTENING)):
        raise UserError(
            f"{where}.{name}: {config.kind} is your own class, which is created with path and settings alone; write "
            "it under `settings`, or leave it out"
        )
    kind = import_code(config.kind, where, trust)
    if not (isinstance(kind, type) and issubclass(kind, AudioEncoder)):
        raise UserError(
            f"{where}.kind: {config.kind} is not a subclass of uniaudio's AudioEncoder; wrap it in one: {GUIDE}"
        )
    return kind


def load_imported_encoder(config: EncoderConfig, where: str, seed: int, trust: Trust) -> AudioEncoder:
    """Make the user's own encoder: ``Class(path, **settings)``, with torch's random numbers as a function of the seed.

    Raises:
        UserError: when it cannot be imported, does not take the settings, cannot be made, or does not state what every
            encoder states.
    """
    kind = import_encoder_class(config, where, trust)
    try:
        # of `__init__`, for `__new__` takes anything
        inspect.signature(kind.__init__).bind(None, config.path, **config.settings)
    except TypeError as problem:
        raise UserError(
            f"{where}: {config.kind} does not take these settings ({problem}); it is created as "
            f"{kind.__name__}(path, **settings)"
        ) from problem
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = kind(config.path, **config.settings)
    except UserError:
        raise
    except Exception as problem:
        raise UserError(f"{where}: {config.kind} cannot be created ({describe_error(problem)})") from problem
    if misfit := find_misfit(encoder):
        raise UserError(f"{where}: {config.kind} {misfit}; {GUIDE}")
    encoder.initial_sha256 = hash_tensors(encoder)
    return encoder


def describe_error(problem: BaseException) -> str:
    """Return what the user's code raised and the line of it that did."""
    line = f"{type(problem).__name__}: {escape_text(read_first_line(problem))}"
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        path = Path(frame.filename)
        if not (path.is_relative_to(HERE) or any(part in INSTALLED for part in path.parts)):
            return f"{line}; {path.name}, line {frame.lineno}"
    return line


def find_misfit(encoder: AudioEncoder) -> str:
    """Return what is wrong with attributes and methods, as the end of a sentence; empty if nothing is."""
    lacking = [
        name for name in ("dim", "frame_rate", "reach", "layer_dims") if not hasattr(encoder, name)
    ] + [
        name
        for name in ("num_frames", "forward")
        if getattr(type(encoder), name) is getattr(AudioEncoder, name)
    ]
    if lacking:
        return f"does not define {', '.join(lacking)}"
    wrong = [
        f"{name} is {getattr(encoder, name)!r}, not {wanted}"
        for name, holds, wanted in (
            ("dim", is_positive(encoder.dim, Integral), "a whole number above 0"),
            ("frame_rate", is_positive(encoder.frame_rate, Real), "a number above 0"),
            ("reach", encoder.reach is None or is_positive(encoder.reach, Real), "seconds or None"),
            (
                "layer_dims",
                isinstance(encoder.layer_dims, tuple)
                and all(is_positive(w, Integral) for w in encoder.layer_dims),
                "a tuple of widths",
            ),
        )
        if not holds
    ]
    if wrong:
        return f"states something wrong: {'; '.join(wrong)}"
    if encoder.layer_dims[-1:] != (encoder.dim,):
        return f"states something wrong: layer_dims {encoder.layer_dims} must end in dim, {encoder.dim}"
    return ""


def is_positive(value: object, kind: type) -> bool:
    """Return whether a value is a number of a kind above 0."""
    return isinstance(value, kind) and not isinstance(value, bool) and value > 0  # type: ignore[operator]


def collect_all_tensors(encoder: AudioEncoder) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that are not saved."""
    return {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}


def hash_tensors(encoder: AudioEncoder) -> str:
    """Return a SHA-256 of all parameters and buffers; hexadecimal text."""
    digest = hashlib.sha256()
    for name, tensor in sorted(collect_all_tensors(encoder).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(view_bytes(tensor))
    return digest.hexdigest()
