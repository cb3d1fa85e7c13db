"""Global rank 0's side of a hang report: it asks everybody for their stacks, and names who does not answer."""

import time
from collections.abc import Mapping

from mrpo_ds.distributed.stacks import Stacks
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.verdict import Peer, Word, describe, where_of

HELP_SECONDS = 1.5
"""After which the neighbours of those who have not answered signal them: their threads may not be able to run."""
ANSWER_SECONDS = 5.0
"""After which those who have not answered are named."""


class HangReport:
    """One report after the other; whoever asks for one while it is being made gets the same."""

    def __init__(self, stacks: Stacks) -> None:
        self.wanted = ""
        """The newest report: a time."""
        self.help: dict[str, dict[str, int]] = {}
        """As in Word."""
        self._stacks = stacks
        self._asks: dict[int, int] = {}
        self._answered: set[int] = set()
        self._begun: float | None = None

    def hear(self, rank: int, word: Word, now: float) -> None:
        """A rank has said a word."""
        # Who asks again after it has answered waits for the next report; a word is repeated at every beat.
        if word.asks > self._asks.get(rank, 0) and (self._begun is None or rank not in self._answered):
            self._asks[rank] = word.asks
            if self._begun is None:
                self._begun, self._answered, self.help = now, set(), {}
                self.wanted = _time_after(self.wanted)
        if self.wanted and word.stacks == self.wanted:
            self._answered.update((rank, *word.helped))

    def turn(self, topology: Topology, peers: Mapping[int, Peer], now: float) -> str:
        """What to say when a report is there, "" otherwise. topology: as of now; peers: who should answer."""
        if self._begun is None:
            return ""
        late = [rank for rank in peers if rank not in self._answered]
        seconds = now - self._begun
        if late and seconds < ANSWER_SECONDS:
            if seconds > HELP_SECONDS and not self.help:
                self.help = _helpers(late, peers)
            return ""
        self._begun = None
        where = self._stacks.path(self.wanted, "N")
        text = f"stacks of {len(peers) - len(late)} of {len(peers)} ranks are in {where}"
        if not late:
            return text
        names = "; ".join(f"{describe(topology, rank, peers[rank].word)} {where_of(peers[rank])}" for rank in late)
        return f"{text}; no answer within {seconds:.0f} s from {names}"


def _helpers(late: list[int], peers: Mapping[int, Peer]) -> dict[str, dict[str, int]]:
    """For each of the late, the first rank of its host that has answered."""
    found: dict[str, dict[str, int]] = {}
    for rank in late:
        word = peers[rank].word
        for other, peer in peers.items() if word else ():
            if word and peer.word and other not in late and peer.word.host == word.host:
                found.setdefault(str(other), {})[str(rank)] = word.pid
                break
    return found


def _time_after(last: str) -> str:
    """Now, as 20260131-142501; two reports of one second have different names."""
    now = time.strftime("%Y%m%d-%H%M%S")
    return now if now > last else f"{last}x"
