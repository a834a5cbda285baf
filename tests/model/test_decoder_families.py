"""Tiny decoders of many families: each is read and answers, or one sentence says why not."""

import copy
import io

import pytest
import torch
from rich.console import Console
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    WhisperForConditionalGeneration,
)

from uniaudio.checks.decoder import count_layer_parameters
from uniaudio.checks.first_rows import AverageClip
from uniaudio.commands.check import check_run
from uniaudio.config.encoders import LoraConfig
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.estimate.flops import count_any_decoder_flops
from uniaudio.estimate.stage_plan import plan_stage
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import build_on_meta, find_position_limit, refuse_unusable_class
from uniaudio.model.decoder_loading import make_trainable, refuse_incomplete_causal_lm
from uniaudio.model.decoding import pad_left
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.model.lora import find_lora_targets, list_lora_modules, merge_lora
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
    new = decoder.generate(*pad_left(rows), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert new.shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_check_needs_is_known_without_weights(family):
    lm = build_on_meta(tiny_config(family))
    assert find_position_limit(lm) == (256 if family in TABLES else None)
    assert count_any_decoder_flops(lm.config, 10, count_layer_parameters(lm)) > 0


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("falcon_h1", "FalconH1ForCausalLM cannot generate from embeddings"),
        ("openai-gpt", "cannot generate from embeddings"),
        ("gemma3n", "gemma3n looks token ids up in every layer"),
        ("gemma3n_text", "gemma3n_text looks token ids up in every layer"),
        ("t5", "t5 is an encoder-decoder model"),
        ("bart", "bart is an encoder-decoder model"),
        ("whisper", "set decoder.kind: whisper"),
        ("vit", "vit is not a causal language model"),
    ],
)
def test_what_can_never_answer_is_refused_by_its_config(family, reason):
    with pytest.raises(UserError, match=reason):
        refuse_unusable_class(AutoConfig.for_model(family))


TARGET = torch.tensor([5, 9, 2, 7, 7, 8, 2, 11])  # ids of the answers behind two prompts
LENGTHS = torch.tensor([7, 9])  # of the rows, prompts of 4 and 4 tokens


def make_decoder(family, how="frozen", dtype=torch.float32):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(tiny_config(family)).to(dtype)
    decoder = TextDecoder(lm)
    make_trainable(decoder, lm.base_model, how, LoraConfig(rank=4, targets="all"), 0)
    return decoder.eval()


def answer_loss(decoder, embeds):
    """The loss of the answers, as a step has it: hidden states where a label is, then the head."""
    hidden = decoder.hidden(Ragged(embeds, LENGTHS))
    places = torch.tensor([3, 4, 5, 10, 11, 12, 13, 14])
    return decoder.losses(hidden[places], TARGET, 4)[0]


WHISPER = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "encoder_layers": 1,
}
NAMED = ["gpt2", "opt", "bloom", "mamba", "gemma2", "gpt_oss"]
FLOAT, BF16 = torch.float32, torch.bfloat16
TRAINED = [(family, "lora", FLOAT) for family in FAMILIES]
TRAINED += [(family, "lora", BF16) for family in ("llama", *NAMED)]
TRAINED += [(family, how, FLOAT) for family in NAMED for how in ("frozen", "full")]


@pytest.mark.parametrize(("family", "how", "dtype"), TRAINED)
def test_losses_fall_whatever_is_trained(family, how, dtype):
    """Frozen: gradients reach what stands before the decoder. Updates in bf16 are kept in fp32."""
    decoder = make_decoder(family, how, dtype)
    embeds = (0.5 * torch.randn(16, decoder.dim)).requires_grad_()
    trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert bool(trained) == (how != "frozen")
    optimizer = torch.optim.Adam([*trained, embeds] if how == "frozen" else trained, lr=1e-2)
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = answer_loss(decoder, embeds.to(dtype))
        optimizer.zero_grad()
        loss.backward()
        assert embeds.grad.abs().max() > 0
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("how", ["frozen", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_recompute_change_no_number(family, how):
    """In training; OPT's layers have dropout, which must not begin in a frozen one."""
    plain = make_decoder(family, how).train()
    other = copy.deepcopy(plain)
    other.recompute()
    other = copy.deepcopy(other).train()  # as the teacher of a stage is copied
    embeds = 0.5 * torch.randn(16, plain.dim)
    results, kept = [], []

    def pack(tensor):
        kept[-1][tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    for decoder in (plain, other):
        kept.append({})
        given = embeds.clone().requires_grad_()
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = answer_loss(decoder, given)
        loss.backward()
        gradients = [p.grad for p in decoder.parameters() if p.requires_grad]
        assert bool(gradients) == (how == "lora")
        results.append([loss.detach(), given.grad, *gradients])
    for one, same in zip(*results, strict=True):
        torch.testing.assert_close(same, one, rtol=1e-6, atol=1e-7)
    assert sum(kept[1].values()) < sum(kept[0].values())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_updates_give_the_same(family):
    decoder = make_decoder(family, "lora")
    updates = [p for name, p in decoder.named_parameters() if "lora_B" in name]
    for number, parameter in enumerate(updates):
        torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(number))
    rows = Ragged(torch.randn(9, decoder.dim), torch.tensor([4, 5]))
    with torch.no_grad():
        hidden = decoder.hidden(rows)
        merge_lora(decoder.lm)
        assert not any("lora" in name for name, _ in decoder.named_parameters())
        torch.testing.assert_close(decoder.hidden(rows), hidden, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("family", "dtype"), [case[::2] for case in TRAINED if case[1] == "lora"])
@torch.no_grad()
def test_scores_of_labels_are_those_of_every_label_alone(family, dtype):
    decoder = make_decoder(family, dtype=dtype)
    prompts = Ragged(decoder.embed(torch.arange(3, 12)), torch.tensor([4, 5]))
    labels = [[5, 2], [7, 7, 8, 2], [2]]
    packed = Ragged.from_rows([torch.tensor(label) for label in labels])
    read = None
    if decoder.packed:

        def read(rows, branches):
            return decoder.packed_hidden(rows, branches)

    scores = label_log_likelihoods(decoder, prompts, packed, read)
    for prompt, row in zip(prompts.rows(), scores, strict=True):
        for label, score in zip(labels, row, strict=True):
            ids = torch.tensor(label)
            whole = torch.cat([prompt, decoder.embed(ids[:-1])])
            hidden = decoder.hidden(Ragged(whole, torch.tensor([len(whole)])))[len(prompt) - 1 :]
            alone = decoder.logits(hidden).float().log_softmax(-1).gather(1, ids[:, None]).sum()
            tolerance = 1e-3 if dtype == torch.float32 else 0.25
            torch.testing.assert_close(score.float(), alone, atol=tolerance, rtol=tolerance)


def test_updates_stand_where_layers_call_their_linear_maps():
    """The kernels of Mamba read the weights of its other maps directly."""
    decoder = make_decoder("mamba", "lora")
    assert {name.rsplit(".", 1)[-1] for name in list_lora_modules(decoder.lm)} == {"in_proj"}
    with pytest.raises(UserError, match="'out_proj' matches no linear layer; there are in_proj"):
        find_lora_targets(make_decoder("mamba").lm, ["out_proj"])


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tensors_are_known_from_the_headers_of_their_files(tmp_path, family):
    """With those that are stored under other names, joined, or once for two places."""
    AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(tmp_path)
    refuse_incomplete_causal_lm(str(tmp_path))


@pytest.mark.parametrize("family", [*NAMED, "whisper"])
def test_plan_works_for_a_folder_without_weights_and_check_for_one_with_all_of_them(
    tone_run, chat_tokenizer, family
):
    folder, vocabulary = tone_run.parent / "other", len(chat_tokenizer)
    if family == "whisper":  # its own decoder
        fitting = {"encoder_attention_heads": 2, "pad_token_id": 0}
        other = AutoConfig.for_model(family, **WHISPER, **fitting, vocab_size=vocabulary)
    else:
        other = tiny_config(family, vocab_size=vocabulary, num_hidden_layers=2)
    other.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    kind = "whisper" if family == "whisper" else "causal"
    config = load_run(tone_run, [f"decoder={{path: other, kind: {kind}, train: lora}}"])
    console = Console(record=True, width=200, file=io.StringIO())
    with pytest.raises(UserError, match=r"^decoder\.path: .*other holds no weights"):
        check_run(config, console)
    model = (
        WhisperForConditionalGeneration if family == "whisper" else MODEL_FOR_CAUSAL_LM_MAPPING[type(other)]
    )
    model(other).save_pretrained(folder)
    check_run(config, console)
    assert "ok: no mistake found in config, recipes" in console.export_text()
    plan = plan_stage(config, 0, AverageClip(0.5, 20, 5), torch.bfloat16)
    assert plan.flops > 0
    assert plan.trained > 0
