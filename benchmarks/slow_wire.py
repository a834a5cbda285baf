"""Hand frames from one network interface to another with a bandwidth and a delay, where the kernel has no ``netem``.

``slow_wire.py PORT PORT MBIT DELAY_MS``: both directions alike; every frame waits for those before it to be sent,
then for the delay. Prints ``ready`` when it begins. Needs root, and nothing else that forwards frames between the two.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

ALL_PROTOCOLS = 0x0003
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
LARGEST_FRAME = 1 << 17  # bytes; the kernel hands over several packets of a stream in one frame
QUEUE_BYTES = 4 << 20  # that wait for a direction; more are dropped, as a switch does
VNET_HEADER = 10  # bytes before a frame that say how it is to be cut


def open_port(name: str) -> socket.socket:
    """Open an interface for whole frames, those included that the network card would cut."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.bind((name, 0))
    port.setblocking(False)
    return port


class Direction:
    """Frames on their way from one port to the other.

    Args:
        bytes_per_second: of the wire. delay: seconds from the end of sending to the arrival.
    """

    def __init__(self, sink: socket.socket, bytes_per_second: float, delay: float) -> None:
        self.sink, self.speed, self.delay = sink, bytes_per_second, delay
        self.frames: deque[tuple[float, bytes]] = deque()
        self.waiting, self.free_at = 0, 0.0

    def take(self, frame: bytes) -> None:
        if self.waiting + len(frame) > QUEUE_BYTES:
            return
        self.free_at = max(self.free_at, time.monotonic()) + (len(frame) - VNET_HEADER) / self.speed
        self.frames.append((self.free_at + self.delay, frame))
        self.waiting += len(frame)

    def deliver(self) -> None:
        """Send on what has arrived by now."""
        now = time.monotonic()
        while self.frames and self.frames[0][0] <= now:
            frame = self.frames.popleft()[1]
            self.waiting -= len(frame)
            try:
                self.sink.send(frame)
            except OSError:  # lost on the wire: the sender will repeat it
                continue


def relay(names: tuple[str, str], mbit: float, delay_ms: float) -> None:
    """Hand frames on in both directions until the process is killed."""
    ports = [open_port(name) for name in names]
    directions = {
        ports[0]: Direction(ports[1], mbit * 1e6 / 8, delay_ms / 1e3),
        ports[1]: Direction(ports[0], mbit * 1e6 / 8, delay_ms / 1e3),
    }
    print("ready", flush=True)
    while True:
        due = [direction.frames[0][0] for direction in directions.values() if direction.frames]
        patience = max(min(due) - time.monotonic(), 0) if due else None
        for port in select.select(ports, [], [], patience)[0]:
            try:
                while True:
                    directions[port].take(port.recv(LARGEST_FRAME))
            except BlockingIOError:
                continue
        for direction in directions.values():
            direction.deliver()


if __name__ == "__main__":
    relay((sys.argv[1], sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
