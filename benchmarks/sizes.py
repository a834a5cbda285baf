"""Named sizes of encoders and decoders, from configs alone: random weights, made on the device where they are used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

QWEN_VOCABULARY = 151_936  # Qwen's tokenizer

# width, layers, heads, inner width, mel bins
WHISPER = {
    "miniature": (64, 2, 2, 128, 80),
    "tiny": (384, 4, 6, 1536, 80),
    "base": (512, 6, 8, 2048, 80),
    "small": (768, 12, 12, 3072, 80),
    "medium": (1024, 24, 16, 4096, 80),
    "large-v3": (1280, 32, 20, 5120, 128),
}

# width, layers, query heads, key heads, width of a head, inner width, vocabulary
QWEN3 = {
    "miniature": (64, 2, 4, 2, 16, 128, 2048),
    "small": (256, 8, 4, 2, 64, 768, QWEN_VOCABULARY),
    "0.6B": (1024, 28, 16, 8, 128, 3072, QWEN_VOCABULARY),
    "1.7B": (2048, 28, 16, 8, 128, 6144, QWEN_VOCABULARY),
}

CHOICES = {"encoder": tuple(WHISPER), "decoder": tuple(QWEN3)}
SIZED = {  # benchmark -> the parts whose size can be chosen
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "step": ("encoder", "decoder"),
    "questions": ("encoder", "decoder"),
}


@dataclass(frozen=True)
class Sizes:
    """The sizes that a benchmark takes: names of ``WHISPER`` and of ``QWEN3``."""

    encoder: str = "tiny"
    decoder: str = "small"

    def new_encoder(self) -> WhisperEncoder:
        """Return the encoder in training mode."""
        return new_whisper(self.encoder)

    def new_decoder(self) -> Qwen3ForCausalLM:
        """Return the frozen decoder in float32."""
        return new_qwen3(self.decoder)

    @property
    def mel_bins(self) -> int:
        return WHISPER[self.encoder][-1]

    @property
    def widths(self) -> tuple[int, int]:
        """Of encoder and decoder."""
        return WHISPER[self.encoder][0], QWEN3[self.decoder][0]

    @property
    def vocabulary(self) -> int:
        return QWEN3[self.decoder][-1]


def whisper_config(name: str) -> WhisperConfig:
    """Return the configuration of a Whisper encoder: ``tiny`` to ``large-v3`` as published, and a miniature.

    Raises:
        KeyError: for a name that is not in ``WHISPER``.
    """
    width, layers, heads, inner, mel_bins = WHISPER[name]
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        num_mel_bins=mel_bins,
    )
    config._attn_implementation = "sdpa"
    return config


def qwen3_config(name: str) -> Qwen3Config:
    """Return the configuration of a Qwen3 with tied embeddings: ``0.6B`` and ``1.7B`` as published, and smaller ones.

    Raises:
        KeyError: for a name that is not in ``QWEN3``.
    """
    width, layers, heads, key_heads, head_dim, inner, vocabulary = QWEN3[name]
    config = Qwen3Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return config


def new_whisper(name: str, device: torch.device | str = "cpu", seed: int = 0) -> WhisperEncoder:
    """Return an encoder in training mode, float32, with random weights from ``seed``."""
    torch.manual_seed(seed)
    with torch.device(device):
        return WhisperEncoder(whisper_config(name)).train()


def new_qwen3(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 1
) -> Qwen3ForCausalLM:
    """Return a frozen decoder with random weights from ``seed``; buffers stay in float32, as in loaded ones."""
    torch.manual_seed(seed)
    with torch.device(device):
        lm = Qwen3ForCausalLM(qwen3_config(name))
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)
    return lm.requires_grad_(False).eval()
