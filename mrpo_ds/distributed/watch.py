"""The seam between the heartbeat's thread and what it watches."""

import selectors
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.verdict import Peer, Verdict, Word

KEY = "heartbeat"
"""In the store: where global rank 0 listens."""
GRACE_SECONDS = 1.0
"""How long global rank 0 waits, after a reported error, for the death that explains it."""
VERDICT_SECONDS = 15.0
"""How long a process in trouble waits for the verdict; launchers kill 30 s after their signal."""
FAREWELL_SECONDS = 3.0
"""How long global rank 0 stays after its verdict, for the others to read it and to leave first."""


@dataclass(frozen=True)
class Limits:
    """How long what may take, in seconds."""

    silence: float
    """Without any sign of life of a process."""
    deadlines: Mapping[str, float]
    """In one phase without progress, by kind; see verdict.DEADLINE_OF."""


class Watch(Protocol):
    """The watch of a process over others: global rank 0 over all, all over global rank 0."""

    speaks: bool
    """Whether this process prints the verdict that it just gave: one of all that give the same one."""

    def rename(self, topology: Topology) -> None:
        """From now on the ranks have these roles. The policy's ranks do not change."""

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
        """Read what a socket has."""

    def say(self, word: Word, now: float, due: bool) -> None:
        """Tell the other side, when the word has changed and when a beat is due."""

    def verdict(self, word: Word, now: float) -> Verdict | None:
        """The verdict, when it is time for one. word: this process's own."""

    def main(self) -> Peer:
        """Global rank 0 as this process knows it."""

    def wanted(self) -> tuple[str, dict[str, int]]:
        """The hang report that global rank 0 wants, "" for none; and the neighbours to help with it, as in Word."""

    def forgive(self, seconds: float) -> None:
        """This process did not run for so long (lock held, suspended): nobody's silence counts for that time."""

    def announce(self, verdict: Verdict) -> None:
        """The last act before this process ends."""

    def close(self) -> None:
        """This process is done and leaves in peace."""
