"""Runs in published formats: the stock class computes what the run computes, for clips of any length."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from export.test_hf import single
from helpers.ultravox_reference import UltravoxReference
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from uniaudio.commands.export_model import MODEL_TARGETS
from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.export.hf import make_noise
from uniaudio.export.logit_comparison import compare_stock_model, compute_prompt_logits, make_trial_clips
from uniaudio.export.stock_formats import STOCK_FORMATS
from uniaudio.export.stock_model import (
    enlarge_table,
    refuse_encoder,
    require_fitting_parts,
    write_stock_model,
)
from uniaudio.model.adapters.stack import StackAdapter
from uniaudio.model.adapters.stock_projectors import make_stock_projector
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder, load_whisper
from uniaudio.types import Example

EXACT = {
    "qwen2-audio": {"pool": 2, "masked_padding": True},
    "audio-flamingo3": {"pool": 2, "masked_padding": True},
    "voxtral": {"tail_frames": 1500, "keep_tail": True},
    "ultravox": {},
}
LENGTHS = {
    "qwen2-audio": (0.3, 2.31, 29.99),
    "audio-flamingo3": (0.3, 2.31, 29.99, 65.0),
    "voxtral": (0.3, 65.0),
    "ultravox": (0.3, 2.31, 29.99, 61.6),
}
SECOND = 16_000


def small_decoder(kind, vocabulary):
    """A random decoder of an architecture, width 64."""
    if kind == "qwen3":
        return tiny_qwen(vocabulary, rope_theta=500.0)  # not the default of any class
    if kind == "gpt2":
        torch.manual_seed(3)
        config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=vocabulary, eos_token_id=None)
        return GPT2LMHeadModel(config)
    config, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return model(
        config(**sizes, num_key_value_heads=2, vocab_size=vocabulary, eos_token_id=None, bos_token_id=None)
    )


def make_model(name, tokenizer, decoder="qwen3", spare=0, **encoder_settings):
    """A random model with the adapter of a format, and its chat format."""
    whisper = tiny_whisper(inner=256) if name == "voxtral" else tiny_whisper()
    encoder = WhisperAudioEncoder(whisper, **{**EXACT[name], **encoder_settings})
    lm = TextDecoder(small_decoder(decoder, len(tokenizer) + spare))
    torch.manual_seed(1)
    adapter = make_stock_projector(STOCK_FORMATS[name].adapter, encoder.dim, encoder.frame_rate, lm.dim)
    return AudioLM(encoder, adapter, lm).eval(), ChatFormat(tokenizer, vocabulary=lm.vocabulary)


def noise(*seconds):
    return [row.numpy() for row in make_noise([round(s * SECOND) for s in seconds]).rows()]


def write(model, format, folder, name):
    write_stock_model(model, format, folder, name, STOCK_FORMATS[name])
    target = STOCK_FORMATS[name]
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=target.has_code)
    if target.model is None:
        return processor, UltravoxReference(folder)
    return processor, target.model.from_pretrained(folder, dtype=torch.float32).eval()


def read_prompt(model, format, clips, pieces):
    """Return the logits ``[T, V]`` and the greedy answer of the run itself."""
    batch = collate_prompts(
        [Example("x", "t", "t", tuple(clips), pieces, "-")], format, model.count_slots, ("t",)
    )
    with torch.no_grad():
        logits = model.decoder.logits(model.read(batch)[0])
        ids = model.generate_ids(batch, 6, format.end_of_turn, format.pad)[0]
    return logits, ids


def read_stock(stock, processor, text, clips):
    """Return the same of the stock class."""
    audio = [clip / np.float32(32768) for clip in clips]
    inputs = processor(text=[text], audio=audio, sampling_rate=SECOND, return_tensors="pt")
    with torch.no_grad():
        logits = stock(**inputs).logits[0]
        ids = stock.generate(**inputs, max_new_tokens=6)[0, inputs.input_ids.shape[1] :]
    return logits, ids.tolist()


def write_turn(processor, *contents):
    turn = [{"type": "audio"} if one is None else {"type": "text", "text": one} for one in contents]
    return processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)


def assert_equal(ours, theirs):
    (logits, ids), (stock_logits, stock_ids) = ours, theirs
    assert len(logits) == len(stock_logits)  # as many audio tokens, each in its place
    torch.testing.assert_close(stock_logits[:, : logits.shape[1]], logits, atol=2e-5, rtol=1e-4)
    assert stock_ids[: len(ids)] == ids


@pytest.mark.parametrize("name", EXACT)
def test_the_stock_class_answers_as_the_run_for_clips_of_every_length(name, chat_tokenizer, tmp_path):
    model, format = make_model(name, chat_tokenizer)
    processor, stock = write(model, format, tmp_path, name)
    for clip in noise(*LENGTHS[name]):
        text = write_turn(processor, None, "Which tone is it?")
        ours = read_prompt(model, format, [clip], ("", "Which tone is it?"))
        assert_equal(ours, read_stock(stock, processor, text, [clip]))


@pytest.mark.parametrize("decoder", ["qwen2", "llama"])
def test_other_decoders_stand_inside_a_format_with_spare_rows_and_untied_heads(
    decoder, chat_tokenizer, tmp_path
):
    model, format = make_model("qwen2-audio", chat_tokenizer, decoder, spare=40)
    processor, stock = write(model, format, tmp_path, "qwen2-audio")
    assert stock.get_input_embeddings().num_embeddings == len(chat_tokenizer) + 40
    (clip,) = noise(1.1)
    ours = read_prompt(model, format, [clip], ("Name the tone.", ""))
    assert_equal(ours, read_stock(stock, processor, write_turn(processor, "Name the tone.", None), [clip]))


@pytest.mark.parametrize("name", ["qwen2-audio", "voxtral", "ultravox"])
def test_several_clips_stand_in_one_prompt(name, chat_tokenizer, tmp_path):
    model, format = make_model(name, chat_tokenizer)
    processor, stock = write(model, format, tmp_path, name)
    clips = noise(0.7, 2.2, 1.4) if name != "ultravox" else noise(0.8, 30.16, 1.6)  # whole groups of 160 ms
    text = write_turn(processor, "First", None, "then", None, None, "which is low?")
    ours = read_prompt(model, format, clips, ("First", "then", "", "which is low?"))
    assert_equal(ours, read_stock(stock, processor, text, clips))


def test_the_last_token_of_a_shorter_window_of_ultravox_sees_its_padding(chat_tokenizer, tmp_path):
    model, format = make_model("ultravox", chat_tokenizer)
    processor, stock = write(model, format, tmp_path, "ultravox")
    clips = noise(0.7, 2.2)
    text = write_turn(processor, None, None, "which is low?")
    ours, _ = read_prompt(model, format, clips, ("", "", "which is low?"))
    theirs, _ = read_stock(stock, processor, text, clips)
    differences = (theirs[:, : ours.shape[1]] - ours).abs().amax(1) / ours.abs().max()
    last = len(format.markup.prefix and format.tokenizer(format.markup.prefix)["input_ids"]) + 4
    assert differences[:last].max() < 1e-4 < differences[last]
    assert differences[-1] < 0.1


def test_a_long_clip_of_qwen2_audio_in_pieces(chat_tokenizer, tmp_path):
    model, format = make_model("qwen2-audio", chat_tokenizer)
    processor, stock = write(model, format, tmp_path, "qwen2-audio")
    (long,) = noise(65)
    text = write_turn(processor, None, "which is low?").replace("<|AUDIO|>", "<|AUDIO|>" * 3)
    pieces = [long[: 30 * SECOND], long[30 * SECOND : 60 * SECOND], long[60 * SECOND :]]
    ours = read_prompt(model, format, [long], ("", "which is low?"))
    assert_equal(ours, read_stock(stock, processor, text, pieces))


@pytest.mark.parametrize("name", EXACT)
def test_a_batch_of_prompts_is_answered_as_each_alone(name, chat_tokenizer, tmp_path):
    model, format = make_model(name, chat_tokenizer)
    processor, stock = write(model, format, tmp_path, name)
    clips = noise(0.6, 1.9)
    texts = [write_turn(processor, None, question) for question in ("low?", "Which tone is it?")]
    audio = [clip / np.float32(32768) for clip in clips]
    given = {"sampling_rate": SECOND, "return_tensors": "pt"}
    if STOCK_FORMATS[name].arguments:  # as the card has it
        given["padding"] = True
    inputs = processor(text=texts, audio=audio, **given)
    together = stock.generate(**inputs, max_new_tokens=6)[:, inputs.input_ids.shape[1] :]
    for row, clip, question in zip(together, clips, ("low?", "Which tone is it?"), strict=True):
        ids = read_prompt(model, format, [clip], ("", question))[1]
        assert row.tolist()[: len(ids)] == ids


def test_a_run_without_the_padding_of_the_format_is_written_and_its_difference_measured(
    chat_tokenizer, tmp_path
):
    model, format = make_model("qwen2-audio", chat_tokenizer, masked_padding=False)
    target = STOCK_FORMATS["qwen2-audio"]
    clips = make_trial_clips()
    ours = compute_prompt_logits(model, format, clips)
    write_stock_model(model, format, tmp_path, "qwen2-audio", target)
    assert not target.is_exact(model.encoder)
    compared = compare_stock_model(ours, clips, tmp_path, target, exact=False)
    assert 1e-6 < compared.difference < 0.1
    assert f"same for {compared.same_token}" in compared.describe()
    with pytest.raises(RuntimeError, match=r"differ|tokens in a prompt"):
        compare_stock_model(ours, clips, tmp_path, target, exact=True)


@pytest.mark.realmodels
@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_real_encoders_and_decoders_answer_in_every_format_as_in_the_run(name, realmodels, tmp_path):
    encoder = load_whisper(str(realmodels / "whisper-base"), **EXACT[name])
    folder = realmodels / "smollm2-135m-instruct"
    lm, tokenizer = load_decoder(str(folder)), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    adapter = make_stock_projector(STOCK_FORMATS[name].adapter, encoder.dim, encoder.frame_rate, lm.dim)
    model, format = AudioLM(encoder, adapter, lm).eval(), ChatFormat(tokenizer, vocabulary=lm.vocabulary)
    processor, stock = write(model, format, tmp_path, name)
    for clip in noise(0.3, 4.21):
        ours, ids = read_prompt(model, format, [clip], ("", "Which tone is it?"))
        text = write_turn(processor, None, "Which tone is it?")
        theirs, stock_ids = read_stock(stock, processor, text, [clip])
        assert len(theirs) == len(ours)
        difference = float((theirs[:, : ours.shape[1]] - ours).abs().max() / ours.abs().max())
        assert difference < 1e-4, difference
        assert stock_ids[: len(ids)] == ids


def test_every_stock_format_is_a_target_and_names_what_it_cannot_hold(chat_tokenizer, tmp_path):
    assert {*STOCK_FORMATS, "hf-lm"} == {*MODEL_TARGETS}
    narrow = WhisperAudioEncoder(tiny_whisper(), **EXACT["voxtral"])
    with pytest.raises(
        UserError, match="feed-forward layers are 128 wide, but the format needs four times 64"
    ):
        refuse_encoder(narrow, "voxtral", STOCK_FORMATS["voxtral"])
    with pytest.raises(
        UserError, match="one Whisper-shaped encoder, but the model has wavlm; use --to hf-lm"
    ):
        refuse_encoder(single("wavlm", tmp_path), "voxtral", STOCK_FORMATS["voxtral"])
    encoder = WhisperAudioEncoder(tiny_whisper())
    model = AudioLM(encoder, StackAdapter(32, 50.0, 24), TextDecoder(tiny_qwen(len(chat_tokenizer))))
    with pytest.raises(
        UserError, match=r"adapter\.kind ultravox, but the model has that of stack; use --to hf-lm"
    ):
        require_fitting_parts(model, STOCK_FORMATS["ultravox"], "ultravox")
    for name, exact, other in (
        ("voxtral", {"tail_frames": 1500, "keep_tail": True}, {"pad_to": 30.0}),
        ("ultravox", {}, {"masked_padding": True}),
        ("qwen2-audio", {"masked_padding": True}, {"pad_to": 30.0}),
    ):
        for settings, is_exact in ((exact, True), (other, False)):
            encoder = WhisperAudioEncoder(tiny_whisper(), **settings)
            assert STOCK_FORMATS[name].is_exact(encoder) == is_exact


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_configuration_of_the_whole_ties_the_head_as_its_tensors_do(
    name, is_tied, chat_tokenizer, tmp_path
):
    """An engine that reads the value of the whole (vLLM) would leave a tied head without weights otherwise."""
    model, format = make_model(name, chat_tokenizer)
    lm = model.decoder.lm
    table = lm.get_input_embeddings().weight
    lm.get_output_embeddings().weight = table if is_tied else torch.nn.Parameter(torch.randn_like(table))
    target = STOCK_FORMATS[name]
    write_stock_model(model, format, tmp_path, name, target)
    config = json.loads((tmp_path / "config.json").read_text())
    has_head = "language_model.lm_head.weight" in load_file(tmp_path / "model.safetensors")
    assert has_head != (is_tied and target.ties_head)
    assert config["tie_word_embeddings"] == config["text_config"]["tie_word_embeddings"] != has_head


def test_new_rows_of_a_head_are_never_the_likeliest_token():
    table = torch.randn(50, 8)
    logits = torch.randn(200, 8) @ enlarge_table(table, 53).T
    assert int(logits.argmax(1).max()) < 50
    assert torch.equal(enlarge_table(table, 50), table)


def test_adapters_of_formats_refuse_frames_of_another_rate():
    for kind, rate, fix in (("qwen2_audio", 50.0, "pool: 2"), ("voxtral", 25.0, "leave out pool")):
        with pytest.raises(UserError, match=fix):
            make_stock_projector(kind, 8, rate, 8)
