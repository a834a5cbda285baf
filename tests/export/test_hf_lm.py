"""Whole models with code of their own: what they answer is what the run answers."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from export.test_hf import FUSIONS, fused
from export.test_stock_model import make_model as make_stock_model
from export.test_stock_model import write as write_stock
from helpers.config_kinds import list_kinds
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MoonshineConfig,
    Qwen2Config,
)

from uniaudio.build.adapter import fill_time_markers, make_adapter
from uniaudio.commands.export_model import find_decoder_reference
from uniaudio.config.adapters import AdapterConfig
from uniaudio.config.decoder import DecoderConfig
from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.export.describe import add_older_names, describe_encoder, find_parts
from uniaudio.export.hf import collect_code, make_noise
from uniaudio.export.hf_lm import CLASSES, ROOT, write_hf_lm
from uniaudio.export.logit_comparison import compute_prompt_logits, verify_hf_lm
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.exported import find_part_class
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.model.rebuild import rebuild
from uniaudio.types import Example

HERE = Path(__file__).parent.parent
KINDS = list_kinds(AdapterConfig)
# parts that the settings of every kind can add
ADDITIONS = {
    "depth": {"depth": {"encoder_layers": [0, 1], "decoder_layers": [1, 0]}},
    "time_markers": {"time_markers": 0.1},
}


def noise(*samples):
    return [row.numpy() for row in make_noise(samples).rows()]


ROPE = {"rope_type": "default", "rope_theta": 1e5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LINEAR = {"rope_type": "linear", "factor": 8.0}
DEPTH = {"depth": {"encoder_layers": [0, 1], "decoder_layers": [1, 0]}, "time_markers": 0.5}


def make_model(tokenizer, encoder, **settings):
    lm = TextDecoder(tiny_qwen(len(tokenizer), layers=3, rope_theta=500.0))  # not the default of its class
    torch.manual_seed(1)
    config = TypeAdapter(AdapterConfig).validate_python({"kind": "stack", **settings})
    adapter = make_adapter(config, encoder, lm.dim)
    fill_time_markers(adapter, lm, tokenizer)
    for name, parameter in adapter.named_parameters():
        if "projections" in name:  # they begin at zero
            torch.nn.init.normal_(parameter, std=0.3)
    return AudioLM(encoder, adapter, lm).eval(), ChatFormat(tokenizer, vocabulary=lm.vocabulary)


def load(folder):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return processor, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def answer(model, format, clips, pieces):
    batch = collate_prompts(
        [Example("x", "t", "t", tuple(clips), pieces, "-")], format, model.count_slots, ("t",)
    )
    return model.generate_ids(batch, 6, format.end_of_turn, format.pad)[0]


@pytest.mark.parametrize(
    "added", [(), ("depth",), ("time_markers",), ("depth", "time_markers")], ids="+".join
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_is_described_and_made_again(kind, added):
    """With all that its settings can add, or the settings are refused in one sentence."""
    encoder = WhisperAudioEncoder(tiny_whisper(), pool=2 if kind in ("qwen2_audio", "audio_flamingo3") else 1)
    settings = {name: value for one in added for name, value in ADDITIONS[one].items()}
    try:
        config = TypeAdapter(AdapterConfig).validate_python({"kind": kind, **settings})
    except ValidationError as problem:
        assert added
        (error,) = problem.errors()
        assert error["msg"].endswith("; use another kind"), error["msg"]
        return
    adapter = make_adapter(config, encoder, 24)
    assert adapter.inner.kind == kind
    with torch.no_grad():
        for tensor in (*adapter.parameters(), *adapter.buffers()):
            tensor.add_(0.1 * torch.randn_like(tensor))
    described = json.loads(json.dumps(describe_encoder(adapter)))
    code = collect_code(find_parts(described), ROOT, CLASSES)
    for name, text in code.items():
        compile(text, name, "exec")
    assert type(adapter).__name__ in code["modeling_uniaudio_lm.py"]
    again = rebuild(described, find_part_class)
    again.load_state_dict(adapter.state_dict())
    encoded = encoder(make_noise((16_000, 5_000)), layers=True)
    states = [[encoded.layers[number] for number in adapter.encoder_layers]] if adapter.encoder_layers else []
    tokens = adapter(encoded.frames, *states)
    assert torch.equal(again(encoded.frames, *states).values, tokens.values)
    assert tokens.lengths.tolist() == [again.num_tokens(frames) for frames in encoded.frames.lengths.tolist()]
    assert again.decoder_layers == adapter.decoder_layers
    nothing = encoder(make_noise((1,)).select([]), layers=True)
    states = [[nothing.layers[number] for number in adapter.encoder_layers]] if adapter.encoder_layers else []
    assert adapter(nothing.frames, *states).values.shape == (0, tokens.values.shape[1])


@pytest.mark.parametrize("settings", [{}, DEPTH], ids=["plain", "depth"])
def test_a_batch_with_several_clips_in_a_prompt_is_answered_as_in_the_run(settings, chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()), **settings)
    clips = noise(16_000, 7_777, 30_011)
    write_hf_lm(model, format, tmp_path / "lm", {"steps": 3})
    assert verify_hf_lm(compute_prompt_logits(model, format, clips), clips, tmp_path / "lm") < 1e-6
    processor, loaded = load(tmp_path / "lm")
    prompts = [("First ", " then ", " which is low?"), ("", "Name the tone.")]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [
                one
                for i, piece in enumerate(pieces)
                for one in ([{"type": "audio"}] if i else []) + [{"type": "text", "text": piece}]
            ]}],
            add_generation_prompt=True,
        )
        for pieces in prompts
    ]  # fmt: skip
    floats = [clip / np.float32(32768) for clip in clips]
    inputs = processor(text=texts, audio=floats, sampling_rate=16_000)
    ids = loaded.generate(**inputs, max_new_tokens=6)
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, pieces, chosen in zip(ids, prompts, (clips[:2], clips[2:]), strict=True):
        wanted = answer(model, format, chosen, pieces)
        assert row[inputs["input_ids"].shape[1] :].tolist()[: len(wanted)] == wanted
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loaded(**inputs, labels=labels).loss.backward()
    assert loaded.encoder.whisper.conv1.weight.grad.abs().sum() > 0
    only_text = loaded.generate(**processor(text="low"), max_new_tokens=2)
    assert only_text.shape[1] > 2
    assert loaded.config.provenance == {"steps": 3}
    for clip, rate, sentence in (
        (np.zeros((2, 9), np.float32), 16_000, "with one channel that is not empty"),
        (np.zeros(0, np.float32), 16_000, "with one channel that is not empty"),
        (None, 16_000, r"there are 0 clips; give them as audio=\[...\]"),
        (floats[0], 8_000, "sampling_rate: 8000"),
        ([floats[0], floats[1]], 16_000, "1 placeholders <|audio|>, but there are 2 clips"),
    ):
        with pytest.raises(ValueError, match=sentence.replace("|", r"\|")):
            processor(text="<|audio|>", audio=clip, sampling_rate=rate)


@pytest.fixture
def plain(chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    write_hf_lm(model, format, tmp_path / "lm", {})
    return load(tmp_path / "lm")


def test_the_processor_is_called_as_those_of_transformers(plain):
    processor, model = plain
    one, two = (clip / np.float32(32768) for clip in noise(16_000, 7_777))
    turns = [
        [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": "low?"}]}]
        for clip in (one, two)
    ]
    texts = processor.apply_chat_template(turns, add_generation_prompt=True)
    wanted = processor(text=texts, audio=[one, two], sampling_rate=16_000)
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    at_once = processor.apply_chat_template(turns, **settings)
    for inputs in (
        at_once,
        processor(text=texts, audio=[[one], [two]], add_special_tokens=True, images=None),
    ):
        assert {*inputs} == {*wanted}
        assert all(torch.equal(inputs[name], wanted[name]) for name in wanted)
    alone = processor(text=texts[0], audio=one.tolist())
    assert torch.equal(alone["input_values"], processor(text=texts[0], audio=one)["input_values"])
    arrays = processor(text=texts, audio=[one, two], return_tensors="np")
    assert {type(value) for value in arrays.values()} == {np.ndarray}
    with pytest.raises(ValueError, match="audio placeholders, but there are no input_values"):
        model(input_ids=alone["input_ids"])
    for given, sentence in (
        ({"audio": (one * 2**30).astype(np.int32)}, "audio: samples must be int16, or float"),
        ({"audio": one * 32768}, r"audio: the waveform reaches \d+; floats must be in \[-1, 1\]"),
        ({"audio": one, "images": [1]}, "images: the model takes audio"),
    ):
        with pytest.raises(ValueError, match=sentence):
            processor(text=texts[0], **given)


def test_what_a_whole_model_cannot_do_is_one_sentence(plain):
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    for settings in (
        {"prefill_chunk_size": 3},
        {"generation_config": GenerationConfig(prefill_chunk_size=3)},
    ):
        with pytest.raises(ValueError, match=r"^prefill_chunk_size: prompts reach .*; leave it out$"):
            model.generate(**inputs, max_new_tokens=2, **settings)
    with pytest.raises(
        ValueError, match=r"^torch\.jit\.trace: the model reads the lengths of clips on the host"
    ):
        torch.jit.trace(model, example_kwarg_inputs=dict(inputs))


def test_attention_weights_are_those_of_the_decoder_under_eager(plain):
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    model.set_attn_implementation("eager")
    attentions = model(**inputs, output_attentions=True).attentions
    tokens = inputs["input_ids"].shape[1]
    assert [tuple(weights.shape) for weights in attentions] == 3 * [(1, 4, tokens, tokens)]
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(1, 4, tokens))


def test_a_table_of_another_size_is_stored_and_loaded(plain, tmp_path):
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    wanted = model(**inputs).logits
    rows = len(model.get_input_embeddings().weight) + 8
    assert model.resize_token_embeddings(rows, mean_resizing=False).num_embeddings == rows
    model.save_pretrained(tmp_path / "larger")
    larger = AutoModelForCausalLM.from_pretrained(tmp_path / "larger", trust_remote_code=True).eval()
    logits = larger(**inputs).logits
    assert logits.shape[-1] == rows
    torch.testing.assert_close(logits[..., : wanted.shape[-1]], wanted)


@pytest.mark.parametrize("decoder", ["inside", "reference"])
def test_a_model_that_returned_hidden_states_is_pickled_and_copied(decoder, chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()), **DEPTH)
    model.decoder.lm.save_pretrained(tmp_path / "qwen")
    reference = (str(tmp_path / "qwen"), None) if decoder == "reference" else None
    write_hf_lm(model, format, tmp_path / "lm", {}, reference)
    processor, loaded = load(tmp_path / "lm")
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    wanted = loaded(**inputs, output_hidden_states=True).hidden_states
    ids = loaded.generate(**inputs, max_new_tokens=5)
    loaded.encoder.requires_grad_(False)
    loaded.gradient_checkpointing_enable()
    for other in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        assert torch.equal(other(**inputs, output_hidden_states=True).hidden_states[-1], wanted[-1])
        assert torch.equal(other.generate(**inputs, max_new_tokens=5), ids)
        assert other.is_gradient_checkpointing
        assert other.encoder.recomputes
        flags = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (loaded, other)]
        assert flags[0] == flags[1]
        assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
        assert other.get_input_embeddings().weight is not loaded.get_input_embeddings().weight


def test_a_head_that_is_the_table_is_stored_once(plain, tmp_path):
    processor, model = plain
    stored = load_file(Path(model.name_or_path) / "model.safetensors")
    assert "language_model.model.embed_tokens.weight" in stored
    assert "language_model.lm_head.weight" not in stored
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == stored.keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_the_decoder_attends_as_the_user_wants(plain):
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    eager = AutoModelForCausalLM.from_pretrained(
        model.name_or_path, trust_remote_code=True, attn_implementation="eager"
    ).eval()
    output = eager(**inputs, output_attentions=True)
    assert [weights.shape[-1] for weights in output.attentions] == [inputs["input_ids"].shape[1]] * 3
    torch.testing.assert_close(output.logits, model(**inputs).logits, atol=2e-5, rtol=1e-4)


def test_a_mixture_whose_router_reads_the_question_and_a_decoder_by_reference(chat_tokenizer, tmp_path):
    parts = {name: WhisperAudioEncoder(tiny_whisper(seed)) for seed, name in enumerate("abc")}
    encoder = MoweEncoder(parts, 50.0, prompt_dim=64)
    model, format = make_model(chat_tokenizer, encoder)
    model.decoder.lm.save_pretrained(tmp_path / "qwen")
    write_hf_lm(model, format, tmp_path / "lm", {}, (str(tmp_path / "qwen"), None))
    clips = noise(16_000, 7_777)
    assert verify_hf_lm(compute_prompt_logits(model, format, clips), clips, tmp_path / "lm") < 1e-6
    size = sum(file.stat().st_size for file in (tmp_path / "lm").glob("*.safetensors"))
    lm = sum(p.numel() for p in model.decoder.lm.parameters())
    assert size < 4 * (sum(p.numel() for p in model.parameters()) - lm) + 200_000


def test_a_decoder_that_the_run_trained_is_not_left_out():
    settings = DecoderConfig(path="Qwen/Qwen3-0.6B", revision="main")
    assert find_decoder_reference(settings, "inside") is None
    assert find_decoder_reference(settings, "reference") == ("Qwen/Qwen3-0.6B", "main")
    for change, sentence in (
        ({"train": "lora"}, "decoder exists nowhere else"),
        ({"path": "random:x"}, "decoder exists nowhere else"),
    ):
        changed = settings.model_copy(update=change)
        with pytest.raises(UserError, match=sentence):
            find_decoder_reference(changed, "reference")
    with pytest.raises(UserError, match="give inside or reference"):
        find_decoder_reference(settings, "elsewhere")


@pytest.mark.parametrize(
    ("config", "older"),
    [
        (LlamaConfig(rope_parameters=ROPE), {"rope_theta": 1e5}),
        (Qwen2Config(rope_parameters={**ROPE, **YARN}), {"rope_theta": 1e5, "rope_scaling": YARN}),
        (MoonshineConfig(), {"rope_theta": 10_000.0, "partial_rotary_factor": 0.9}),
        (
            Gemma3TextConfig(
                rope_parameters={
                    "full_attention": {**ROPE, **LINEAR},
                    "sliding_attention": {**ROPE, "rope_theta": 7.0},
                }
            ),
            {"rope_theta": 1e5, "rope_local_base_freq": 7.0, "rope_scaling": LINEAR},
        ),
        (GPT2Config(), {}),
    ],
)
def test_rotary_positions_are_written_as_both_versions_read_them(config, older):
    values = add_older_names(config.to_dict(), type(config))
    assert {name: value for name, value in values.items() if name not in config.to_dict()} == older
    again = type(config).from_dict(values).to_dict()
    assert again == config.to_dict()


@pytest.mark.transformers4
def test_folders_answer_in_processes_without_the_package_under_both_versions(
    chat_tokenizer, tmp_path, transformers_4
):
    """As the run does: plain, with depth and time markers, fused and routed encoders, and in stock formats."""
    encoders = {
        name: fused(FUSIONS[name], tmp_path, prompt_dim=64) for name in ("concat", "mowe", "mowe, prompts")
    }
    encoders |= {name: WhisperAudioEncoder(tiny_whisper()) for name in ("plain", "depth")}
    one, two = noise(9_000, 30_011)
    floats = {"one": one / np.float32(32768), "two": two / np.float32(32768)}
    np.savez(tmp_path / "clips.npz", **floats)
    wanted = {}
    for name, encoder in encoders.items():
        model, format = make_model(chat_tokenizer, encoder, **(DEPTH if name == "depth" else {}))
        write_hf_lm(model, format, tmp_path / name, {})
        questions = (("", "low?"), ("", "Which tone is it?"))
        wanted[name] = [
            answer(model, format, [clip], pieces) for clip, pieces in zip((one, two), questions, strict=True)
        ]
    for name in (stock := ("qwen2-audio", "voxtral")):
        write_stock(*make_stock_model(name, chat_tokenizer), tmp_path / name, name)
    said = []
    for python in (sys.executable, transformers_4):
        script, clips = HERE / "whole_model_in_a_fresh_process.py", tmp_path / "clips.npz"
        place = {"HF_HOME": str(tmp_path / f"home{len(said)}"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        done = subprocess.run(
            [*map(str, (python, script, clips)), *(str(tmp_path / name) for name in (*encoders, *stock))],
            cwd=tmp_path,
            env=os.environ | place,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1]))
    assert said[1].pop("version").startswith("4.57")
    for name, rows in wanted.items():
        for ids, row in zip(said[1][name]["ids"], rows, strict=True):
            assert ids[: len(row)] == row, name
    for name in said[1]:
        assert said[0][name]["ids"] == said[1][name]["ids"]
        np.testing.assert_allclose(said[0][name]["logits"], said[1][name]["logits"], atol=1e-5)
