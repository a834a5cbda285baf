"""The audio towers of Voxtral and Ultravox: Whisper's encoder inside of a larger model."""

from __future__ import annotations

from functools import partial
from typing import Any

from uniaudio.model.encoders.towers import fill_tower
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

PREFIXES = ("model.audio_tower.", "audio_tower.")


def load_whisper_tower(
    stock: str, path: str, revision: str | None = None, seed: int = 0, **settings: Any
) -> WhisperAudioEncoder:
    """Load the audio tower in float32 from a full or tower-only checkpoint; of a full one nothing else is read.

    Voxtral hears 30 s with silence behind the clip and no mask, which is ``pad_to=30``; Ultravox a clip as it is.

    Args:
        stock: class of the tower, see ``fill_tower``. settings: those of ``WhisperAudioEncoder``.

    Raises:
        UserError: when there is no such folder, or a tensor of the tower is missing or unknown.
    """
    tower, _ = fill_tower(stock, ("audio_config",), PREFIXES, path, revision, seed)
    return WhisperAudioEncoder(tower, **settings)


load_voxtral = partial(load_whisper_tower, "voxtral.modeling_voxtral:VoxtralEncoder")
load_ultravox = partial(load_whisper_tower, "whisper.modeling_whisper:WhisperEncoder")
