"""The Hub of the tests, through the real client: what it says of repositories, uploads, pages, its command line."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from local_hub.clients import connect_clients

NAME = "me/tones"


@pytest.fixture
def repository(hub, tmp_path):
    folder = tmp_path / "hub" / "models" / NAME
    (folder / "more").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tones\n")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "more" / "words.txt").write_text("one")
    return folder


def test_a_repository_is_described_listed_and_fetched(hub, repository):
    hub.page = 2  # entries of a listing in one answer
    api = HfApi()
    info = api.model_info(NAME, files_metadata=True)
    assert (info.id, info.card_data["license"], info.private) == (NAME, "mit", False)
    assert {file.rfilename: file.lfs is not None for file in info.siblings} == {
        "README.md": False,
        "model.safetensors": True,
        "more/words.txt": False,
    }
    tree = list(api.list_repo_tree(NAME, recursive=True))
    assert [entry.path for entry in tree] == ["README.md", "model.safetensors", "more", "more/words.txt"]
    assert len(hub.list_requests("tree")) == 2
    assert [entry.path for entry in api.get_paths_info(NAME, ["more", "nothing"])] == ["more"]
    folder = Path(snapshot_download(NAME))
    assert folder.name == info.sha
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 100
    assert [model.id for model in api.list_models()] == [NAME]


def test_refusals_are_those_of_the_client(hub, repository, monkeypatch, tmp_path):
    for name, revision, file, error in (
        ("me/nothing", None, "a", RepositoryNotFoundError),
        (NAME, "v1", "a", RevisionNotFoundError),
        (NAME, None, "a", EntryNotFoundError),
    ):
        with pytest.raises(error):
            hf_hub_download(name, file, revision=revision)
    hub.gated[f"models/{NAME}"] = {"me"}
    with pytest.raises(GatedRepoError):
        hf_hub_download(NAME, "README.md")
    hub.private.add(f"models/{NAME}")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(NAME)
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_me")
    assert HfApi().whoami()["name"] == "me"
    assert hf_hub_download(NAME, "README.md")


def test_a_commit_is_a_function_of_the_files_and_a_branch_keeps_one(hub, repository, monkeypatch, tmp_path):
    connect_clients(monkeypatch, hub, tmp_path / "hf", token="hf_me")
    api = HfApi()
    first = api.model_info(NAME).sha
    api.create_branch(NAME, branch="v1")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="more/words.txt", repo_id=NAME)
    second = api.model_info(NAME).sha
    assert first != second
    assert api.model_info(NAME, revision="v1").sha == first
    assert Path(hf_hub_download(NAME, "more/words.txt", revision=first)).read_text() == "one"
    assert Path(hf_hub_download(NAME, "more/words.txt")).read_text() == "two"
    api.delete_file("more/words.txt", NAME)
    assert (repository / "README.md").is_file()
    assert not (repository / "more" / "words.txt").exists()


@pytest.mark.slow
def test_anybody_can_start_it(tmp_path):
    (tmp_path / "models" / "me" / "tones").mkdir(parents=True)
    (tmp_path / "models" / "me" / "tones" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "tests.local_hub", str(tmp_path), "--token", "hf_a=anna"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, env=os.environ, stdout=subprocess.PIPE, text=True) as server:
        try:
            endpoint = server.stdout.readline().removeprefix("export HF_ENDPOINT=").split()[0]
            with urllib.request.urlopen(
                f"{endpoint}/me/tones/resolve/main/config.json", timeout=30
            ) as answer:
                assert answer.read() == b"{}"
            assert server.stdout.readline() == "hub GET /me/tones/resolve/main/config.json 200 2\n"
        finally:
            server.terminate()
