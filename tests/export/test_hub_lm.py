"""The exported whole model in the hands of ``generate`` and of libraries that cast, copy, store and train it."""

import copy
import shutil

import pytest
import torch
from conftest import tiny_whisper
from export.test_hf_lm import DEPTH, load, make_model, noise
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM, GenerationConfig

from uniaudio.export.hf_lm import write_hf_lm
from uniaudio.export.hub_base import find_decoder_places
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.mowe import MoweEncoder


@pytest.fixture
def plain(chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    write_hf_lm(model, format, tmp_path / "lm", {})
    return load(tmp_path / "lm")


def test_beams_read_the_features_of_the_prompt_that_they_began_with(chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()), **DEPTH)
    write_hf_lm(model, format, tmp_path / "lm", {})
    processor, loaded = load(tmp_path / "lm")
    clips, settings = noise(16_000, 7_777), {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}
    inputs = processor(text=["<|audio|>low?", "<|audio|>Which tone is it?"], audio=clips)
    together = loaded.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    assert len(together) == 4
    for row, text in enumerate(("<|audio|>low?", "<|audio|>Which tone is it?")):
        alone = processor(text=text, audio=clips[row])
        ids = loaded.generate(**alone, **settings)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(ids, together[2 * row : 2 * row + 2, : ids.shape[1]])


def test_a_generation_config_of_the_users_keeps_the_end_of_a_turn(plain):
    """transformers takes from the model what that leaves open."""
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    start = inputs["input_ids"].shape[1]
    first = int(model.generate(**inputs, max_new_tokens=1)[0, start])
    fresh = load(model.name_or_path)[1]
    fresh.generation_config.eos_token_id = first
    ids = fresh.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=5, do_sample=False))
    assert ids[0, start:].tolist() == [first]


def test_a_decoder_by_reference_is_fetched_as_the_call_says(chat_tokenizer, tmp_path, monkeypatch):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    model.decoder.lm.save_pretrained(tmp_path / "qwen")
    write_hf_lm(model, format, tmp_path / "lm", {}, (str(tmp_path / "qwen"), "main"))
    calls, plain = [], AutoModelForCausalLM.from_pretrained.__func__

    def watch(cls, path, **settings):
        calls.append((str(path), dict(settings)))
        return plain(cls, path, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(watch))
    settings = {"token": "hf_me", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    AutoModelForCausalLM.from_pretrained(tmp_path / "lm", trust_remote_code=True, **settings)
    assert calls[1] == (str(tmp_path / "qwen"), {"revision": "main", "dtype": torch.float32, **settings})


def test_a_model_with_a_decoder_by_reference_is_saved_whole(chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    model.decoder.lm.save_pretrained(tmp_path / "qwen")
    write_hf_lm(model, format, tmp_path / "lm", {}, (str(tmp_path / "qwen"), None))
    processor, loaded = load(tmp_path / "lm")
    for part in (loaded, processor):
        part.save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "qwen")
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    again = load(tmp_path / "again")[1]
    assert torch.equal(again(**inputs).logits, loaded(**inputs).logits)
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert "language_model.lm_head.weight" not in stored  # the table, which is tied


def test_lengths_of_clips_may_be_a_list(plain):
    processor, model = plain
    inputs = processor(text=["<|audio|>low?", "<|audio|>high?"], audio=noise(16_000, 7_777))
    wanted = model(**inputs).logits
    assert torch.equal(model(**{**inputs, "audio_lengths": [16_000, 7_777]}).logits, wanted)


def test_tokens_behind_a_cache_stand_where_they_would_without_it(plain):
    """In a batch with padding before the shorter prompt."""
    processor, model = plain
    inputs = processor(text=["<|audio|>low?", "<|audio|>Which tone is it?"], audio=noise(16_000, 7_777))
    start = model(**inputs, use_cache=True)
    next_ids = start.logits[:, -1:].argmax(-1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(next_ids)], 1)
    assert not mask.all()
    ids = torch.cat([inputs["input_ids"], next_ids], 1)
    wanted = model(**{**inputs, "input_ids": ids, "attention_mask": mask}).logits[:, -1]
    given = {"attention_mask": mask, "past_key_values": start.past_key_values}
    torch.testing.assert_close(model(input_ids=next_ids, **given).logits[:, -1], wanted)


def test_settings_of_a_processor_in_groups(plain):
    processor, _ = plain
    texts, clips = ["<|audio|>low?", "<|audio|>Which tone is it?"], noise(16_000, 7_777)
    wanted = processor(text=texts, audio=clips, sampling_rate=16_000, padding_side="right")
    groups = {"text_kwargs": {"padding_side": "right"}, "audio_kwargs": {"sampling_rate": 16_000}}
    inputs = processor(text=texts, audio=clips, common_kwargs={"return_tensors": "pt"}, **groups)
    assert {*inputs} == {*wanted}
    assert all(torch.equal(inputs[name], wanted[name]) for name in wanted)
    assert not inputs["attention_mask"][:, -1].all()
    for wrong, sentence in (
        ({"sampling_rate": 8_000}, "sampling_rate: 8000"),
        ({"padding": "max_length"}, "audio_kwargs: there is no setting padding"),
    ):
        with pytest.raises(ValueError, match=sentence):
            processor(text=texts, audio=clips, audio_kwargs=wrong)


def test_the_decoder_is_offloaded_and_the_encoder_is_not(plain, tmp_path):
    processor, model = plain
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    settings = {"trust_remote_code": True, "offload_folder": str(tmp_path / "offloaded")}
    places = {"encoder": "cpu", "adapter": "cpu", "language_model": "disk"}
    offloaded = AutoModelForCausalLM.from_pretrained(model.name_or_path, device_map=places, **settings).eval()
    assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)
    for name in ("encoder", "adapter"):
        wrong = {**places, "language_model": "cpu", name: "disk"}
        with pytest.raises(ValueError, match="device_map: the encoder cannot be offloaded"):
            AutoModelForCausalLM.from_pretrained(model.name_or_path, device_map=wrong, **settings)


def test_a_clip_may_have_an_axis_of_one_channel(plain):
    processor, _ = plain
    (clip,) = noise(9_000)
    wanted = processor(text="<|audio|>low?", audio=clip)
    for given in (clip[None], [clip[None]], [[torch.from_numpy(clip)[None]]]):
        inputs = processor(text="<|audio|>low?", audio=given)
        assert all(torch.equal(inputs[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("decoder", ["inside", "reference"])
def test_the_dtype_of_a_call_is_that_of_all_parts(decoder, chat_tokenizer, tmp_path):
    """Without one it is float32, whatever the decoder is stored in."""
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    copy.deepcopy(model.decoder.lm).bfloat16().save_pretrained(tmp_path / "qwen")
    reference = (str(tmp_path / "qwen"), None) if decoder == "reference" else None
    write_hf_lm(model, format, tmp_path / "lm", {}, reference)
    processor, loaded = load(tmp_path / "lm")
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    settings = {"trust_remote_code": True, "dtype": torch.bfloat16}
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", **settings).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits, wanted = half(**inputs).logits, loaded(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits.float(), wanted, -1).min() > 0.99


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ("auto", "auto"),
        ({"": 0}, {"": 0}),
        ({"encoder": 0, "adapter": 0, "language_model": 1}, {"": 1}),
        ({"encoder": 0, "language_model.model": 0, "language_model.lm_head": 1}, {"model": 0, "lm_head": 1}),
    ],
)
def test_a_decoder_by_reference_goes_where_the_map_of_the_whole_puts_it(places, wanted):
    assert find_decoder_places(places) == wanted


def test_a_decoder_by_reference_is_loaded_with_a_map_of_devices(chat_tokenizer, tmp_path):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    model.decoder.lm.save_pretrained(tmp_path / "qwen")
    write_hf_lm(model, format, tmp_path / "lm", {}, (str(tmp_path / "qwen"), None))
    processor, loaded = load(tmp_path / "lm")
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    settings = {"trust_remote_code": True, "offload_folder": str(tmp_path / "offloaded")}
    places = {"encoder": "cpu", "adapter": "cpu", "language_model": "disk"}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", device_map=places, **settings).eval()
    assert next(spread.language_model.parameters()).is_meta
    assert torch.equal(spread(**inputs).logits, loaded(**inputs).logits)


class PretendedGpu(FakeTensorMode):
    """Tensors of a GPU that is not there have no values, and cannot be mixed with those of the host, which have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = pytree.tree_leaves((args, kwargs))
        devices = [value.type for value in given if isinstance(value, torch.device)]
        if "cuda" in devices or any(isinstance(value, FakeTensor) for value in given):
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, DEPTH], ids=["plain", "depth"])
@pytest.mark.parametrize("reads_prompt", [False, True])
@torch.no_grad()
def test_inputs_and_encoder_may_be_on_another_device_than_the_decoder(
    settings, reads_prompt, chat_tokenizer, tmp_path, monkeypatch
):
    encoder = WhisperAudioEncoder(tiny_whisper())
    if reads_prompt:
        encoder = MoweEncoder({"a": encoder, "b": WhisperAudioEncoder(tiny_whisper(1))}, 50.0, prompt_dim=64)
    model, format = make_model(chat_tokenizer, encoder, **settings)
    write_hf_lm(model, format, tmp_path / "lm", {})
    processor, loaded = load(tmp_path / "lm")
    inputs = processor(text=["<|audio|>low?", "<|audio|>Which tone is it?"], audio=noise(9_000, 7_777))
    wanted = loaded.embed(**inputs).shape
    table, devices_seen = loaded.get_input_embeddings(), []

    def move(module, given, named):  # as the hooks of accelerate
        return pytree.tree_map_only(FakeTensor, lambda _: torch.zeros(2, 64), (given, named))

    def continue_prompts(inputs_embeds, attention_mask, **_):
        devices_seen.extend((inputs_embeds.device.type, attention_mask.device.type))
        return torch.zeros(2, 3, dtype=torch.long).to(inputs_embeds.device)

    monkeypatch.setattr(loaded.language_model, "generate", continue_prompts)
    with PretendedGpu(allow_non_fake_inputs=True):
        table.weight = torch.nn.Parameter(table.weight.to("cuda:0"), requires_grad=False)
        table.register_forward_pre_hook(lambda module, given: (given[0].to("cuda:0"),))
        loaded.encoder.register_forward_pre_hook(move, with_kwargs=True)
        embeds = loaded.embed(**inputs)
        ids = loaded.generate(**inputs)
    assert (embeds.device.type, embeds.shape) == ("cuda", wanted)
    assert devices_seen == ["cuda", "cuda"]
    assert ids.device.type == "cpu"


@pytest.fixture
def with_router(chat_tokenizer, tmp_path):
    """A model whose router reads the question."""
    parts = {name: WhisperAudioEncoder(tiny_whisper(seed)) for seed, name in enumerate("abc")}
    model, format = make_model(chat_tokenizer, MoweEncoder(parts, 50.0, prompt_dim=64))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    write_hf_lm(model, format, tmp_path / "router", {})
    return load(tmp_path / "router")


@torch.no_grad()
def test_a_router_that_reads_the_question_does_not_read_the_answer(with_router):
    """The logits of a question are those without an answer behind it, where labels say which tokens that is."""
    processor, model = with_router
    inputs = processor(text="<|audio|>low?", audio=noise(9_000))
    alone, count = model(**inputs).logits, inputs["input_ids"].shape[1]
    answer = processor.tokenizer("Which tone is it?", add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([inputs["input_ids"], answer], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ids.clone()
    unlabelled = model(**whole).logits
    assert torch.equal(model(**whole, labels=labels).logits, unlabelled)  # the question is learned, too
    assert (unlabelled[:, :count] - alone).abs().max() > 1e-5
    labels[:, :count] = -100
    torch.testing.assert_close(model(**whole, labels=labels).logits[:, :count], alone, atol=1e-6, rtol=1e-5)


def test_more_clips_than_places_are_one_sentence(with_router, plain):
    for processor, model in (with_router, plain):
        inputs = processor(text="<|audio|>low?", audio=noise(9_000))
        inputs["input_values"] = inputs["input_values"].repeat(2, 1)
        inputs["audio_lengths"] = inputs["audio_lengths"].repeat(2)
        with pytest.raises(
            ValueError, match=r"^\d+ audio placeholders but \d+ audio tokens; create the inputs"
        ):
            model(**inputs)
