"""Hang detection: when no step comes to an end for long, every process writes down where its threads are."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
from pathlib import Path
from typing import TextIO

from uniaudio.distributed import rank

STDERR = 2  # the file descriptor, whatever ``sys.stderr`` is at the time
LONGEST = 100 * 365 * 86400.0  # seconds; timers refuse more than some hundred years, and infinity


class HangWatch:
    """Writes the stacks of all threads of this process after so long without a step, and again after as long.

    They go to ``stacks-rank0.txt`` in the run folder, which is there only when something was written, and to standard
    error where that file cannot be made. They are written by ``faulthandler``, without Python, so whatever hangs cannot
    hold them up. Every rank watches itself: when one hangs, the others wait for it, and their stacks together say who
    waits for whom.
    """

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self.path, self.seconds = run_dir / f"stacks-rank{rank()}.txt", min(seconds, LONGEST)
        self.file: TextIO | None = None
        self.notice = threading.Timer(self.seconds, self.print_notice)

    def __enter__(self) -> HangWatch:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
        self.rearm()
        return self

    def rearm(self) -> None:
        """Begin to wait anew, for a step came to an end."""
        faulthandler.dump_traceback_later(self.seconds, repeat=True, file=self.file or STDERR)
        self.notice.cancel()
        self.notice = threading.Timer(self.seconds, self.print_notice)
        self.notice.daemon = True
        self.notice.start()

    def print_notice(self) -> None:
        """Say on the console what is written and where."""
        where = "here" if self.file is None else f"in {self.path}"
        print(
            f"uniaudio: process {rank()}: no step finished in {self.seconds:g} s "
            f"(train.hang_seconds); its stacks are {where}",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.notice.cancel()
        if self.file is not None:
            self.file.close()
            with contextlib.suppress(OSError):
                if not self.path.stat().st_size:
                    self.path.unlink()
