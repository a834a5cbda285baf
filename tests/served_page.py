"""The page of ``uniaudio serve`` over real HTTP, with a stand-in for the model."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from uniaudio.serve.answering import Reply
from uniaudio.serve.app import Page, build_app
from uniaudio.serve.limits import Limits
from uniaudio.serve.prompts import Offer

SOUND = {"Content-Type": "application/octet-stream"}
PAGE = Page(
    "runs/<script>alert(1)</script>",
    [("encoder", "whisper & co")],
    [Offer("tone", "sound", ("<audio>Which tone?",), ("low", "hi<b>gh"))],
)


@contextmanager
def served(answer: Callable, limits: Limits | None = None, hosts=("127.0.0.1",)) -> Iterator[Callable]:
    """Serve in a thread on a free port; yields a function that asks, and knows its ``port``."""
    door = socket.create_server(("127.0.0.1", 0))
    app = build_app(answer, PAGE, limits or Limits(max_mib=0.01), hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()

    def call(method="POST", path="/ask?question=what", body=b"sound", headers=SOUND, **options):
        connection = http.client.HTTPConnection(*door.getsockname(), timeout=20)
        try:
            connection.request(method, path, body, headers, **options)
            got = connection.getresponse()
            return got.status, got.read().decode(), got.headers
        finally:
            connection.close()

    call.port = door.getsockname()[1]
    try:
        yield call
    finally:
        server.should_exit = True
        thread.join(10)
        door.close()


def echo(data, question, offer):
    """Say what came in."""
    return Reply(
        f"{len(data)} {question}",
        tuple((label, 0.5) for label in (offer.labels if offer else ())),
        1.0,
        0.1,
        b"png",
    )
