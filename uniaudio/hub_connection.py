"""Whether there is a way to the Hub, and what is waited for.

The Hub's client tries an address that does not answer for half a minute or, where packets are lost, for minutes,
without a word. Here the way is tried first, until the Hub has answered a process once.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from uniaudio.outputs import is_main_rank

SAID_AFTER = 1.5  # seconds without an answer, after which it is said what is waited for
CONNECT_SECONDS = 5.0  # for one connection: time for two packets that were lost
PAUSES = (1.0, 2.0)  # seconds between the tries
LONGEST_TRIAL = 10.0  # seconds, after which there is no further try
# seconds for the head of a file, which is a moment's work, until the Hub has answered once
LONGEST_HEAD = 10.0
LONGEST_SILENCE = 15.0  # seconds without any answer, after which no further request is sent
FORGOTTEN_AFTER = 60.0  # seconds, after which a Hub that was away is tried again
PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

ANSWERED: set[str] = set()  # endpoints that have answered this process
# when (monotonic) the first and the last of the requests were sent that are without an answer, by endpoint
WAITING: dict[str, tuple[float, float]] = {}
AWAY: dict[str, tuple[float, str]] = {}  # until when (monotonic) endpoints are not tried again, and why
LOCK = threading.Lock()


class RequestCounter:
    """The number of requests that went to the Hub, from all threads of this process."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    def add(self) -> None:
        with self.lock:
            self.count += 1


REQUESTS = RequestCounter()


class HubAwayError(OfflineModeIsEnabled):
    """No connection to the Hub comes about. Its client then takes what is in the cache, as with HF_HUB_OFFLINE."""


@contextmanager
def announce_wait(name: str) -> Iterator[None]:
    """Let requests of the Hub's client fail soon where there is no way to the Hub; say what takes longer than a moment.

    Args:
        name: of the repository that the requests are about.
    """
    if constants.is_offline_mode():
        yield
        return
    watch_client()
    is_over = threading.Event()
    threading.Thread(target=print_wait, args=(name, REQUESTS.count, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def print_wait(name: str, before: int, is_over: threading.Event) -> None:
    """Say on stderr what is waited for, as soon as it takes long and the Hub was asked: a folder and what is in the
    cache take their time, too.

    Args:
        before: requests that were sent before.
    """
    while not is_over.wait(SAID_AFTER):
        if REQUESTS.count > before:
            if is_main_rank():
                print(f"waiting for the Hub ({constants.ENDPOINT}): {name} ...", file=sys.stderr, flush=True)
            return


def watch_client() -> None:
    """Let the Hub's client tell of its requests and answers here."""
    client = get_session()
    hooks = client.event_hooks
    if refuse_unreachable_hub not in hooks["request"]:
        client.event_hooks = {
            "request": [*hooks["request"], refuse_unreachable_hub],
            "response": [*hooks["response"], note_answer],
        }


def note_answer(response: Any) -> None:
    """Remember that the Hub has answered, whatever it said."""
    if str(response.request.url).startswith(constants.ENDPOINT):
        ANSWERED.add(constants.ENDPOINT)


def refuse_unreachable_hub(request: Any) -> None:
    """Refuse a request for the Hub while there is no way to it; others pass.

    Raises:
        HubAwayError: in place of the client's many tries.
    """
    endpoint = constants.ENDPOINT
    if not str(request.url).startswith(endpoint):
        return
    REQUESTS.add()
    if endpoint in ANSWERED:
        return
    with LOCK:
        require_connection(endpoint)
        now = time.monotonic()
        begin, last = WAITING.get(endpoint, (now, now))
        if now - last > FORGOTTEN_AFTER:  # nothing was waited for meanwhile, as after Ctrl-C in a notebook
            begin = now
        WAITING[endpoint] = begin, now
        if (silence := now - begin) > LONGEST_SILENCE:
            del WAITING[endpoint]
            refuse_for_now(endpoint, f"no answer within {silence:.0f} s")
    if request.method == "HEAD":
        limits = request.extensions.get("timeout", {})
        stated = {kind: LONGEST_HEAD if limit is None else limit for kind, limit in limits.items()}
        request.extensions["timeout"] = {kind: min(limit, LONGEST_HEAD) for kind, limit in stated.items()}


def require_connection(endpoint: str) -> None:
    """Try whether there is a way to an endpoint.

    Raises:
        HubAwayError: when there is none, and at once for a minute from then on.
    """
    until, reason = AWAY.get(endpoint, (0.0, ""))
    if time.monotonic() < until:
        raise HubAwayError(reason)
    if reason := try_connection(endpoint):
        refuse_for_now(endpoint, reason)


def refuse_for_now(endpoint: str, reason: str) -> None:
    """Take an endpoint for away.

    Raises:
        HubAwayError: with the reason.
    """
    AWAY[endpoint] = time.monotonic() + FORGOTTEN_AFTER, reason
    raise HubAwayError(reason)


def try_connection(endpoint: str) -> str:
    """Connect to the host of an endpoint, or to the proxy that leads to it, and hang up.

    Returns:
        Why no connection came about after some tries; empty where one did.
    """
    address = find_address(endpoint)
    if address is None:
        return ""
    begin = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            return ""
        except OSError as problem:
            reason = problem.strerror or str(problem) or type(problem).__name__
        if pause is None or time.monotonic() - begin + pause > LONGEST_TRIAL:
            break
        time.sleep(pause)
    return f"{address[0]}:{address[1]}: {reason}"


def find_address(endpoint: str) -> tuple[str, int] | None:
    """Return host and port that requests for an endpoint go to; None where the client itself has to find out."""
    try:
        url = urlsplit(endpoint)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        if proxy and url.hostname and not urllib.request.proxy_bypass(url.hostname):
            url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = url.port or PORTS.get(url.scheme)
    except ValueError:
        return None
    return (url.hostname, port) if url.hostname and port else None
