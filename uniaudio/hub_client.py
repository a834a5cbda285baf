"""Calls of the Hugging Face Hub: tried again where that may help, refusals as one sentence."""

from __future__ import annotations

import email.utils
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from uniaudio.errors import LostProcessError, RowError, UserError, escape_text, read_first_line
from uniaudio.hub_connection import HubAwayError, announce_wait

Result = TypeVar("Result")


class HubUnreachableError(UserError):
    """No answer came from the Hub at all, so nothing is known of what was asked for."""


# HTTP answers that another try may change: of failing servers all but "not implemented" and "version not supported"
PASSING = {408, 425, 429, *range(500, 600)} - {501, 505}
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between the tries of one call
TRIES_WITHOUT_ANSWER = 3  # of these, where no connection comes about
LONGEST_PAUSE = 60.0  # seconds; a server that asks for more gets this much
# whose errors are those of a connection, where they are no OSErrors
TRANSPORT = {"aiohttp", "botocore", "h2", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}


def list_causes(problem: BaseException) -> list[BaseException]:
    """Return an exception and all that led to it, the last one first."""
    causes: list[BaseException] = []
    cause: BaseException | None = problem
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def find_cause(problem: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """Return the first of an exception and its causes that is of one of some kinds."""
    return next((cause for cause in list_causes(problem) if isinstance(cause, kinds)), None)


def find_status(problem: BaseException) -> tuple[int | None, Any]:
    """Return the HTTP status that led to an exception, and the answer's headers."""
    for cause in list_causes(problem):
        response = getattr(cause, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return response.status_code, response.headers  # type: ignore[union-attr]
    return None, {}


def is_offline_by_choice(problem: BaseException) -> bool:
    """Return whether no request was sent because the user wants none."""
    return find_cause(problem, OfflineModeIsEnabled) is not None and not find_cause(problem, HubAwayError)


def has_lost_connection(problem: BaseException) -> bool:
    """Return whether no proper answer came at all."""
    return not is_offline_by_choice(problem) and any(
        type(cause).__module__.partition(".")[0] in TRANSPORT
        or isinstance(cause, ConnectionError | TimeoutError)
        for cause in list_causes(problem)
    )


def can_pass(problem: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    if find_cause(problem, OfflineModeIsEnabled):
        return False
    status, _ = find_status(problem)
    return status in PASSING if status is not None else has_lost_connection(problem)


def choose_pause(problem: BaseException, pause: float) -> float:
    """Return the seconds to wait before the next try: what the server asks for, within bounds, or ``pause``."""
    _, headers = find_status(problem)
    return max(pause, min(parse_retry_after(headers.get("Retry-After")) or 0.0, LONGEST_PAUSE))


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, as a number or a date; None for anything else."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def call_hub(call: Callable[[], Result]) -> Result:
    """Return what a call of the Hub returns; what may pass is tried five times with growing pauses, a Hub that cannot
    be reached at all three times.

    Raises:
        Exception: whatever the last try raised.
    """
    for number, pause in enumerate(PAUSES, 1):
        try:
            return call()
        except Exception as problem:
            is_unreachable = find_status(problem)[0] is None and number >= TRIES_WITHOUT_ANSWER
            if not can_pass(problem) or is_unreachable:
                raise
            seconds = choose_pause(problem, pause)
            print(
                f"the Hub does not answer properly ({describe_failure(problem)}); tried again in "
                f"{seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(seconds)
    return call()


@contextmanager
def convert_hub_errors(
    what: str, name: str, revision: str | None = None, kind: str = "model", refusals_only: bool = False
) -> Iterator[None]:
    """Turn what the client libraries of the Hub raise inside into one sentence with the fix.

    Args:
        what: begins the sentence ("encoders.whisper.path: openai/whisper-small cannot be fetched").
        name: of the repository. kind: ``model`` or ``dataset``.
        refusals_only: let exceptions pass where it is not the Hub that did not give something.

    Raises:
        UserError: in place of any exception that is not ours.
    """
    try:
        with announce_wait(name):
            yield
    except (UserError, RowError, LostProcessError):
        raise
    except Exception as problem:
        reason = explain_failure(problem, name, revision, kind)
        if refusals_only and not reason:
            raise
        is_unreachable = find_status(problem)[0] is None and has_lost_connection(problem)
        error = HubUnreachableError if is_unreachable else UserError
        raise error(f"{what}: {reason or escape_text(read_first_line(problem))}") from problem


def describe_failure(problem: BaseException) -> str:
    """Return in a few words what went wrong on the way to the Hub."""
    status, _ = find_status(problem)
    if status is not None:
        return f"HTTP {status}"
    lost = [cause for cause in list_causes(problem) if type(cause).__module__.partition(".")[0] in TRANSPORT]
    lost = lost or [find_cause(problem, HubAwayError) or problem]
    return escape_text(read_first_line(lost[0]))


def explain_failure(problem: BaseException, name: str, revision: str | None, kind: str) -> str:
    """Return why the Hub did not give what it was asked for and what to do; empty where it is not the Hub's doing."""
    place = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    download = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''}"
    status, headers = find_status(problem)
    if find_cause(problem, GatedRepoError):
        return f"it is gated; accept its conditions at {place}" + ("" if get_token() else f", and {log_in}")
    if find_cause(problem, RevisionNotFoundError):
        return (
            f"the Hub has no revision '{revision}' of it; check its branches and tags, or leave "
            "`revision` out"
        )
    if status == 401 and "Invalid credentials" in headers.get("X-Error-Message", ""):
        return "the Hub does not know your token; set HF_TOKEN to a valid one, or log in again with `hf auth login`"
    if find_cause(problem, RepositoryNotFoundError) or (
        status in (401, 404) and not is_entry_missing(problem)
    ):
        hidden = "and its users may not be you" if get_token() else f"where it is private, {log_in}"
        return f"there is no such {kind} on the Hub, or it is private: check its name, {hidden}"
    if status == 404 and is_entry_missing(problem):
        cause = find_cause(problem, EntryNotFoundError)
        file = unquote(str(cause.response.url).partition("/resolve/")[2].partition("/")[2])  # type: ignore[union-attr]
        return f"it holds no {file or 'such file'}"
    if is_offline_by_choice(problem):
        return (
            f"HF_HUB_OFFLINE is set, and it is not in the cache {constants.HF_HUB_CACHE}; run "
            f"`{download}` on a machine with a network, or unset HF_HUB_OFFLINE"
        )
    if status == 403:
        return f"the Hub refuses access (403); see {place}, and {log_in} as a user with access"
    if status == 429:
        return (
            f"the Hub takes no more requests for now (429); wait a few minutes, or {log_in} for a "
            "higher limit"
        )
    if status is not None and status >= 500:
        return f"the Hub answers {status}, several times; try again later"
    if find_cause(problem, HFValidationError):
        return "there is no such folder, and names on the Hub are written OWNER/NAME"
    if has_lost_connection(problem):
        return (
            f"the Hub ({constants.ENDPOINT}) cannot be reached ({describe_failure(problem)}); check "
            f"the network and HF_ENDPOINT, or run `{download}` on a machine with a network and set "
            "HF_HUB_OFFLINE=1 here"
        )
    return ""


def is_entry_missing(problem: BaseException) -> bool:
    """Return whether the repository is there, but not the file."""
    cause = find_cause(problem, EntryNotFoundError)
    return cause is not None and not isinstance(cause, LocalEntryNotFoundError)


def is_hub_url(url: str) -> bool:
    """Return whether a URL is one of the Hub itself."""
    return url.startswith((f"{constants.ENDPOINT}/", f"{constants._HF_DEFAULT_ENDPOINT}/"))


def make_auth_headers(url: str) -> dict[str, str]:
    """Return the headers by which the Hub knows the user, for its own addresses alone."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN or not is_hub_url(url) else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
