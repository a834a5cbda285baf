"""Taking a lock: a free one, or over from a holder that is gone.

A lock is stale when its process is gone (known on the same machine only), or when nobody has renewed it for long. A
stale lock is taken over by whoever first creates a second file, named by the stale one's token, so of several starts
one wins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from uniaudio.errors import UserError
from uniaudio.train.lock_file import (
    UNLINKED,
    Holder,
    create,
    describe_holder,
    identify_machine,
    measure_age,
    read_holder,
    write_flushed,
)

STALE = 180.0  # seconds without a renewal, after which a process of another machine counts as gone
LOOK = 0.5  # seconds between two looks at a lock whose holder may be alive


def is_stale(path: Path, holder: Holder, say: Callable[[str], None]) -> bool:
    """Return whether a lock's holder is gone. Of another machine's, it is waited for a sign of life.

    Args:
        say: called once when that takes a while.
    """
    if holder.is_gone():
        return True
    if holder.machine == identify_machine():
        return False
    first: int | None = None
    while (now := read_holder(path)) is not None and now.token == holder.token:
        if measure_age(path) > STALE:
            return True
        changed = read_change_time(path)
        if first is None:
            first = changed
            if now.pid:
                say(f"waiting for a sign of life from {holder}, for at most {STALE:g} s")
        elif changed != first:
            return False
        time.sleep(LOOK)
    return False  # another one's by now


def read_change_time(path: Path) -> int:
    """Return when a file was changed, in nanoseconds; 0 for one that is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def take(path: Path, holder: Holder, say: Callable[[str], None] = lambda sentence: None) -> Holder | None:
    """Take a lock.

    Returns:
        The holder whose stale lock it was, if any.

    Raises:
        UserError: when somebody alive holds it.
        OSError: when the disk refuses.
    """
    while not create(path, holder):
        before = read_holder(path)
        if before is None:
            continue
        if not is_stale(path, before, say):
            now = read_holder(path)
            if now is None or now.token != before.token:
                continue
            raise UserError(describe_holder(path.parent, before))
        claim, claimant = path.with_name(f"{path.name}-{before.token}"), Holder.describe_this_process()
        take(claim, claimant, say)
        try:
            now = read_holder(path)
            if now is not None and now.token == before.token:  # only who holds the claim may replace it
                temporary = path.with_name(f"{UNLINKED}{holder.token}")
                write_flushed(temporary, holder)
                temporary.replace(path)
                return before
        finally:
            claim.unlink(missing_ok=True)
    return None
