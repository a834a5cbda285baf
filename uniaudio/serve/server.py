"""The web demo over HTTP until the process is stopped, and which requests it answers at all."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uniaudio.serve.limits import Limits
from uniaudio.serve.page import THEME, WebPage

# that open connections get when the server stops; those of an open page never end by themselves
LAST_SECONDS = 1
FILES = ("/assets/", "/static/", "/gradio_api/file=", "/gradio_api/heartbeat/")
CALLS = ("info", "upload", "upload_progress", "queue/join", "queue/data", "cancel")
PATHS = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    *(f"/gradio_api/{name}" for name in CALLS),
)
# browsers load nothing from elsewhere for this page, whatever its scripts ask for, and no other page may frame it
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
SLACK = 1 << 20  # bytes of a request beyond the clip


class Guard:
    """Refuses requests before the application sees them and adds ``HEADERS`` to every reply.

    Args:
        hosts: names under which the page is reached, or none to accept all: a foreign page could otherwise reach it
            through a name of its own. max_bytes: size of an upload.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.hosts = [name.lower() for name in hosts]  # as browsers send them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # starting and stopping; there are no web sockets
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self.check_request(scope["method"], scope["path"], Headers(scope=scope))
        app = PlainTextResponse(refusal[1], refusal[0]) if refusal else self.app
        await app(scope, receive, send_with_headers)

    def check_request(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Return the HTTP status and the sentence with which a request is refused, or None."""
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, page = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:  # such as half an address in brackets
            return 400, "the host name or the origin of the request cannot be read"
        if self.hosts and name not in self.hosts:
            return 400, "this page cannot be reached under this host name"
        if origin is not None and page != host:
            return 403, "requests from other pages are refused"
        if not (path in PATHS or path.startswith(FILES)) or "://" in path:
            return 404, "not found"
        if method == "POST":
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "the length of the request is missing"
            if int(length) > self.max_bytes + SLACK:
                return 413, "the file is too large"
        return None


def build_server(page: WebPage, limits: Limits, hosts: Sequence[str]) -> uvicorn.Server:
    """Return a server for a page, to be run on a socket.

    Args:
        hosts: names under which the page is reached, see ``Guard``.
    """
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=limits.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
    )
    guard = Guard(app, hosts, limits.max_bytes)
    return uvicorn.Server(
        uvicorn.Config(
            guard, log_level="critical", server_header=False, timeout_graceful_shutdown=LAST_SECONDS
        )
    )
