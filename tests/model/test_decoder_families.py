"""Tiny decoders of many families: each is read and answers, or one sentence says why not."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from uniaudio.checks.decoder import num_layer_parameters
from uniaudio.errors import UserError
from uniaudio.estimate.flops import any_decoder_forward_flops
from uniaudio.model.audio_lm import left_padded
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import build_on_meta, position_limit, refuse_unusable_class
from uniaudio.ragged import Ragged

IDS = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 2}
LLAMA = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
GPT = {**IDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
STATE = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
TEXT = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
FAMILIES = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "opt": {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "bloom": {**IDS, "hidden_size": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
    "mpt": {**IDS, "d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 256},
    "falcon": TEXT,
    "mamba": {**STATE, "state_size": 8},
    "rwkv": {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3", "olmo2", "granite", "starcoder2", "cohere"), LLAMA),
    **{family: LLAMA for family in ("smollm3", "gpt_neox")},  # noqa: C420 (each gets its own)
    **{family: {**LLAMA, "head_dim": 16} for family in ("qwen3", "gemma", "glm4", "ernie4_5", "exaone4")},
    **{family: {**LLAMA, "num_key_value_heads": 2} for family in ("phi", "stablelm")},
    "gemma2": {**LLAMA, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "mixtral": {**LLAMA, **EXPERTS},
    "gpt_oss": {**LLAMA, **EXPERTS, "head_dim": 16, "sliding_window": 16},
}
TABLES = {"gpt2", "gptj", "codegen", "gpt_bigcode", "opt", "mpt"}  # with so many positions and no more


def tiny_config(family, **changes):
    return AutoConfig.for_model(family, **{**FAMILIES.get(family, LLAMA), **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_reads_rows_and_answers_in_a_batch_as_alone(family):
    torch.manual_seed(0)
    config = tiny_config(family)
    refuse_unusable_class(config)
    decoder = TextDecoder(AutoModelForCausalLM.from_config(config))
    assert decoder.positions == (256 if family in TABLES else None)
    assert decoder.pads_exactly == (family != "rwkv")  # its state has no mask
    rows = Ragged(decoder.embed(torch.arange(3, 12)), torch.tensor([4, 5]))
    hidden = decoder.hidden(rows)
    alone = decoder.hidden(rows.select([1]))
    torch.testing.assert_close(hidden[4:], alone, atol=1e-4, rtol=1e-3)
    new = decoder.generate(*left_padded(rows), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert new.shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_check_needs_is_known_without_weights(family):
    lm = build_on_meta(tiny_config(family))
    assert position_limit(lm) == (256 if family in TABLES else None)
    assert any_decoder_forward_flops(lm.config, 10, num_layer_parameters(lm)) > 0


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon_h1", "FalconH1ForCausalLM cannot generate from embeddings"),
        ("openai-gpt", "cannot generate from embeddings"),
        ("t5", "t5 reads its prompt with an encoder of its own"),
        ("bart", "bart reads its prompt with an encoder of its own"),
        ("whisper", "set decoder.kind: whisper"),
        ("vit", "vit is no causal language model"),
    ],
)
def test_what_can_never_answer_is_refused_by_its_config(family, reason):
    with pytest.raises(UserError, match=reason):
        refuse_unusable_class(AutoConfig.for_model(family))
