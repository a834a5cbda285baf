"""The page over HTTP until the process is stopped."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
import uvicorn
from fastapi import FastAPI

from uniaudio.serve.guard import Guard
from uniaudio.serve.limits import Limits
from uniaudio.serve.page import THEME, WebPage

LAST_SECONDS = (
    1  # that open connections get when the server stops; those of an open page never end by themselves
)


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
