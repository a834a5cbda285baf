"""Which encoders have a padded twin, and which cannot be exported as ONNX, and why."""

from __future__ import annotations

from typing import Any

from uniaudio.errors import UserError
from uniaudio.export.padded import PaddedTwin, PaddedWhisper
from uniaudio.export.padded_fusion import FRAME_BY_FRAME, PaddedFusion
from uniaudio.export.padded_wave import PaddedWave
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.wave import WaveAudioEncoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.encoder import FusedEncoder

KNOWN = (
    "Whisper, the towers of Qwen2-Audio and Audio Flamingo 3, the wav2vec 2.0 family, and these fused by concat, sum, "
    "mix, gate or explicit"
)


def padded_twin(encoder: AudioEncoder) -> PaddedTwin:
    """Return the twin of an encoder in eval mode, on the same weights.

    The others compute their features outside of torch, cut clips into windows, or choose modules by what they hear,
    none of which a graph of tensors holds.

    Raises:
        UserError: when there is none, with the kinds that have one.
    """
    if isinstance(encoder, WhisperAudioEncoder):
        if encoder.tail_frames:
            raise UserError("--to onnx: an encoder with tail_frames cannot be exported so; use --to hf")
        return PaddedWhisper(encoder).eval()
    if isinstance(encoder, WaveAudioEncoder):
        return PaddedWave(encoder).eval()
    if isinstance(encoder, FusedEncoder) and isinstance(encoder.operator, FRAME_BY_FRAME):
        parts: Any = encoder.encoders
        return PaddedFusion(encoder, {name: padded_twin(part) for name, part in parts.items()}).eval()
    told = type(encoder.operator if isinstance(encoder, FusedEncoder) else encoder).__name__
    raise UserError(f"--to onnx: {told} cannot be exported so, only {KNOWN}; use --to hf")
