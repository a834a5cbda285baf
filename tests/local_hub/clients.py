"""Let the client libraries of this process speak to a local Hub, and to nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants, hf_api

from .server import LocalHub

PLAIN_CONNECT = socket.socket.connect


def refuse_network(patch: pytest.MonkeyPatch) -> None:
    """Let every connection fail that does not stay on this machine, and every look-up of a foreign name."""

    def connect(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test wants to connect to {address}")
        PLAIN_CONNECT(self, address)  # type: ignore[arg-type]

    plain_look_up = socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> object:
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise socket.gaierror(f"a test wants to know where {host} is")
        return plain_look_up(host, *args, **options)  # type: ignore[arg-type]

    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket, "getaddrinfo", look_up)


def connect_clients(patch: pytest.MonkeyPatch, hub: LocalHub, home: Path, token: str | None = None) -> None:
    """Do in this process what HF_ENDPOINT, HF_HOME and HF_TOKEN do in a new one.

    Args:
        home: the folder of all caches.
    """
    endpoint = hub.endpoint
    patch.setenv("HF_ENDPOINT", endpoint)
    patch.setenv("HF_HOME", str(home))
    patch.setenv("HF_TOKEN", token or "")
    # large files are uploaded as LFS has it, for want of such a storage
    patch.setenv("HF_HUB_DISABLE_XET", "1")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(hf_api.api, "endpoint", endpoint)
    patch.setattr("transformers.utils.hub._hf_api", None)  # made once, with the endpoint of that moment
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    patch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    url = endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    patch.setattr(datasets.config, "HUB_DATASETS_URL", url)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    refuse_network(patch)


def go_offline(patch: pytest.MonkeyPatch) -> None:
    """Do in this process what HF_HUB_OFFLINE=1 does in a new one."""
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
