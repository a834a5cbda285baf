"""Uploads of exports to a Hub of this machine, and what is loaded from there again."""

import json
import socket

import pytest
import torch
from conftest import tiny_whisper
from export.test_hf_lm import load, make_model, noise
from huggingface_hub import constants
from local_hub.clients import connect_clients, go_offline
from transformers import AutoModel

from uniaudio.build.encoders import load_encoder
from uniaudio.commands.export import export_checkpoint
from uniaudio.errors import UserError
from uniaudio.export.hf_lm import write_hf_lm
from uniaudio.export.hub_upload import check_login, push_folder
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged


@pytest.fixture
def as_me(hub, monkeypatch, tmp_path):
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_me")
    return hub


def test_an_export_is_uploaded_and_loads_by_its_name(as_me, tmp_path, fresh_model_code, capsys):
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    export_checkpoint(str(tmp_path / "whisper"), tmp_path / "out", "hf", "me/encoder")
    assert f"{as_me.endpoint}/me/encoder/commit/" in capsys.readouterr().out.replace("\n", "")
    stored = tmp_path / "hub" / "models" / "me" / "encoder"
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path.name for path in stored.rglob("*") if path.is_file()} >= files
    assert "models/me/encoder" in as_me.private  # a new repository is private
    clip = Ragged.from_rows([torch.linspace(-1, 1, 16_000)])
    with torch.no_grad():
        assert torch.equal(
            load_encoder("me/encoder").eval()(clip).frames.values,
            load_encoder(str(tmp_path / "whisper")).eval()(clip).frames.values,
        )
    model = AutoModel.from_pretrained("me/encoder", trust_remote_code=True)
    assert json.loads((stored / "config.json").read_text())["model_type"] == model.config.model_type


def test_a_whole_model_answers_by_its_name_and_is_uploaded_again(
    as_me, tmp_path, chat_tokenizer, fresh_model_code
):
    model, format = make_model(chat_tokenizer, WhisperAudioEncoder(tiny_whisper()))
    write_hf_lm(model, format, tmp_path / "lm", {})
    push_folder(tmp_path / "lm", "me/lm")
    processor, first = load("me/lm")
    ids = first.generate(**processor(text=["<|audio|>low?"], audio=noise(9_000)), max_new_tokens=6)
    first.push_to_hub("me/again")
    processor.push_to_hub("me/again")
    processor, again = load("me/again")
    inputs = processor(text=["<|audio|>low?"], audio=noise(9_000))
    assert torch.equal(again.generate(**inputs, max_new_tokens=6), ids)
    settings = [one.generation_config for one in (first, again)]
    assert settings[0].eos_token_id == settings[1].eos_token_id == format.end_of_turn


def test_names_and_logins_are_checked_first(hub):
    for name in ("encoder", "a/b/c", "me/", "me/a b"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            check_login(name)
    assert not hub.requests
    with pytest.raises(UserError, match="you are not logged in"):
        check_login("me/encoder")


def test_a_hub_that_does_not_answer_is_no_missing_login(as_me, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    check_login("me/encoder")
    as_me.faults.add("whoami", 503, times=None)
    message = (
        r"^--push-to-hub me/encoder: the Hub \(http\S+\) does not answer \(HTTP 503\); check the network"
    )
    with pytest.raises(UserError, match=message):
        check_login("me/encoder")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=rf"does not answer \(127\.0\.0\.1:{port}: Connection refused\)"):
        check_login("me/encoder")
    go_offline(monkeypatch)
    with pytest.raises(UserError, match="check the network, HF_ENDPOINT and HF_HUB_OFFLINE"):
        check_login("me/encoder")


def test_a_refusal_of_the_hub_says_that_the_folder_stays(as_me, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    as_me.faults.add("repos/create", 403, times=None, headers={"X-Error-Message": "no way through"})
    with pytest.raises(
        UserError, match=r"was written, but me/encoder could not be uploaded: the Hub refuses access"
    ):
        push_folder(tmp_path, "me/encoder")
