"""A Hub on this machine: the endpoints that ``huggingface_hub`` and ``datasets`` ask for, over plain folders."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Collection, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from .answers import Handler
from .faults import Faults, LoggedRequest
from .repositories import Repositories

PAGE = 1000  # entries of a listing in one answer


class LocalHub:
    """Two servers on the loopback interface: the Hub, and the host of large files that it sends clients to.

    Args:
        folder: with ``models/`` and ``datasets/``, see ``Repositories``.
        tokens: users by their tokens. private: repositories (``datasets/OWNER/NAME``) that only the user OWNER, or any
            user for organizations named in ``members``, may see. gated: users by the repositories that only they may
            download from. page: entries of a listing in one answer.

    Attributes:
        requests: all that were answered. faults: those to come.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, str] | None = None,
        private: Collection[str] = (),
        gated: Mapping[str, Collection[str]] | None = None,
        port: int = 0,
        page: int = PAGE,
    ) -> None:
        self.repositories = Repositories(folder)
        self.tokens, self.private = dict(tokens or {}), set(private)
        self.gated = {name: set(users) for name, users in (gated or {}).items()}
        self.page, self.faults = page, Faults()
        self.requests: list[LoggedRequest] = []
        self.uploads: dict[str, bytes] = {}
        self.on_request = lambda request: None
        self.servers = {"hub": self.make_server("hub", port), "cdn": self.make_server("cdn", 0)}

    def make_server(self, host: str, port: int) -> ThreadingHTTPServer:
        """Bind a server; each connection has its thread."""
        handler = type("BoundHandler", (Handler,), {"hub": self, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        return server

    @property
    def endpoint(self) -> str:
        """The value of ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.servers['hub'].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self.servers['cdn'].server_port}"

    def __enter__(self) -> Self:
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def log(self, request: LoggedRequest) -> None:
        self.requests.append(request)
        self.on_request(request)

    def list_requests(self, pattern: str = "", host: str = "") -> list[str]:
        """Return the answered requests that hold a pattern, as ``METHOD /path``."""
        lines = [f"{r.method} {r.path}" for r in self.requests if r.host.startswith(host)]
        return [line for line in lines if re.search(pattern, line)]

    def count_bytes(self, pattern: str = "") -> int:
        """Return the bytes of all bodies that were sent for requests that hold a pattern."""
        return sum(r.sent for r in self.requests if re.search(pattern, f"{r.method} {r.path}"))

    def is_visible(self, repository: str, user: str) -> bool:
        """Return whether a user (empty: anybody) may know of a repository."""
        return repository not in self.private or bool(user)

    def is_readable(self, repository: str, user: str) -> bool:
        """Return whether a user may download from a repository."""
        return repository not in self.gated or user in self.gated[repository]

    def store_commit(self, place: Path, lines: list[bytes]) -> None:
        """Change a folder as the lines of a commit say.

        Raises:
            KeyError: for a large file that was not uploaded before.
        """
        import base64
        import shutil

        for line in lines:
            operation = json.loads(line)
            value = operation["value"]
            target = place / value.get("path", "")
            if operation["key"] in ("file", "lfsFile"):
                content = (
                    base64.b64decode(value["content"])
                    if operation["key"] == "file"
                    else self.read_upload(value["oid"])
                )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            elif operation["key"] == "deletedFile":
                target.unlink()
            elif operation["key"] == "deletedFolder":
                shutil.rmtree(target)

    def read_upload(self, oid: str) -> bytes:
        """Return the content of a large file by its SHA-256."""
        with contextlib.suppress(KeyError):
            return self.uploads[oid]
        return self.repositories.hashes.by_sha256[oid].read_bytes()
