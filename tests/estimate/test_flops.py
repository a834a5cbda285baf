"""The modelled operations against torch's own counter on stock modules."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.estimate.flops import count_decoder_flops, count_head_flops, count_whisper_flops


def test_whisper_forward_matches_the_counter():
    config = WhisperConfig(d_model=128, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=512)
    config._attn_implementation = "eager"  # the counter does not see the fused kernel of the CPU
    encoder = WhisperEncoder(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, config.num_mel_bins, 3000))
    assert count_whisper_flops(config, 30.0) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_decoder_and_head_match_the_counter():
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=1000,
    )
    config._attn_implementation = "eager"
    decoder = Qwen3ForCausalLM(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.zeros(1, 64, dtype=torch.long), use_cache=False)
    # the counter sees the full square of the attention, causal work is half of it
    square = config.num_hidden_layers * 4 * 128 * 64 * 64 / 2
    modelled = count_decoder_flops(config, 64) + square + count_head_flops(config, 64)
    assert modelled == pytest.approx(counter.get_total_flops(), rel=0.01)
