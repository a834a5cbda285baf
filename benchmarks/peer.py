"""The stock transformers way of the same kind of model: ``Qwen2AudioForConditionalGeneration`` at equal sizes.

Its audio tower is Whisper's with pairs of frames averaged to 25 per second, its projector one linear map; transformers
builds the language model from the config it is given, here a Qwen3. SDPA attention and float32, as on our side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen3ForCausalLM,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

IGNORED = -100  # a position without a label, for the stock loss
FRAMES_PER_SECOND = 25.0
SHARED_SIZES = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")


def tower_config(whisper: WhisperEncoder) -> Qwen2AudioEncoderConfig:
    """Return the config of an audio tower of Whisper's size."""
    return Qwen2AudioEncoderConfig(**{name: getattr(whisper.config, name) for name in SHARED_SIZES})


def new_peer(
    whisper: WhisperEncoder, lm: Qwen3ForCausalLM, audio_id: int
) -> Qwen2AudioForConditionalGeneration:
    """Return the model with the weights of both parts; tower and projector are trained, the language model is not.

    Args:
        whisper: gives its tensors to the tower. lm: frozen; its layers and head are taken as they are.
        audio_id: the token that stands for an audio frame.
    """
    config = Qwen2AudioConfig(
        audio_config=tower_config(whisper), text_config=lm.config, audio_token_index=audio_id
    )
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(config)
    model.model.audio_tower.load_state_dict(whisper.state_dict(), assign=True)
    model.model.language_model, model.lm_head = lm.model, lm.lm_head
    model.model.multi_modal_projector.linear = new_projector(whisper.config.d_model, lm.config.hidden_size)
    model.train()
    lm.eval()
    kinds = {part.config._attn_implementation for part in (model.model.audio_tower, lm.model)}
    assert kinds == {"sdpa"}, kinds
    return model


def new_projector(width: int, decoder_width: int) -> torch.nn.Linear:
    """Return a linear map with random weights from one seed, the same on both sides."""
    torch.manual_seed(2)
    return torch.nn.Linear(width, decoder_width)


def labelled(prompt: Sequence[int], answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of prompt and answer, and the labels, which the prompt has none of."""
    ids = torch.tensor([*prompt, *answer])
    labels = torch.tensor([*[IGNORED] * len(prompt), *answer])
    return ids, labels
