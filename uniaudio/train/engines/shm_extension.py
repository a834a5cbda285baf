"""DeepSpeed's exchange through shared memory on CPUs: compiled once a machine, without waiting for a dead process."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import time
from pathlib import Path

from torch.utils import cpp_extension

NAME = "deepspeed_shm_comm"
COMPILES_WITHIN = 120.0  # seconds; compiling takes 20 to 60
logger = logging.getLogger(__name__)


def load_shm_extension(patience: float = COMPILES_WITHIN) -> None:
    """Compile and load the extension, as DeepSpeed would when it starts the process group.

    PyTorch marks a folder in which an extension is compiled or loaded by a file ``lock``, and waits for as long as it
    exists: after a process that was killed meanwhile, for ever. Processes of this package take turns by a lock of the
    operating system, which ends with its process. What still has a ``lock`` then is another program's, or left behind.

    Args:
        patience: seconds after which a ``lock`` counts as left behind.
    """
    from deepspeed.comm.torch import build_shm_op  # seconds to import, and only some runs want it

    folder = Path(cpp_extension._get_build_directory(NAME, verbose=False))  # makes it
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        remove_left_lock(folder / "lock", patience)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was built
            build_shm_op()


def remove_left_lock(lock: Path, patience: float) -> None:
    """Wait until a lock is gone; remove it, and say so, once it is older than ``patience`` seconds."""
    has_warned = False
    with contextlib.suppress(FileNotFoundError):
        while (age := time.time() - lock.stat().st_mtime) < patience:
            if not has_warned:
                logger.warning("waiting up to %.0f s for %s", patience - age, lock)
                has_warned = True
            time.sleep(0.2)
        logger.warning("removing %s: the process that made it was stopped", lock)
        lock.unlink()
