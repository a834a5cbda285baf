"""Reading over a network that fails now and then: again from the last good place, after a growing pause."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from uniaudio.data.sources.base import BrokenShardError, Place, Row, ShardedSource
from uniaudio.data.sources.http import UnavailableError, compute_pause
from uniaudio.errors import RowError, UserError, escape_text, read_first_line

MAX_OUTAGE = 600.0  # seconds, where a run's `data.max_outage` does not say
SAID_AFTER = 8.0  # seconds: shorter outages are nothing that a person needs to know
# seconds of pauses for a clip at a URL: of a host that answered before, that was not met before, that was given up
PATIENCE = {True: 200.0, None: 7.0, False: 0.0}

Result = TypeVar("Result")
ANSWERED: dict[str, bool] = {}  # whether the last clip of a host could be had, by host, in this process


def print_to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


@dataclass
class OutageLog:
    """Says on the console when a dataset cannot be reached and when it can again, once for all readers of a process."""

    say: Callable[[str], None] = print_to_stderr
    readers: dict[str, int] = field(default_factory=dict)
    in_last_pause: set[str] = field(default_factory=set)  # datasets of which ``note_last_try`` has spoken
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, reason: str, max_outage: float) -> None:
        """Count a reader that waits."""
        with self.lock:
            self.readers[name] = self.readers.get(name, 0) + 1
            if self.readers[name] == 1:
                self.say(
                    f"dataset {name}: cannot be read at the moment ({reason}); retrying for up to "
                    f"{max_outage:g} s (data.max_outage)"
                )

    def note_last_try(self, name: str, requested: float, left: float, max_outage: float) -> None:
        """Say, once in an outage, that a server asks for a longer pause than the limit leaves.

        Args:
            requested, left: seconds that the server asks to wait, and those after which the last try comes.
        """
        with self.lock:
            if name not in self.in_last_pause:
                self.in_last_pause.add(name)
                self.say(
                    f"dataset {name}: the server asks to wait {requested:.0f} s, longer than data.max_outage "
                    f"({max_outage:g} s) allows; the last try is in {left:g} s"
                )

    def end(self, name: str, over: bool) -> None:
        """Count a reader that waits no longer."""
        with self.lock:
            self.readers[name] -= 1
            if not self.readers[name]:
                self.in_last_pause.discard(name)
                if over:
                    self.say(f"dataset {name}: can be read again")


OUTAGES = OutageLog()


def read_patiently(
    source: ShardedSource,
    shard: int,
    place: Place,
    name: str,
    max_outage: float = MAX_OUTAGE,
    sleep: Callable[[float], None] = time.sleep,
    waited: Callable[[float], None] = lambda seconds: None,
    log: OutageLog = OUTAGES,
) -> Iterator[tuple[Row | RowError | None, Place]]:
    """Yield what ``source.read`` yields; open the shard again where an ``OSError`` ended it.

    The pauses are those of ``compute_pause``; a row that arrives starts the count anew. ``BrokenShardError`` passes
    through.

    Args:
        name: of the dataset. max_outage: seconds of pauses without any row, before the run stops.
        waited: is told the length of every pause before it, so that nobody takes it for a reader that hangs.

    Raises:
        UserError: naming dataset, shard and row, after ``max_outage`` seconds.
    """
    tries, paused, said = 0, 0.0, False
    try:
        while True:
            try:
                for row, behind in source.read(shard, place):
                    if said:
                        log.end(name, over=True)
                    place, tries, paused, said = behind, 0, 0.0, False
                    yield row, behind
                return
            except OSError as problem:
                reason = escape_text(read_first_line(problem))
                if paused >= max_outage:
                    file = source.shards[shard]
                    reason = reason.removeprefix(f"{escape_text(file)}: ")
                    raise UserError(
                        f"dataset {name}: {file} cannot be read from row {place.row} on, tried {tries + 1} times in "
                        f"{max_outage:g} s ({reason}); raise data.max_outage to wait longer"
                    ) from problem
                left = max_outage - paused
                pause = min(compute_pause(tries, problem), left)
                tries, paused = tries + 1, paused + pause
                requested = problem.after if isinstance(problem, UnavailableError) else None
                is_cut_short = requested is not None and requested > left
                if not said and (paused > SAID_AFTER or is_cut_short):
                    said = True
                    log.begin(name, reason, max_outage)
                if requested is not None and is_cut_short:
                    log.note_last_try(name, requested, left, max_outage)
                waited(pause)
                sleep(pause)
    finally:
        if said:
            log.end(name, over=False)


def call_patiently(
    call: Callable[[], Result], url: str, sleep: Callable[[float], None] | None = None
) -> Result:
    """Return what a call returns, tried again after growing pauses where that may help.

    A host that answered before is waited for; one that never did may not exist any more, and is soon given up.

    Raises:
        RowError: "missing file", "unreachable file".
    """
    host, paused = urlsplit(url).netloc, 0.0
    for number in itertools.count():
        try:
            result = call()
        except BrokenShardError as problem:
            raise RowError("missing file", str(problem)) from problem
        except OSError as problem:
            pause = compute_pause(number, problem)
            if paused + pause > PATIENCE[ANSWERED.get(host)]:
                ANSWERED[host] = False
                cause = read_first_line(problem).removeprefix(f"{url}: ")
                tries = f"tried {number + 1} times in {paused:g} s"
                raise RowError("unreachable file", f"{url}: {tries} ({cause})") from problem
            (sleep or time.sleep)(pause)
            paused += pause
        else:
            ANSWERED[host] = True
            return result
    raise AssertionError
