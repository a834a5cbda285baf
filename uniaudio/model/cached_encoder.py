"""Frozen encoders that keep their frames: which do, and a forward that runs on the clips it does not know yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.feature_cache import Clips, FeatureStore, FeatureWriter, look_up_frames
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.fusion.encoder import list_named_encoders
from uniaudio.model.model_hash import hash_model
from uniaudio.ragged import Ragged
from uniaudio.types import Encoded

Tell = Callable[[FeatureStore, Sequence[str], Ragged], None]


class CachedForward:
    """Takes the place of an encoder's ``forward``: known frames come with the clips, the others are computed.

    Where all are known, nothing of the encoder runs. Statistics (``Encoded.stats``) are not kept. Hidden states and
    masked spectrograms are not either: who asks for them gets them from the encoder.

    Args:
        encoder: frozen, in eval mode. store: of its frames. tell: called with keys and frames of clips that were not
            known, in the order of the clips.
        looks_up: whether plain samples are looked up here; else they are computed, as they are where workers of the
            loader bring the frames along.
    """

    def __init__(
        self, encoder: AudioEncoder, store: FeatureStore, tell: Tell, looks_up: bool = False
    ) -> None:
        self.compute: Callable[..., Encoded] = encoder.forward
        self.store, self.tell, self.looks_up = store, tell, looks_up

    def __call__(self, audio: Ragged, layers: bool = False, masks: Tensor | None = None) -> Encoded:
        """Encode C clips to frames ``[A, E]``, see ``AudioEncoder.forward``."""
        if self.looks_up and not isinstance(audio, Clips) and audio.values.dtype == torch.int16:
            audio = look_up_frames(audio.to("cpu"), (self.store,)).to(audio.device)
        known = audio.known.get(self.store.name) if isinstance(audio, Clips) else None
        if known is None or layers or (masks is not None and len(masks)):
            return self.compute(audio, layers=layers, masks=masks)
        assert isinstance(audio, Clips)
        missing = (known.lengths == 0).nonzero()[:, 0]
        if not len(missing):
            return Encoded(self.round_as_stored(known))
        unknown = audio if len(missing) == len(audio) else audio.select(missing)
        frames = self.compute(unknown).frames
        self.tell(self.store, unknown.keys, frames)
        frames = self.round_as_stored(frames)
        return Encoded(
            frames if unknown is audio else merge_frames(self.round_as_stored(known), frames, missing)
        )

    def round_as_stored(self, frames: Ragged) -> Ragged:
        """Return frames as they are when they come from the disk, so that every epoch trains on the same."""
        if self.store.dtype is None:
            return frames
        return frames.with_values(frames.values.to(self.store.dtype).float())


def merge_frames(known: Ragged, computed: Ragged, missing: Tensor) -> Ragged:
    """Return the frames of all clips in order.

    Args:
        known: a row for every clip, empty for those that are ``missing``. computed: a row for each of those.
    """
    there = (known.lengths > 0).nonzero()[:, 0]
    both = Ragged(
        torch.cat([known.values, computed.values]), torch.cat([known.lengths[there], computed.lengths])
    )
    return both.select(torch.cat([there, missing]).argsort())


def attach_frame_cache(
    encoder: AudioEncoder, store: FeatureStore, tell: Tell, looks_up: bool = False
) -> None:
    """Let an encoder look at what its clips bring along, or look plain samples up itself."""
    part: Any = encoder
    part.forward = CachedForward(encoder, store, tell, looks_up)


def detach_frame_cache(model: torch.nn.Module) -> None:
    """Let the encoders in a model compute all frames again."""
    for part in model.modules():
        if isinstance(vars(part).get("forward"), CachedForward):
            del part.forward


def list_frame_stores(model: torch.nn.Module) -> tuple[FeatureStore, ...]:
    """Return the stores of the encoders in a model that recall their frames, each once."""
    ways = [vars(part).get("forward") for part in model.modules()]
    return tuple(dict.fromkeys(way.store for way in ways if isinstance(way, CachedForward)))


def find_cached_parts(encoder: AudioEncoder, config: RunConfig) -> dict[str, AudioEncoder]:
    """Return the encoders whose frames the config wants kept, by name."""
    parts = list_named_encoders(config, encoder)
    return {name: parts[name] for name, settings in config.encoders.items() if settings.cache}


def make_feature_stores(
    encoder: AudioEncoder, config: RunConfig, precision: torch.dtype | None, device: torch.device
) -> dict[str, FeatureStore]:
    """Return where the frames of the encoders lie that the stage does not train, by name; whole weights are needed.

    Precision and kind of device are part of the name, for they change the last digits, and so is the revision: foreign
    code may change with it.

    Raises:
        UserError: for an encoder that hears a clip differently from question to question.
    """
    stores = {}
    for name, part in find_cached_parts(encoder, config).items():
        if part.takes_prompts:
            raise UserError(
                f"encoders.{name}.cache: this encoder reads the question, so its frames depend on "
                "more than the clip; leave `cache` out"
            )
        if any(parameter.requires_grad for parameter in part.parameters()):
            continue
        settings = config.encoders[name]
        dtype = torch.bfloat16 if settings.cache == "bfloat16" else None
        content = f"{hash_model(part)}\n{settings.revision}\n{precision}\n{device.type}\n{dtype}"
        stores[name] = FeatureStore(hashlib.sha256(content.encode()).hexdigest()[:32], dtype)
    return stores


def keep_features(
    models: Sequence[Any],
    config: RunConfig,
    precision: torch.dtype | None,
    device: torch.device,
    in_training: bool = True,
) -> FeatureWriter | None:
    """Let the frozen encoders of a stage recall their frames.

    Args:
        models: with an ``encoder``; the first one trains, others are copies of it as the stage began.
        in_training: whether clips bring known frames along from the workers of a loader, and a thread writes new ones.

    Returns:
        What writes new frames, None where no encoder keeps any.
    """
    stores = make_feature_stores(models[0].encoder, config, precision, device) if has_cache(config) else {}
    if not in_training:  # where frames are not rounded, it makes no difference to anybody
        stores = {name: store for name, store in stores.items() if store.dtype is None}
    if not stores:
        return None
    writer = FeatureWriter(in_thread=in_training)
    for model in models:
        parts = find_cached_parts(model.encoder, config)
        for name, store in stores.items():
            attach_frame_cache(parts[name], store, writer.put, looks_up=not in_training)
    return writer


def has_cache(config: RunConfig) -> bool:
    """Return whether the frames of any encoder are to be kept."""
    return any(settings.cache for settings in config.encoders.values())
