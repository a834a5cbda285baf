"""What a server does wrong when a test says so, and what it was asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to requests whose ``METHOD /path`` holds a pattern, instead of or during the right answer.

    Args:
        status: of the answer; None: the right answer, cut or late. times: how often; None: for ever.
        headers: of the answer. cut_after: bytes of the body after which the connection is closed. delay: seconds before
            the answer.
    """

    pattern: str
    status: int | None = None
    times: int | None = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class LoggedRequest:
    """A request that was answered.

    Args:
        host: ``hub`` or ``cdn``. sent: bytes of the body. user: whose token came with it; empty: none.
    """

    host: str
    method: str
    path: str
    status: int
    sent: int
    user: str = ""

    def __str__(self) -> str:
        return f"{self.host} {self.method} {self.path} {self.status} {self.sent}"


class Faults:
    """The faults that are to come, each used up after its number of times."""

    def __init__(self) -> None:
        self.coming: list[Fault] = []
        self.lock = threading.Lock()

    def add(self, pattern: str, status: int | None = None, times: int | None = 1, **how: object) -> Fault:
        """Add a fault, see ``Fault``."""
        fault = Fault(pattern, status, times, **how)  # type: ignore[arg-type]
        with self.lock:
            self.coming.append(fault)
        return fault

    def take(self, request: str) -> Fault | None:
        """Return the fault that a request meets, if any, and count it."""
        with self.lock:
            for fault in self.coming:
                if fault.times != 0 and re.search(fault.pattern, request):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        with self.lock:
            self.coming.clear()
