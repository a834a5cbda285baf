"""The page and its one question as HTTP: size, kind and queue are checked here, the work is done in one thread."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from uniaudio import __version__
from uniaudio.errors import UserError
from uniaudio.serve.answering import Reply
from uniaudio.serve.limits import Limits, OutOfTimeError, too_large
from uniaudio.serve.prompts import Offer

HERE = Path(__file__).parent
# the page loads nothing from elsewhere, and nothing else may frame it or send its forms anywhere
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
KINDS = (
    "audio/",
    "video/",
    "application/octet-stream",
    "application/ogg",
)  # browsers call some sound files video

Answer = Callable[[bytes, str, Offer | None], Reply]


@dataclass(frozen=True)
class Page:
    """What the page tells about its checkpoint.

    Args:
        name: of the checkpoint. facts: (name, value) of encoder, adapter and decoder. offers: the trained questions.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    offers: Sequence[Offer]


class Refusal(Exception):
    """A question that is not asked: a status of HTTP and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Queue:
    """One question at a time on the model, in the order they came; only so many may wait.

    Args:
        answer: blocking; called in a thread, never twice at once.
    """

    def __init__(self, answer: Answer, max_waiting: int) -> None:
        self.answer, self.max_waiting = answer, max_waiting
        self.turn = asyncio.Lock()
        self.inside = 0  # the one that is answered and those that wait

    async def ask(self, data: bytes, question: str, offer: Offer | None) -> Reply:
        """Wait for the turn and answer.

        Raises:
            Refusal: when too many wait already. UserError, OutOfTimeError: from the answer.
        """
        if self.inside > self.max_waiting:
            raise Refusal(503, "too many questions are waiting; try again in a minute")
        self.inside += 1
        try:
            async with self.turn:
                return await to_thread.run_sync(self.answer, data, question, offer)
        finally:
            self.inside -= 1


def build_app(answer: Answer, page: Page, limits: Limits, hosts: Sequence[str]) -> Starlette:
    """Return the application: ``GET /``, ``GET /static/...`` and ``POST /ask?question=...&task=...``.

    The body of a question is the sound file itself. Its reply is JSON: ``answer``, ``labels`` [{label, probability}],
    ``seconds``, ``took`` and ``mel`` (a data URI), or ``error``, one sentence, with a status of 400 and above.

    Args:
        answer: from bytes, question and task to a reply. hosts: names under which the page is reached; requests that
            name another host are refused, so no foreign page can reach it through a name of its own.
    """
    queue = Queue(answer, limits.max_waiting)
    tasks = {offer.task: offer for offer in page.offers}
    html = render_page(page, limits)

    async def show(request: Request) -> Response:
        return HTMLResponse(html, headers=HEADERS)

    async def ask(request: Request) -> Response:
        check_kind(request)
        task = request.query_params.get("task", "")
        if task and task not in tasks:
            raise Refusal(400, f"there is no task '{task[:60]}' in this checkpoint; leave the task out")
        data = await receive(request, limits)
        reply = await queue.ask(data, request.query_params.get("question", ""), tasks.get(task))
        return JSONResponse(as_json(reply), headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", show),
            Route("/ask", ask, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers=dict.fromkeys(
            (Refusal, UserError, OutOfTimeError, HTTPException, Exception), told
        ),
    )


def render_page(page: Page, limits: Limits) -> str:
    """Return the HTML of the page; every name from a file is escaped."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(page=page, limits=limits, version=__version__)


def check_kind(request: Request) -> None:
    """Refuse what is not sent as a sound file.

    A form of a foreign page can post to a local address, but it cannot name one of these kinds without asking first.
    """
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith(KINDS):
        raise Refusal(415, "send the sound file itself, with the content type application/octet-stream")


async def receive(request: Request, limits: Limits) -> bytes:
    """Return the body of a request, as long as it is small and quick enough.

    Raises:
        Refusal: when it is too large, by its header or as it comes, or too slow.
    """
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limits.max_bytes:
        raise Refusal(413, too_large(limits))
    data = bytearray()
    try:
        async with asyncio.timeout(limits.timeout):
            async for part in request.stream():
                data += part
                if len(data) > limits.max_bytes:
                    raise Refusal(413, too_large(limits))
    except TimeoutError as problem:
        raise Refusal(408, f"the clip did not arrive within {limits.timeout:g} s; send it again") from problem
    except ClientDisconnect as problem:
        raise Refusal(400, "the clip did not arrive whole; send it again") from problem
    return bytes(data)


def as_json(reply: Reply) -> Mapping[str, Any]:
    """Return a reply as the page reads it."""
    return {
        "answer": reply.answer,
        "labels": [{"label": label, "probability": share} for label, share in reply.labels],
        "seconds": reply.seconds,
        "took": reply.took,
        "mel": "data:image/png;base64," + base64.b64encode(reply.mel).decode("ascii"),
    }


async def told(request: Request, problem: Exception) -> Response:
    """Say in one sentence what went wrong, never with a traceback; what is not foreseen goes to the terminal too."""
    if isinstance(problem, Refusal):
        status, sentence = problem.status, str(problem)
    elif isinstance(problem, UserError):
        status, sentence = 400, str(problem)
    elif isinstance(problem, OutOfTimeError):
        status, sentence = 504, "the model took too long; give a shorter clip or raise --timeout"
    elif isinstance(problem, HTTPException):
        status, sentence = problem.status_code, problem.detail
    else:
        status, sentence = 500, "something failed on this page's side; its terminal says what"
    return JSONResponse({"error": sentence}, status_code=status, headers=HEADERS)
