"""A watch on the loop: when no step comes to an end for long, every process tells where it stands."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from pathlib import Path

from uniaudio.distributed import rank


class HangWatch:
    """Prints the stacks of all threads of this process after so long without a step, and again after as long.

    The stacks also go to ``stacks-rank0.txt`` in the run folder. Every rank watches itself: when one hangs, the others
    wait for it, and their stacks together say who waits for whom.
    """

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self.run_dir, self.seconds = run_dir, seconds
        self.beaten = time.monotonic()
        self.over = threading.Event()

    def beat(self) -> None:
        """Note that a step came to an end."""
        self.beaten = time.monotonic()

    def __enter__(self) -> HangWatch:
        threading.Thread(target=self.watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()

    def watch(self) -> None:
        while not self.over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self.beaten > self.seconds:
                self.tell()
                self.beat()

    def tell(self) -> None:
        """Print the stacks now."""
        print(
            f"uniaudio: process {rank()}: no step came to an end in {self.seconds:g} s "
            f"(train.hang_seconds); its stacks:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=2, all_threads=True)
        with contextlib.suppress(OSError):  # a full disk must not end the watch
            self.write()

    def write(self) -> None:
        """Add the stacks to this process's file in the run folder."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.run_dir / f"stacks-rank{rank()}.txt").open("a", encoding="utf-8") as stream:
            stream.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
            stream.flush()
            faulthandler.dump_traceback(file=stream, all_threads=True)
