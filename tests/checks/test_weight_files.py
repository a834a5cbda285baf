"""The weights of models in folders, by the headers of their files: what `check` and `train` refuse."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from uniaudio.checks.weight_files import check_decoder_tensors, check_weight_files
from uniaudio.commands import check as checking
from uniaudio.commands import train as training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.decoder_loading import load_decoder

WEIGHTS = "model.safetensors"
SIZES = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = BertConfig(**SIZES, hidden_size=16, intermediate_size=16)


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


def spoil_header(file):
    file.write_bytes(file.read_bytes()[:8] + b"[" + file.read_bytes()[9:])


def end_in_header(file):
    file.write_bytes(file.read_bytes()[:20])


def empty(file):
    file.write_bytes(b"")


def shard(file):
    """Leave an index of two shards, of which one is there."""
    tensors = load_file(file)
    first, *others = sorted(tensors)
    save_file({first: tensors[first]}, file.with_name("model-00001-of-00002.safetensors"))
    weight_map = {first: "model-00001-of-00002.safetensors"}
    weight_map |= dict.fromkeys(others, "model-00002-of-00002.safetensors")
    file.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    file.unlink()


FAULTS = {
    "none": (
        lambda file: file.unlink(),
        r"{folder} holds no weights \(no .safetensors file\); download or copy",
    ),
    "cut": (cut, r"{folder}/model.safetensors is damaged \(.*\); download or copy it again$"),
    "header": (spoil_header, r"{folder}/model.safetensors is damaged \(.*\); download or copy it again$"),
    "short": (end_in_header, r"{folder}/model.safetensors is damaged \(.*\); download or copy it again$"),
    "empty": (empty, r"{folder}/model.safetensors is damaged \(.*\); download or copy it again$"),
    "shard": (
        shard,
        r"{folder} lacks model-00002-of-00002.safetensors, which its model.safetensors.index.json names",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("folder", "key"), [("whisper", "encoders.whisper.path"), ("qwen", "decoder.path")])
def test_weights_that_are_missing_or_damaged_are_refused(tone_run, folder, key, fault):
    spoil, message = FAULTS[fault]
    config = load_run(tone_run)
    check_weight_files(config)
    check_decoder_tensors(config)
    spoil(tone_run.parent / folder / WEIGHTS)
    place = re.escape(str(tone_run.parent / folder))
    with pytest.raises(UserError, match=f"^{re.escape(key)}: {message.format(folder=place)}"):
        check_weight_files(config)
    check_weight_files(load_run(tone_run, [f"{key}=random:{tone_run.parent / folder}"]))  # needs none


def test_check_and_train_refuse_them_with_one_sentence(tone_run):
    cut(tone_run.parent / "whisper" / WEIGHTS)
    sentences = []
    for attempt in (checking.check_run, lambda config: training.run_training(config, None)):
        with pytest.raises(UserError) as mistake:
            attempt(load_run(tone_run))
        sentences.append(str(mistake.value))
    assert sentences[0] == sentences[1]
    assert "whisper/model.safetensors is damaged" in sentences[0]
    assert not (tone_run.parent / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_without_all_of_its_tensors_is_refused_as_in_loading(tone_run, tied):
    folder = tone_run.parent / "gpt2"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    ).save_pretrained(folder)
    config = load_run(tone_run, [f"decoder.path={folder}"])
    check_decoder_tensors(config)  # of tied weights one is stored
    tensors = load_file(folder / WEIGHTS)
    assert tied != ("lm_head.weight" in tensors)
    del tensors["transformer.h.0.attn.c_attn.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    message = (
        r"holds no weights for 1 tensors of GPT2LMHeadModel \(transformer\.h\.0\.attn\.c_attn\.weight\);"
    )
    sentences = []
    for attempt in (lambda: check_decoder_tensors(config), lambda: load_decoder(str(folder))):
        with pytest.raises(UserError, match=message) as mistake:
            attempt()
        sentences.append(str(mistake.value))
    assert sentences[0] == sentences[1]


def test_no_weights_are_read(tone_run, monkeypatch):
    """Weights full of NaN are whole files: what is in them nobody has looked at."""
    config = load_run(tone_run)
    for folder in ("whisper", "qwen"):
        file = tone_run.parent / folder / WEIGHTS
        save_file(
            {name: tensor * torch.nan for name, tensor in load_file(file).items()}, file, {"format": "pt"}
        )
    monkeypatch.setattr("safetensors.torch.load_file", None)
    check_weight_files(config)
    check_decoder_tensors(config)


def test_a_model_that_sees_what_follows_is_no_decoder(tone_run):
    """BERT has a class of causal language models, with which it would read the answers ahead."""
    folder = tone_run.parent / "bert"
    BertForMaskedLM(BERT).save_pretrained(folder)
    message = r"^decoder\.path: bert reads texts in both directions, so it is no causal language model; use "
    for attempt in (
        lambda: checking.check_run(load_run(tone_run, [f"decoder.path={folder}"])),
        lambda: load_decoder(str(folder)),
    ):
        with pytest.raises(UserError, match=message):
            attempt()


def test_a_bert_that_was_trained_as_a_decoder_is_one():
    config = BertConfig(**SIZES, hidden_size=16, intermediate_size=16, is_decoder=True)
    refuse_unusable_class(config)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(4)[None]
    with torch.no_grad():  # what follows changes nothing
        assert torch.allclose(model(ids).logits[:, :3], model(ids[:, :3]).logits, atol=1e-5)
