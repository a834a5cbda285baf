"""The audio tower of Voxtral: Whisper's encoder under another name."""

from __future__ import annotations

from typing import Any

from uniaudio.model.encoders.towers import fill_tower
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

STOCK = "voxtral.modeling_voxtral:VoxtralEncoder"
PREFIXES = ("model.audio_tower.", "audio_tower.")


def load_voxtral(
    path: str, revision: str | None = None, seed: int = 0, **settings: Any
) -> WhisperAudioEncoder:
    """Load the audio tower in float32 from a full or tower-only checkpoint; of a full one nothing else is read.

    Voxtral hears 30 s with silence behind the clip and no mask, which is ``pad_to=30``.

    Args:
        settings: those of ``WhisperAudioEncoder``.

    Raises:
        UserError: when there is no such folder, or a tensor of the tower is missing or unknown.
    """
    tower, _ = fill_tower(STOCK, ("audio_config",), PREFIXES, path, revision, seed)
    return WhisperAudioEncoder(tower, **settings)
