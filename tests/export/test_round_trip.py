"""Exported whole models are opened again, answer as the run does, and are exported again to the same bytes."""

from functools import partial

import pytest
import torch
from conftest import tiny_whisper
from export.test_hf_lm import DEPTH, answer, noise
from export.test_hf_lm import make_model as make_model_with_code
from export.test_stock_model import EXACT
from export.test_stock_model import make_model as make_stock_model
from helpers.files import assert_same_files

from uniaudio.build.encoders import load_encoder
from uniaudio.build.exported_model import FORMATS, find_format
from uniaudio.build.model import load_model
from uniaudio.commands.export_model import MODEL_TARGETS, read_run_config
from uniaudio.config.trust import NO_TRUST
from uniaudio.errors import UserError
from uniaudio.export.hf import make_noise
from uniaudio.export.hf_lm import write_hf_lm
from uniaudio.export.logit_comparison import compute_prompt_logits
from uniaudio.export.stock_formats import STOCK_FORMATS
from uniaudio.export.stock_model import write_stock_model
from uniaudio.model.encoders.whisper import WhisperAudioEncoder

CPU = torch.device("cpu")


def assert_same_answers(model, format, loaded):
    clips = noise(7_777, 30_011)
    for ours, theirs in zip(
        compute_prompt_logits(model, format, clips),
        compute_prompt_logits(loaded.model, loaded.format, clips),
        strict=True,
    ):
        assert torch.equal(ours, theirs[:, : ours.shape[1]])
    assert answer(model, format, clips[:1], ("", "low?")) == answer(
        loaded.model, loaded.format, clips[:1], ("", "low?")
    )


@pytest.mark.parametrize("settings", [{}, DEPTH], ids=["plain", "depth"])
def test_a_model_with_its_code(settings, chat_tokenizer, tmp_path):
    model, format = make_model_with_code(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()), **settings)
    write_hf_lm(model, format, tmp_path / "one", {"steps": 3})
    loaded = load_model(str(tmp_path / "one"), CPU)
    assert_same_answers(model, format, loaded)
    write_hf_lm(loaded.model, loaded.format, tmp_path / "two", {"steps": 3})
    assert_same_files(tmp_path / "one", tmp_path / "two")
    audio = make_noise((9_000,))
    encoder = load_encoder(str(tmp_path / "one"), CPU)
    assert torch.equal(encoder(audio).frames.values, model.encoder(audio).frames.values)


@pytest.mark.parametrize(("name", "decoder"), [*((name, "qwen3") for name in EXACT), ("qwen2-audio", "gpt2")])
def test_a_model_in_a_stock_format(name, decoder, chat_tokenizer, tmp_path):
    target = STOCK_FORMATS[name]
    model, format = make_stock_model(name, chat_tokenizer, decoder)
    write_stock_model(model, format, tmp_path / "one", name, target)
    assert find_format(str(tmp_path / "one")) == name
    loaded = load_model(str(tmp_path / "one"), CPU)
    assert_same_answers(model, format, loaded)
    assert target.is_exact(loaded.model.encoder)
    write_stock_model(loaded.model, loaded.format, tmp_path / "two", name, target)
    assert_same_files(tmp_path / "one", tmp_path / "two")
    # another format of whole models takes it, too; the projector of another one does not become its own
    write_hf_lm(loaded.model, loaded.format, tmp_path / "lm", {})
    assert_same_answers(model, format, load_model(str(tmp_path / "lm"), CPU))
    for other in {*EXACT} - {name, "voxtral"}:
        with pytest.raises(
            UserError, match=f"adapter.kind {STOCK_FORMATS[other].adapter}, but the model has"
        ):
            write_stock_model(loaded.model, loaded.format, tmp_path / "no", other, STOCK_FORMATS[other])


def test_a_decoder_that_the_configuration_of_a_format_reads_otherwise_is_refused(chat_tokenizer, tmp_path):
    model, format = make_stock_model("voxtral", chat_tokenizer, "gpt2")
    with pytest.raises(UserError, match="VoxtralConfig of transformers reads a different hidden_size"):
        write_stock_model(model, format, tmp_path / "no", "voxtral", STOCK_FORMATS["voxtral"])
    assert not (tmp_path / "no").exists()


def test_what_is_no_whole_model_says_so(tmp_path):
    assert {*FORMATS.values()} == {*MODEL_TARGETS}
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    assert find_format(str(tmp_path / "whisper")) is None
    assert find_format(str(tmp_path / "missing")) is None
    with pytest.raises(UserError, match="nor an exported whole model"):
        load_model(str(tmp_path / "whisper"), CPU)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    for read in (load_model, partial(read_run_config, to="hf-lm", trust=NO_TRUST)):
        with pytest.raises(UserError, match=r"lora contains an adapter .* merge it into its base model"):
            read(str(tmp_path / "lora"))
