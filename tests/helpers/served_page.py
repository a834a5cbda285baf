"""The page of ``uniaudio serve`` over real HTTP, with a stand-in for the model."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from uniaudio.serve.answering import Reply
from uniaudio.serve.limits import Limits
from uniaudio.serve.spectrogram import draw_spectrogram
from uniaudio.serve.tasks import TrainedTask

NAME = "runs/<script>alert(1)</script>"
TASKS = [
    TrainedTask("tone", "sound", ("<audio>Which tone?", "Name the tone.<audio>"), ("low", "hi<b>gh")),
    TrainedTask("caption", "sound", ("<audio>What is heard?",), ()),
]


@contextmanager
def served(answer: Callable, limits: Limits) -> Iterator[str]:
    """Serve in a thread on a free port; yields the address."""
    from uniaudio.serve.page import build_page
    from uniaudio.serve.server import build_server

    server = build_server(
        build_page(answer, NAME, "encoder whisper & co", TASKS, limits), limits, ("127.0.0.1",)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def echo(data: bytes, question: str, task: TrainedTask | None) -> Reply:
    """Say what came in."""
    labels = dict(zip(task.labels, (0.75, 0.25), strict=False)) if task else {}
    return Reply(f"{len(data)} {question}", labels, draw_spectrogram(np.zeros(1600, np.int16)))
