"""Uploads of exports to a Hub of this machine, and what is loaded from there again."""

import json

import pytest
import torch
from conftest import tiny_whisper
from local_hub.clients import connect_clients
from transformers import AutoModel

from uniaudio.build.encoders import load_encoder
from uniaudio.commands.export import check_login, export_checkpoint, push_folder
from uniaudio.errors import UserError
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


def test_names_and_logins_are_checked_first(hub):
    for name in ("encoder", "a/b/c", "me/", "me/a b"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            check_login(name)
    assert not hub.requests
    with pytest.raises(UserError, match="you are not logged in"):
        check_login("me/encoder")


def test_a_refusal_of_the_hub_says_that_the_folder_stays(as_me, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    as_me.faults.add("repos/create", 403, times=None, headers={"X-Error-Message": "no way through"})
    with pytest.raises(
        UserError, match=r"is written, but me/encoder could not be uploaded: the Hub refuses access"
    ):
        push_folder(tmp_path, "me/encoder")
