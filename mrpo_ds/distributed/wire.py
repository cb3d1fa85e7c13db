"""Words over a socket: one JSON object a line. What the heartbeat speaks.

A connection says more than a store could: when a process dies, however busy or wedged it was, its system closes
the connection, and the other end knows within milliseconds.
"""

import contextlib
import json
import socket
from typing import Any

SEND_SECONDS = 2.0
"""A peer that does not take a word of some 200 bytes for this long has not read megabytes of them: it is gone."""
LONGEST_LINE = 1 << 16
"""Bytes. Whatever sends more without a line end does not speak this."""


class Line:
    """One end of a connection. Used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._rest = b""

    def send(self, word: dict[str, Any]) -> None:
        """Send one word, or nothing when the peer is gone: reading tells that better."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(word).encode() + b"\n")

    def read(self) -> list[dict[str, Any]] | None:
        """The words that are there, when the socket is readable; None when it is closed or speaks something else."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            words = [json.loads(line) for line in lines]
        except ValueError:
            return None
        speaks = len(self._rest) < LONGEST_LINE and all(isinstance(word, dict) for word in words)
        return words if speaks else None

    def close(self) -> None:
        """Close the connection; the words that were sent still arrive."""
        self.socket.close()


def listen() -> socket.socket:
    """A server on a port that the system chooses, on every interface."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=4096)
