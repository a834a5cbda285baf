"""Uploads, against a Hub that is only played."""

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from uniaudio.commands.export import check_login, push_folder
from uniaudio.errors import UserError


@pytest.fixture
def hub(monkeypatch):
    """The calls of the Hub's client, in order."""
    calls = []

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    monkeypatch.setattr(HfApi, "whoami", lambda self: calls.append(("who",)))
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **how: calls.append(("create", name, how)))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return calls


def test_a_new_repository_is_private_and_gets_the_folder(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_login("me/encoder")
    assert push_folder(tmp_path, "me/encoder") == "hub/me/encoder/commit/1"
    assert hub == [
        ("who",),
        ("create", "me/encoder", {"private": True, "exist_ok": True}),
        ("upload", "me/encoder", ["config.json"]),
    ]


def test_names_and_logins_are_checked_first(hub, monkeypatch):
    for name in ("encoder", "a/b/c", "me/", "me/a b"):
        with pytest.raises(UserError, match="OWNER/NAME"):
            check_login(name)
    assert not hub

    def nobody(self):
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(HfApi, "whoami", nobody)
    with pytest.raises(UserError, match="you are not logged in"):
        check_login("me/encoder")


def test_a_refusal_of_the_hub_says_that_the_folder_stays(hub, monkeypatch, tmp_path):
    def refuse(self, name, **how):
        raise OSError("no way through\nmore")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(
        UserError, match=r"is written, but me/encoder could not be uploaded \(no way through\)"
    ):
        push_folder(tmp_path, "me/encoder")
