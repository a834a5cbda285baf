"""The file of a lock, and the process that it names as its holder.

The file is complete as soon as it has its name, by a hard link that fails where the name is taken (or by exclusive
creation where a filesystem has no links), which also holds on NFS.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK = "run.lock"
UNLINKED = f".{LOCK}-"  # a record before it has the lock's name


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Args:
        token: of this lock alone. machine: where the process id means something: one boot and one space of ids.
        started: when the process started, in ticks of that boot, for ids are used again; None: not known.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: int | None
    since: str

    @classmethod
    def describe_this_process(cls) -> Holder:
        """Describe the calling process, with a new token."""
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(
            uuid.uuid4().hex, socket.gethostname(), identify_machine(), pid, read_process_start(pid), since
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; nothing is known of other machines."""
        if self.machine != identify_machine():
            return False
        if not Path("/proc/self/stat").exists():
            return not is_running(self.pid)
        now = read_process_start(self.pid)
        return now is None or (self.started is not None and now != self.started)


def identify_machine() -> str:
    """Return the boot of this machine and its space of process ids; containers on one machine differ in the second."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def read_process_start(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None for one that is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(pid: int) -> bool:
    """Return whether a process exists, by a signal that does nothing."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_holder(path: Path) -> Holder | None:
    """Return who holds a lock; None where there is none. A file that says nothing is held by nobody known."""
    try:
        text, changed = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        text, changed = "", 0.0
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed))
        return Holder("unreadable", "an unknown machine", "", 0, None, since)


def measure_age(path: Path) -> float:
    """Return the seconds since a file was changed, by the clock of the disk it is on: others may be set wrong."""
    probe = path.with_name(f"{UNLINKED}{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def create(path: Path, holder: Holder) -> bool:
    """Let a lock come into being whole; return False when there is one."""
    temporary = path.with_name(f"{UNLINKED}{holder.token}")
    try:
        write_flushed(temporary, holder)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # over NFS the answer to a link that was made can be lost, and the link is tried again
            return (now := read_holder(path)) is not None and now.token == holder.token
        except OSError:  # no hard links here
            return create_exclusively(path, holder)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def create_exclusively(path: Path, holder: Holder) -> bool:
    """Create a file that must not exist; for an instant it is empty, and such a lock is waited for."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    try:
        write_flushed(path, holder)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def write_flushed(path: Path, holder: Holder) -> None:
    """Write a holder to a file, and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(holder)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def describe_holder(run_dir: Path, holder: Holder) -> str:
    """Return the sentence that refuses a second run."""
    return (
        f"{run_dir} is in use by another run, {holder}; wait for it, stop it, or set another "
        "output_dir (one run per folder)"
    )
