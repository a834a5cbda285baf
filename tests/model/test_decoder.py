"""The packed decoder against the stock model on every row alone."""

from functools import wraps

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from uniaudio.errors import UserError
from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import refuse_without_generation
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.whisper_decoder import load_whisper_decoder
from uniaudio.ragged import Ragged

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "pad_token_id": 0,
}
# class, configuration, packed?, head without scaling or capping?
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True), True, True),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES), True, True),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, sliding_window=8), False, False),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8), False, True),
    "cohere": (CohereForCausalLM, CohereConfig(**SIZES), True, False),
    "granite": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=3.0), True, False),
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300), False, True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_the_stock_model_on_each_row_alone(family):
    kind, config, packed, plain = FAMILIES[family]
    torch.manual_seed(0)
    lm = kind(config)
    decoder = TextDecoder(lm)
    assert (decoder.packed, decoder.plain_head) == (packed, plain)
    rows = [torch.randn(n, 64).mul(0.3).requires_grad_() for n in (5, 17, 1, 30)]
    hidden = decoder.hidden(Ragged.from_rows(rows))
    labels = torch.randint(0, 300, (len(hidden),))
    total, per_token, _ = decoder.losses(hidden, labels, chunk=7)
    gradients = torch.autograd.grad(total, rows)
    for row, gradient, ids, ours in zip(
        rows, gradients, labels.split([5, 17, 1, 30]), per_token.split([5, 17, 1, 30]), strict=True
    ):
        logits = lm(inputs_embeds=row[None], use_cache=False).logits[0].float()
        losses = F.cross_entropy(logits, ids, reduction="none")
        torch.testing.assert_close(ours, losses, atol=2e-5, rtol=1e-5)
        expected = torch.autograd.grad(losses.sum(), row)[0]
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_packed_is_refused_where_it_would_be_wrong():
    kind, config, *_ = FAMILIES["mistral"]
    with pytest.raises(UserError, match="packed is not possible"):
        TextDecoder(kind(config), attention="packed")


def test_padded_gives_what_packed_gives(qwen):
    rows = Ragged.from_rows([torch.randn(n, 64) for n in (3, 9, 4)])
    packed = TextDecoder(qwen).hidden(rows)
    padded = TextDecoder(qwen, attention="padded").hidden(rows)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


def test_frozen_means_frozen(qwen):
    decoder = TextDecoder(qwen.train())
    decoder.train()
    assert not any(module.training for module in decoder.modules())
    assert not any(p.requires_grad for p in decoder.parameters())


def test_no_decoder_at_the_path(tmp_path):
    with pytest.raises(UserError, match=r"^decoder\.path: there is no folder .*nothing$"):
        load_decoder(str(tmp_path / "nothing"))


def test_random_weights_are_a_function_of_the_seed(qwen, tmp_path):
    qwen.save_pretrained(tmp_path)
    drawn = [load_decoder(f"random:{tmp_path}", dtype="bfloat16", seed=seed) for seed in (1, 1, 2)]
    tables = [decoder.lm.get_input_embeddings().weight for decoder in drawn]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert tables[0].dtype == torch.bfloat16
    assert drawn[0].identity["path"] == f"random:{tmp_path}"
    assert drawn[0].identity["sha256"] == load_decoder(str(tmp_path)).identity["sha256"]
    rotary = drawn[0].lm.base_model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32


def test_a_decoder_that_scales_what_it_looks_up_itself_is_refused(qwen):
    """As MiniCPM's own code does: embeddings that are given are taken as they are."""
    forward = qwen.model.forward

    def scaled(input_ids=None, inputs_embeds=None, **settings):
        if input_ids is not None:
            inputs_embeds = qwen.get_input_embeddings()(input_ids) * 12
        return forward(inputs_embeds=inputs_embeds, **settings)

    qwen.model.forward = scaled
    with pytest.raises(UserError, match="gives other results from embeddings than from token ids"):
        TextDecoder(qwen)


def test_a_decoder_whose_logits_are_more_than_hidden_states_tell_is_refused(qwen):
    forward = qwen.forward

    @wraps(forward)
    def double(**given):
        output = forward(**given)
        output.logits = 2 * output.logits
        return output

    qwen.forward = double
    with pytest.raises(
        UserError, match="the logits of Qwen3ForCausalLM are not a known function of its hidden"
    ):
        TextDecoder(qwen)


def test_weights_that_are_no_numbers_are_named(qwen):
    with torch.no_grad():
        qwen.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="Qwen3ForCausalLM gives values that are not finite"):
        TextDecoder(qwen)


def test_four_tokens_are_read_once_by_their_ids_and_once_by_their_embeddings(qwen):
    read = []

    def note(module, args, given):
        name = "input_ids" if given.get("input_ids") is not None else "inputs_embeds"
        if given[name].shape[1] == 4:
            read.append(name)

    qwen.model.register_forward_pre_hook(note, with_kwargs=True)
    assert TextDecoder(qwen).plain_head
    assert read == ["input_ids", "inputs_embeds"]


def test_a_class_without_generation_is_refused():
    class Reader(torch.nn.Module): ...

    with pytest.raises(UserError, match="Reader cannot generate from embeddings"):
        refuse_without_generation(Reader)


@pytest.mark.parametrize("kind", ["causal", "whisper"])
@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_weights_that_are_all_trained_are_kept_in_float32(qwen, tmp_path, kind, train):
    if kind == "causal":
        qwen.save_pretrained(tmp_path)
        load = load_decoder
    else:
        sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        stock = WhisperConfig(
            **sizes, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=60, pad_token_id=0
        )
        WhisperForConditionalGeneration(stock).save_pretrained(tmp_path)
        load = load_whisper_decoder
    decoder = load(str(tmp_path), dtype="bfloat16", train=train)
    dtypes = {name: parameter.dtype for name, parameter in decoder.named_parameters() if "lora_" not in name}
    assert set(dtypes.values()) == {torch.float32 if train == "full" else torch.bfloat16}


def test_random_weights_need_no_weights(qwen, tmp_path):
    """Pickles are refused because reading them can run code; here nothing of them is read."""
    qwen.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert load_decoder(f"random:{tmp_path}").dim == qwen.config.hidden_size
    with pytest.raises(UserError, match=r"holds its weights as pytorch_model\.bin, a pickle"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_equals_a_loop(causal):
    torch.manual_seed(0)
    lengths, heads, groups = [3, 1, 6], 4, 2
    query = torch.randn(10, heads, 8)
    key, value = torch.randn(10, groups, 8), torch.randn(10, groups, 8)
    out = packed_attention(query, key, value, Segments.of(lengths, query.device), causal)
    start = 0
    for length in lengths:
        for head in range(heads):
            for i in range(length):
                seen = range(start, start + (i + 1 if causal else length))
                scores = torch.stack([query[start + i, head] @ key[j, head // 2] / 8**0.5 for j in seen])
                expected = sum(w * value[j, head // 2] for w, j in zip(scores.softmax(0), seen, strict=True))
                torch.testing.assert_close(out[start + i, head], expected, atol=1e-5, rtol=1e-5)
        start += length


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's variable-length kernel needs CUDA")
@pytest.mark.parametrize("causal", [True, False])
def test_the_cuda_kernel_equals_the_loop_within_rounding(causal):
    query = torch.randn(300, 4, 64, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 300, 2, 64, device="cuda", dtype=torch.bfloat16)
    segments = Segments.of([100, 7, 193], query.device)
    fast = packed_attention(query, key, value, segments, causal)
    plain = packed_attention(query.float(), key.float(), value.float(), segments, causal)
    torch.testing.assert_close(fast.float(), plain, atol=2e-2, rtol=2e-2)
