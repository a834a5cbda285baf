"""Audio towers of Qwen2-Audio, Audio Flamingo 3 and Music Flamingo: Whisper's layers with frames averaged in pairs."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel

from uniaudio.errors import UserError
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.model_files import RANDOM, find_model_folder, read_model_config, use_stock_attention

PREFIXES = ("model.audio_tower.", "audio_tower.", "")  # where full and part checkpoints keep the tensors
TOWERS = ("qwen2_audio_encoder", "audioflamingo3_encoder")
PAIR = 2  # frames averaged before the last LayerNorm: 50 to 25 per second


def load_pooled_whisper(
    path: str, revision: str | None = None, masked_padding: bool = False, seed: int = 0
) -> WhisperAudioEncoder:
    """Load the audio tower in float32 from a full or tower-only checkpoint; of a full one nothing else is read.

    Raises:
        UserError: when there is no such folder, or a tensor of the tower is missing or unknown.
    """
    folder = find_model_folder(path, revision)
    config = get_tower_config(read_model_config(folder))
    tower = build_with_random_weights(lambda: AutoModel.from_config(config), seed)
    if not path.startswith(RANDOM):
        fill(tower, read_tensors(folder, PREFIXES), folder)
    return WhisperAudioEncoder(tower.float(), pool=PAIR, masked_padding=masked_padding)


def get_tower_config(config: dict[str, Any]) -> Any:
    """Return the tower's audio configuration out of a full or a part one.

    Raises:
        UserError: when it names another architecture.
    """
    audio = config.get("audio_config", config)
    model_type = audio.get("model_type") or f"{config['model_type']}_encoder"
    if model_type == "musicflamingo_encoder":  # in the first checkpoints; the class is the same
        model_type = "audioflamingo3_encoder"
    if model_type not in TOWERS:
        raise UserError(
            f"config.json names the audio tower {model_type}, which is not one of {', '.join(TOWERS)}"
        )
    return use_stock_attention(AutoConfig.for_model(**{**audio, "model_type": model_type}))
