"""A small Whisper-shaped encoder with random weights, stored like a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.model.encoders.weights import RANDOM_WEIGHTS
from uniaudio.outputs import apply_umask


def save_miniature_whisper(
    folder: Path, d_model: int = 64, layers: int = 2, heads: int = 2, mels: int = 80, seed: int = 0
) -> Path:
    """Write a Whisper encoder with random weights (50 frames a second, reach 30 s) as a ``transformers``
    folder.

    The usual initialisation (0.02 everywhere) is for large widths: here it would leave the sound at a
    fortieth of the position embedding that is added to it, and nothing would be learned in a few hundred
    steps. The same seed gives the same weights, whatever the state of torch's generator, which is left as it
    was.
    """
    config = WhisperConfig(
        init_std=d_model**-0.5,
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        num_mel_bins=mels,
        # The decoder of the configuration is never built; it is kept as small as the file allows.
        decoder_layers=1,
        decoder_attention_heads=1,
        decoder_ffn_dim=d_model,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **RANDOM_WEIGHTS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = WhisperEncoder(config)
        for convolution in (encoder.conv1, encoder.conv2):
            torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    encoder.save_pretrained(folder)
    apply_umask(folder)
    return folder
