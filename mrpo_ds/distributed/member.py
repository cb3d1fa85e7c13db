"""The heartbeat's side of every other rank: it hears global rank 0, and takes its verdict."""

import selectors
import socket
import time
from dataclasses import asdict, replace

from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.trust import prove
from mrpo_ds.distributed.verdict import Peer, Verdict, Word, judge_death, judge_silence, judge_trouble
from mrpo_ds.distributed.watch import KEY, VERDICT_SECONDS, Limits
from mrpo_ds.distributed.wire import Line
from mrpo_ds.distributed.worlds import Rendezvous
from mrpo_ds.errors import ConfigError


class Member:
    """The watch of a rank over global rank 0."""

    def __init__(
        self, topology: Topology, rendezvous: Rendezvous, limits: Limits, selector: selectors.BaseSelector
    ) -> None:
        launch = rendezvous.launch
        # Global rank 0 speaks for all. When it is gone nobody can ask who else speaks: one rank of each host does.
        self._speaks_alone = launch.local_rank == 0 or launch.rank == 1
        self.speaks = self._speaks_alone
        self._topology = topology
        self._rank = launch.rank
        self._silence = limits.silence
        self._selector = selector
        self._main = Peer(None, time.monotonic())
        self._troubled_since = 0.0
        self._verdict: Verdict | None = None
        self._line: Line | None = _connect(rendezvous)
        selector.register(self._line.socket, selectors.EVENT_READ)

    def rename(self, topology: Topology) -> None:
        """See Watch."""
        self._topology = topology

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
        """See Watch."""
        if self._line is None:
            return
        words = self._line.read()
        for word in words or []:
            if "verdict" in word:
                self._verdict = Verdict(**word["verdict"])
                self.speaks = False
            else:
                self._main = Peer(Word(**word), now)
        if words is None:
            self._selector.unregister(self._line.socket)
            self._line = None
            last = self._main.word or Word("unknown")
            if last.status != "done" and self._verdict is None:
                self._verdict = judge_death(self._topology, 0, last)

    def say(self, word: Word, now: float, due: bool) -> None:
        """See Watch."""
        if word.status not in ("running", "done"):
            self._troubled_since = self._troubled_since or now
        if self._line is not None:
            self._line.send(asdict(word))

    def verdict(self, word: Word, now: float) -> Verdict | None:
        """See Watch."""
        if self._verdict is not None:
            return self._verdict
        if self._line is not None and now - self._main.heard > self._silence:
            return judge_silence(self._topology, 0, self._main, now)
        busy = now - self._troubled_since > VERDICT_SECONDS and not (self._main.word and self._main.word.order)
        if self._troubled_since and (self._line is None or busy):  # global rank 0 is done, or too busy to judge
            self.speaks = True
            peers = {0: self._main, self._rank: Peer(word, now)}
            return judge_trouble(self._topology, peers, [(self._rank, word)], now)
        return None

    def main(self) -> Peer:
        """See Watch."""
        return self._main

    def wanted(self) -> tuple[str, dict[str, int]]:
        """See Watch."""
        word = self._main.word
        return (word.stacks, word.help.get(str(self._rank), {})) if word else ("", {})

    def forgive(self, seconds: float) -> None:
        """See Watch."""
        self._main = replace(self._main, heard=self._main.heard + seconds)

    def announce(self, verdict: Verdict) -> None:
        """Nobody listens to a member's verdict."""

    def close(self) -> None:
        """See Watch."""
        if self._line is not None:
            self._line.close()


def _connect(rendezvous: Rendezvous) -> Line:
    launch = rendezvous.launch
    try:
        address, port = rendezvous.store.get(KEY).decode().split()
        line = Line(socket.create_connection((address, int(port)), rendezvous.timeout_seconds))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"rank {launch.rank} cannot reach the heartbeat of global rank 0 ({str(error).splitlines()[0]}). "
            "All hosts must reach each other on every port above 1024."
        ) from error
    proof = prove(rendezvous.token, "heartbeat", rendezvous.nonce, launch.rank)
    line.send({"rank": launch.rank, "proof": proof})  # a new connection takes that much at once
    return line
