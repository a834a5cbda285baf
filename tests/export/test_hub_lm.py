"""The exported whole model in the hands of ``generate`` and of libraries that cast, copy, store and train it."""

import shutil

import pytest
import torch
from conftest import tiny_whisper
from export.test_hf_lm import DEPTH, load, make_model, noise
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from uniaudio.export.hf_lm import write_hf_lm
from uniaudio.model.encoders.whisper import WhisperAudioEncoder


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
    assert calls[1] == (str(tmp_path / "qwen"), {"revision": "main", **settings})


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
