"""Labels behind one reading of the prompt, against a whole forward of the stock model for every label."""

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model import label_likelihoods
from uniaudio.model import tree_attention as branches
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.model.tree_attention import Branches, group_by_length
from uniaudio.model.whisper_decoder import CrossAttentionLM, LinearBridge, load_whisper_decoder
from uniaudio.ragged import Ragged
from uniaudio.types import Example

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "pad_token_id": 0,
}
# class, configuration, do the labels stand behind the prompt as branches, or continue its cache?
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, tie_word_embeddings=True), True),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES), True),
    "cohere": (CohereForCausalLM, CohereConfig(**SIZES), True),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, sliding_window=8), False),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=8), False),
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300), False),
    "mamba": (MambaForCausalLM, MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=300), False),
}
LABELS = [[5, 9], [7, 7, 8, 9], [5, 9, 9], [12, 13, 14, 15, 16, 17, 9], [5, 6, 9]]
NARROW = {torch.float32: 1e-5, torch.float64: 1e-11}


def packed_labels(labels):
    return Ragged.from_rows([torch.tensor(label) for label in labels])


def one_by_one(logits_of, prefixes, labels):
    """Add up log-probabilities of every label behind every prompt, each from a forward of its own."""
    table = torch.zeros(len(prefixes), len(labels), dtype=prefixes[0].dtype)
    for b, prefix in enumerate(prefixes):
        for k, label in enumerate(labels):
            logits = logits_of(b, prefix, label[:-1])
            for j, token in enumerate(label):
                table[b, k] += logits[len(prefix) - 1 + j].log_softmax(-1)[token]
    return table


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scores_equal_a_whole_forward_for_every_label(family, dtype, monkeypatch):
    kind, config, packed = FAMILIES[family]
    torch.manual_seed(0)
    lm = kind(config).to(dtype).eval()
    decoder = TextDecoder(lm)
    assert decoder.packed == packed
    prefixes = [torch.randn(n, 64, dtype=dtype).mul(0.3) for n in (5, 17, 1, 12)]

    def stock(b, prefix, ids):
        rows = torch.cat([prefix, decoder.embed(torch.tensor(ids))])
        decoder.set_attention(decoder.stock_attention)
        return lm(inputs_embeds=rows[None], use_cache=False).logits[0]

    expected = one_by_one(stock, prefixes, LABELS)
    read = decoder.packed_hidden if packed else None
    for group, together, logits in ((256, 64, 2**26), (5, 2, 700)):  # all at once, and in several parts
        monkeypatch.setattr(branches, "GROUP", group)
        monkeypatch.setattr(label_likelihoods, "TOGETHER", together)
        monkeypatch.setattr(label_likelihoods, "LOGITS", logits)
        result = label_log_likelihoods(decoder, Ragged.from_rows(prefixes), packed_labels(LABELS), read)
        assert result.dtype == dtype
        # Gemma's own attention and Mamba's scan have float32 inside, whatever the weights are
        narrow = NARROW[torch.float32 if family in ("gemma2", "mamba") else dtype]
        torch.testing.assert_close(result, expected, atol=narrow, rtol=narrow)


@pytest.mark.parametrize("lengths", [(3, 1, 4), (1,), (9,), (2, 2, 2, 2)])
def test_branches_see_their_row_and_themselves(lengths, monkeypatch):
    monkeypatch.setattr(branches, "GROUP", 5)
    prefixes = torch.tensor([2, 5])
    layout = Branches.of(prefixes, torch.tensor(lengths), torch.device("cpu"))
    heads, groups, inside = 4, 2, sum(lengths)
    torch.manual_seed(0)
    total = int(prefixes.sum()) + 2 * inside
    query = torch.randn(total, heads, 8, dtype=torch.float64)
    key, value = torch.randn(2, total, groups, 8, dtype=torch.float64)
    out = branches.branched_attention(query, key, value, layout, 0.3)
    start, positions = 0, []
    for prefix in prefixes.tolist():
        seen = [list(range(start, start + i + 1)) for i in range(prefix)]
        positions += range(prefix)
        first = start + prefix
        for length in lengths:
            for i in range(length):
                seen.append([*range(start, start + prefix), *range(first, first + i + 1)])
                positions.append(prefix + i)
            first += length
        for i, keys in enumerate(seen):
            for head in range(heads):
                weights = torch.stack([query[start + i, head] @ key[j, head // 2] * 0.3 for j in keys])
                mixed = sum(w * value[j, head // 2] for w, j in zip(weights.softmax(0), keys, strict=True))
                torch.testing.assert_close(out[start + i, head], mixed)
        start = first
    assert layout.positions.tolist() == positions
    assert layout.row_lengths.tolist() == [int(n) + inside for n in prefixes]


def test_groups_hold_whole_branches(monkeypatch):
    monkeypatch.setattr(branches, "GROUP", 5)
    assert group_by_length([3, 2, 1, 9, 4, 1]) == [(0, 5), (5, 6), (6, 15), (15, 20)]


def examples(seconds=(3000, 20_000, 999)):
    rng = np.random.default_rng(0)
    return [
        Example(f"{n}", "t", "d", (rng.integers(-9000, 9000, n, dtype=np.int16),), ("", "Which?"), "-")
        for n in seconds
    ]


def test_a_model_scores_labels_behind_the_prompts_that_it_generates_from(whisper, qwen, chat_tokenizer):
    format = ChatFormat(chat_tokenizer)
    torch.manual_seed(3)
    encoder = WhisperAudioEncoder(whisper)
    model = AudioLM(encoder, StackAdapter(64, 50.0, 64), TextDecoder(qwen)).double().eval()
    batch = collate_prompts(examples(), format, model.count_slots, ("t",))
    labels = [format.answer(text) for text in ("low", "high", "low and high", "no tone at all")]
    result = model.label_log_likelihoods(batch, packed_labels(labels))
    rows = model.embed_batch(batch)[0].rows()
    embed = model.decoder.embed

    def stock(b, prefix, ids):
        given = torch.cat([prefix, embed(torch.tensor(ids))])[None]
        return qwen(inputs_embeds=given, attention_mask=None, use_cache=False).logits[0]

    model.decoder.set_attention(model.decoder.stock_attention)
    with torch.no_grad():
        torch.testing.assert_close(result, one_by_one(stock, rows, labels), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", NARROW)
@torch.no_grad()
def test_the_decoder_of_whisper(tmp_path, whisper, chat_tokenizer, dtype):
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=len(chat_tokenizer),
        max_target_positions=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    stock = WhisperForConditionalGeneration(config).eval()
    stock.save_pretrained(tmp_path / "full")
    stock.to(dtype)
    reader = load_whisper_decoder(str(tmp_path / "full"))
    model = CrossAttentionLM(WhisperAudioEncoder(whisper), LinearBridge(64, 64), reader).to(dtype).eval()
    format = ChatFormat(chat_tokenizer)
    batch = collate_prompts(examples(), format, model.count_slots, ("t",))
    labels = [format.answer(text) for text in ("low", "high", "low and high")]
    result = model.label_log_likelihoods(batch, packed_labels(labels))
    inputs, _ = model.encode_prompts(batch, model.decoder.embed(batch.tokens.values))
    frames, rows = inputs.rows(), batch.tokens.rows()

    def alone(b, prefix, ids):
        given = torch.cat([rows[b], torch.tensor(ids)])[None]
        return stock(encoder_outputs=(frames[b][None],), decoder_input_ids=given).logits[0]

    prefixes = [row.to(dtype) for row in rows]
    expected = one_by_one(alone, prefixes, labels)
    torch.testing.assert_close(result, expected, atol=NARROW[dtype], rtol=NARROW[dtype])
    many = [format.answer("low and high " * 3)] * 5  # more than Whisper's positions together, but not alone
    assert model.label_log_likelihoods(batch, packed_labels(many)).shape == (3, 5)
    with pytest.raises(UserError, match="longer than Whisper's 60 positions"):
        model.label_log_likelihoods(batch, packed_labels([format.answer("low and high " * 30)]))
