"""Modelled floating-point operations of one step, from configs alone: no weights are loaded.

A product of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``. Norms, activations and
the mel front end are left out (under 1 %).
"""

from __future__ import annotations

from transformers import PretrainedConfig, WhisperConfig

TRAINED = 3  # forward + gradient of inputs + gradient of weights, in forwards
FROZEN_BELOW_GRADIENT = 2  # forward + gradient of inputs


def count_whisper_flops(config: WhisperConfig, seconds: float) -> float:
    """Return the operations of one encoder forward over one clip of ``seconds`` (at most 30) without padding."""
    frames = seconds * 50
    width, feed_forward = config.d_model, config.encoder_ffn_dim
    convolutions = 2 * 3 * width * (config.num_mel_bins * 2 * frames + width * frames)
    per_layer = frames * (8 * width**2 + 4 * width * feed_forward) + 4 * width * frames**2
    return convolutions + config.encoder_layers * per_layer


def count_decoder_flops(config: PretrainedConfig, tokens: float) -> float:
    """Return the operations of the decoder's layers over one causal sequence of ``tokens``, without its head."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    projections = 2 * config.hidden_size * head_dim * (2 * heads + 2 * kv_heads)
    feed_forward = 6 * config.hidden_size * config.intermediate_size
    attention = 4 * heads * head_dim * tokens / 2
    return config.num_hidden_layers * tokens * (projections + feed_forward + attention)


def count_head_flops(config: PretrainedConfig, labels: float) -> float:
    """Return the operations of the language-model head over ``labels`` labelled positions."""
    return 2 * config.hidden_size * config.vocab_size * labels


def count_any_decoder_flops(config: PretrainedConfig, tokens: float, layer_parameters: int | None) -> float:
    """Return the operations of the layers of any decoder over one sequence of ``tokens``, about, without its head.

    Args:
        layer_parameters: of layers that are not Llama's; each number is multiplied and added once for a token, and
            attention between tokens is left out. None for Whisper's decoder, whose attention to frames is left out.
    """
    if isinstance(config, WhisperConfig):
        width = config.d_model
        return config.decoder_layers * tokens * (12 * width**2 + 4 * width * config.decoder_ffn_dim)
    known = ("num_attention_heads", "intermediate_size", "hidden_size", "num_hidden_layers")
    if layer_parameters is None or all(isinstance(getattr(config, name, None), int) for name in known):
        return count_decoder_flops(config, tokens)
    return 2 * layer_parameters * tokens
