"""Encoder classes of the user's own, tried on noise before a run: mistakes that show late, or never, cost most."""

from __future__ import annotations

import torch
from torch import Tensor

from uniaudio.checks.encoder_contract import (
    LENGTHS,
    check_attributes,
    make_noise_clips,
    measure_batch_effect,
)
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder, find_device
from uniaudio.model.encoders.imported import (
    GUIDE,
    collect_all_tensors,
    describe_error,
    load_imported_encoder,
)
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Encoded

VISIBLE = 1e-3  # of the largest value: differences above it are no rounding


def check_imported_encoders(config: RunConfig, device: torch.device) -> list[str]:
    """Make each class that the config names as ``module:Class`` and try it on noise, on the device of the run.

    Returns:
        Sentences about what training can do with but should not: frames that depend on the other clips of a batch, or
        on chance.

    Raises:
        UserError: naming the encoder, when it does not return what it states, two of it differ in their first weights,
            or training would change what checkpoints do not hold or not reach its parameters.
    """
    warnings = []
    for name, settings in config.encoders.items():
        if ":" in settings.kind:
            encoder = load_imported_encoder(settings, f"encoders.{name}", config.seed, config.trust)
            require_same_start(encoder, settings, config, name)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                warnings += try_encoder(encoder.to(device), settings, f"encoders.{name}: {settings.kind}")
    return warnings


def require_same_start(encoder: AudioEncoder, settings: EncoderConfig, config: RunConfig, name: str) -> None:
    """Refuse a class whose weights are others each time it is made: a resumed run would go on with others.

    Raises:
        UserError: naming a tensor that differs.
    """
    again = load_imported_encoder(settings, f"encoders.{name}", config.seed, config.trust)
    if again.initial_sha256 == encoder.initial_sha256:
        return
    first, second = collect_all_tensors(encoder), collect_all_tensors(again)
    changed = next(
        key
        for key in {**first, **second}
        if key not in first or key not in second or not torch.equal(first[key], second[key])
    )
    raise UserError(
        f"encoders.{name}: {settings.kind} has different values each time it is created (such as {changed}), and "
        "checkpoints do not store frozen ones; draw them with torch, whose generator is seeded, or load them from "
        "a file"
    )


def try_encoder(encoder: AudioEncoder, settings: EncoderConfig, name: str) -> list[str]:
    """Try an encoder on noise, in eval mode and in training; see ``check_imported_encoders``."""
    encoder.eval()
    clips = make_noise_clips(*LENGTHS).to(find_device(encoder))
    with torch.no_grad():
        frames = run_encoder(encoder, clips, name)
        require_stated_frames(encoder, frames, name)
        require_finite_silence(encoder, name)
        effect = measure_batch_effect(encoder)
        again = encoder(clips).frames.values
    if settings.train != "frozen":
        require_training(encoder, clips, name)
    if not torch.equal(again, frames.values):
        return [
            f"{name} gives different frames for the same clips in a second pass, so results cannot be reproduced"
        ]
    if not effect <= VISIBLE:
        return [
            f"{name}: the frames of a clip depend on the other clips of its batch (by {effect:.2g} of the largest "
            "value), so results depend on the batch size; keep padding and other clips out of norms, convolutions "
            "and attention"
        ]
    return []


def run_encoder(encoder: AudioEncoder, clips: Ragged, name: str) -> Ragged:
    """Return the frames of some clips.

    Raises:
        UserError: when the encoder fails or returns something else.
    """
    try:
        encoded = encoder(clips, layers=False, masks=None)
    except Exception as problem:
        raise UserError(
            f"{name}: forward fails on {len(clips)} {'clip' if len(clips) == 1 else 'clips'} of int16 samples "
            f"({describe_error(problem)}); {GUIDE}"
        ) from problem
    if not isinstance(encoded, Encoded):
        raise UserError(f"{name}: forward returns {type(encoded).__name__}, not Encoded; {GUIDE}")
    return encoded.frames


def require_stated_frames(encoder: AudioEncoder, frames: Ragged, name: str) -> None:
    """Compare frames of ``LENGTHS`` with what the encoder states.

    Raises:
        UserError: naming what differs.
    """
    if frames.values.shape[1:] != (encoder.dim,):
        shape = tuple(frames.values.shape)
        raise UserError(f"{name}: frames have the shape {shape}, but dim says [frames, {encoder.dim}]")
    if len(frames) != len(LENGTHS):
        raise UserError(f"{name}: forward returns frames of {len(frames)} clips for {len(LENGTHS)} clips")
    for samples, given in zip(LENGTHS, frames.lengths.tolist(), strict=True):
        stated = encoder.num_frames(samples)
        if stated != given or not isinstance(stated, int) or stated < 1:
            raise UserError(
                f"{name}: a clip of {samples} samples has {given} frames, but num_frames says {stated}; it must be "
                "their number, at least 1, for every length"
            )
    try:
        check_attributes(encoder)
    except AssertionError as misfit:
        raise UserError(f"{name}: {misfit}") from misfit
    if not frames.values.isfinite().all():
        raise UserError(f"{name}: the frames of noise are not finite (NaN or infinite)")


def require_finite_silence(encoder: AudioEncoder, name: str) -> None:
    """Try a clip of zeros, such as recordings begin and end with.

    Raises:
        UserError: when its frames are not finite.
    """
    quiet = Ragged.from_rows([torch.zeros(SAMPLE_RATE, dtype=torch.int16)]).to(find_device(encoder))
    if not run_encoder(encoder, quiet, name).values.isfinite().all():
        raise UserError(
            f"{name}: the frames of silence are not finite (NaN or infinite); add a small number before logarithms and "
            "divisions"
        )


def require_training(encoder: AudioEncoder, clips: Ragged, name: str) -> None:
    """Try a step without an update.

    Raises:
        UserError: when a buffer changes, or no parameter gets a gradient.
    """
    before = {key: buffer.clone() for key, buffer in encoder.named_buffers()}
    encoder.train()
    frames = run_encoder(encoder, clips, name).values
    changed = [key for key, buffer in encoder.named_buffers() if not torch.equal(buffer, before[key])]
    if changed:
        raise UserError(
            f"{name}: forward changes the buffer {changed[0]} in training, but checkpoints store only parameters; keep "
            "it constant (batch norms are kept in eval mode)"
        )
    if not frames.requires_grad or not has_gradients(encoder, frames):
        raise UserError(
            f"{name}: no parameter gets a gradient; compute the frames without no_grad or detach, or set train: frozen"
        )
    encoder.eval()


def has_gradients(encoder: AudioEncoder, frames: Tensor) -> bool:
    """Return whether frames depend on any trained parameter."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(frames.float().square().sum(), trained, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)
