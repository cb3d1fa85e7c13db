"""Words over a socket: one JSON object a line. What the heartbeat speaks.

A connection says more than a store could: when a process dies, however busy or wedged it was, its system closes
the connection, and the other end knows within milliseconds.
"""

import json
import socket
from typing import Any

LONGEST_LINE = 1 << 16
"""Bytes. Whatever sends more without a line end does not speak this."""


class Line:
    """One end of a connection. Used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._rest = b""
        self._unsent = b""

    def send(self, word: dict[str, Any]) -> None:
        """Send one word, without ever waiting: while a stopped peer takes nothing, further words are dropped."""
        if self._flush():
            self._unsent = json.dumps(word).encode() + b"\n"
            self._flush()

    def read(self) -> list[dict[str, Any]] | None:
        """The words that are there, when the socket is readable; None when it is closed or speaks something else."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            words = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):  # a stranger may send anything
            return None
        speaks = len(self._rest) < LONGEST_LINE and all(isinstance(word, dict) for word in words)
        return words if speaks else None

    def _flush(self) -> bool:
        """Whether nothing is left to send. A closed connection takes everything: reading tells better that it is."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :] if self._unsent else b""
        except BlockingIOError:
            return False
        except OSError:
            self._unsent = b""
        return not self._unsent

    def close(self) -> None:
        """Close the connection; the words that were sent still arrive."""
        self.socket.close()


def listen(address: str) -> socket.socket:
    """A server on one address of this host, on a port that the system chooses."""
    return socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=4096
    )
