"""Folders named as a decoder or encoder that hold something else than plain weights: one sentence with the way out."""

import json

import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    GptOssConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    modeling_utils,
)

from uniaudio.commands.check import check_run
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.retrieval_probes import TextModel
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.encoders.registry import load_audio_encoder

ADAPTER = {"base_model_name_or_path": "somebody/model", "peft_type": "LORA"}
KERNEL = "kernels-community/flash-attn"
MAKERS = {"decoder": tiny_qwen, "encoder": tiny_whisper}


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def load(role, folder):
    if role == "decoder":
        return load_decoder(str(folder))
    return load_audio_encoder(EncoderConfig(path=str(folder)), "encoders.a")


def pickle_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def write_adapter(folder):
    """A folder as peft saves it: nothing of the base model."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


def add_adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


def write_gguf(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(60))


def leave_pointer(folder):
    """A folder that was cloned without Git LFS."""
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )


DAMAGES = {
    "pointer": (leave_pointer, r"model\.safetensors is a pointer of Git LFS; .* with `git lfs pull`"),
    "pickle": (pickle_weights, "holds its weights as pytorch_model.bin, a pickle.*convert it to safetensors"),
    "adapter": (write_adapter, "contains an adapter .*merge it into its base model"),
    "model with an adapter": (add_adapter, "contains an adapter .*merge it into its base model"),
    "gguf": (
        write_gguf,
        r"as GGUF \(model-Q4_K_M.gguf\), which is not supported; name the safetensors folder",
    ),
}


@pytest.mark.parametrize("role", MAKERS)
@pytest.mark.parametrize("name", DAMAGES)
def test_weights_in_another_form_are_refused(tmp_path, role, name):
    MAKERS[role]().save_pretrained(tmp_path)
    damage, sentence = DAMAGES[name]
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load(role, tmp_path)


@pytest.mark.parametrize("name", DAMAGES)
def test_check_says_the_same(tone_run, name):
    damage, sentence = DAMAGES[name]
    damage(tone_run.parent / "qwen")
    with pytest.raises(UserError, match=f"^decoder.path: .*{sentence}"):
        check_run(load_run(tone_run))


def test_a_file_of_gguf_is_named(tone_run):
    file = tone_run.parent / "a.gguf"
    file.write_bytes(b"GGUF")
    for action in (
        lambda: load_decoder(str(file)),
        lambda: check_run(load_run(tone_run, ["decoder.path=a.gguf"])),
    ):
        with pytest.raises(UserError, match=r"as GGUF \(a\.gguf\)"):
            action()


QUANTIZED = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"load_in_8bit": True},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "somebody's own"},
    {},
]


@pytest.mark.parametrize("stated", QUANTIZED, ids=str)
def test_quantized_weights_are_refused(tone_run, stated):
    change_config(tone_run.parent / "qwen", quantization_config=stated)
    named = stated.get("quant_method", "quantization_config")
    for action in (
        lambda: load_decoder(str(tone_run.parent / "qwen")),
        lambda: check_run(load_run(tone_run)),
    ):
        with pytest.raises(
            UserError, match=rf"^decoder\.path: its weights are quantized \({named}.*name the original model"
        ):
            action()


def test_weights_that_transformers_makes_whole_are_taken_so():
    """As gpt-oss is published: with kernels of the Hub they would stay as they are."""
    config = GptOssConfig(quantization_config={"quant_method": "mxfp4"})
    refuse_unusable_class(config)
    assert config.quantization_config["dequantize"] is True


def test_a_model_of_pictures_and_text_is_refused(tone_run):
    text = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    eyes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_attention_heads=2, **eyes),
        text_config=LlamaConfig(num_attention_heads=2, **text),
        image_token_index=5,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tone_run.parent / "llava")
    for action in (
        lambda: load_decoder(str(tone_run.parent / "llava")),
        lambda: check_run(load_run(tone_run, ["decoder.path=llava"])),
    ):
        with pytest.raises(UserError, match="llava reads more than text; save its language model separately"):
            action()


def test_an_exported_whole_model_is_no_decoder(tone_run):
    """The code in its folder is no reason to trust it."""
    (tone_run.parent / "lm").mkdir()
    values = {"model_type": "uniaudio_lm", "auto_map": {"AutoConfig": "code.Config"}}
    (tone_run.parent / "lm" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="lm is an exported whole model; save its language model separately"):
        check_run(load_run(tone_run, ["decoder.path=lm"]))


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "mistral3", "idefics3", "qwen2_audio", "gemma3"])
def test_other_such_models_are_refused_by_their_config(kind):
    with pytest.raises(UserError, match=r"reads more than text|cannot generate from embeddings"):
        refuse_unusable_class(AutoConfig.for_model(kind))


@pytest.fixture
def fetched(monkeypatch):
    """What transformers would fetch from the Hub as code of attention."""
    names = []

    def chosen(self, name, *arguments, **settings):
        if name is not None and "/" in name:
            names.append(name)
        return "sdpa"

    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_check_and_adjust_attn_implementation", chosen)
    return names


@pytest.mark.parametrize(
    "key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
)
@pytest.mark.parametrize("role", MAKERS)
def test_kernels_that_a_config_names_are_not_fetched(tmp_path, fetched, role, key):
    MAKERS[role]().save_pretrained(tmp_path)
    change_config(tmp_path, **{key: KERNEL})
    load(role, tmp_path)
    assert fetched == []


def test_kernels_of_a_model_of_texts_are_not_fetched(tmp_path, fetched, chat_tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(chat_tokenizer), **sizes)).save_pretrained(tmp_path)
    chat_tokenizer.save_pretrained(tmp_path)
    change_config(tmp_path, _attn_implementation=KERNEL)
    assert TextModel(str(tmp_path)).vectors(["low"]).shape == (1, 16)
    assert fetched == []
