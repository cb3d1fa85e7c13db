"""Global rank 0's side of the heartbeat: it hears everybody, and decides when and why the run ends.

A lost reference and a signal leave the policy whole. Once its training loop looks for orders, it is asked to stop after
the step, with a checkpoint; the verdict falls when it has. What befalls a policy rank ends the run at once.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

from mrpo_ds import logs
from mrpo_ds.distributed.hang_report import HangReport
from mrpo_ds.distributed.orders import Orders
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.trust import is_proof
from mrpo_ds.distributed.verdict import (
    Peer,
    Verdict,
    Word,
    describe,
    hear,
    judge_death,
    judge_overdue,
    judge_silence,
    judge_trouble,
)
from mrpo_ds.distributed.watch import FAREWELL_SECONDS, GRACE_SECONDS, KEY, Limits
from mrpo_ds.distributed.wire import Line, listen
from mrpo_ds.distributed.worlds import Rendezvous
from mrpo_ds.errors import RUN_AGAIN

STRANGER_SECONDS = 10.0
"""How long a connection may be silent before it says which rank it is."""


class Judge:
    """The watch of global rank 0 over all."""

    def __init__(
        self,
        topology: Topology,
        rendezvous: Rendezvous,
        limits: Limits,
        orders: Orders,
        selector: selectors.BaseSelector,
        report: HangReport,
    ) -> None:
        self.speaks = True
        self._topology = topology
        self._limits = limits
        self._orders = orders
        self._selector = selector
        self._report = report
        self._lines: dict[int, Line] = {}
        self._strangers: dict[int, tuple[Line, float]] = {}
        """By descriptor: who has not said yet which rank it is, and since when."""
        now = time.monotonic()
        self._peers = {rank: Peer(None, now, now) for rank in range(topology.world_size)}
        self._troubles: dict[int, Word] = {}
        self._trouble_since = 0.0
        self._death: Verdict | None = None
        self._lost: set[int] = set()
        """Reference ranks that are gone or in trouble, while the policy saves what it has."""
        self._told: tuple[object, ...] = ()
        """The orders and wishes that the others have been told of."""
        self._rendezvous = rendezvous
        self._server = listen(rendezvous.interface.address)
        self._server.setblocking(False)
        selector.register(self._server, selectors.EVENT_READ)
        rendezvous.store.set(KEY, f"{rendezvous.interface.public} {self._server.getsockname()[1]}")

    def rename(self, topology: Topology) -> None:
        """See Watch."""
        self._topology = topology

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
        """See Watch."""
        if key.fileobj is self._server:
            with contextlib.suppress(OSError):  # gone again before it was here
                connection, _ = self._server.accept()
                self._strangers[connection.fileno()] = (Line(connection), now)
                self._selector.register(connection, selectors.EVENT_READ)
        elif key.fd in self._strangers:
            self._meet(key.fd, now)
        else:
            self._listen_to(key.data, now)

    def say(self, word: Word, now: float, due: bool) -> None:
        """See Watch."""
        self._take_word(0, word, now)
        for descriptor in [one for one, (_, since) in self._strangers.items() if now - since > STRANGER_SECONDS]:
            self._part_from(descriptor).close()
        order = self._orders.stop.reason if self._orders.stop else ""
        # The others need to know that it lives, not every step of it.
        tells = (order, self._report.wanted, self._report.help)
        if due or word.status == "done" or tells != self._told:
            self._told = tells
            ours = asdict(replace(word, order=order, stacks=self._report.wanted, help=self._report.help))
            for line in self._lines.values():
                line.send(ours)

    def verdict(self, word: Word, now: float) -> Verdict | None:
        """See Watch."""
        if said := self._report.turn(self._topology, self._there(), now):
            logs.say(said)
        end = self._end(now)
        if end is None or end.culprit is None or not self._orders.open or self._is_policy(end.culprit):
            return end
        for rank in (end.culprit, *end.overdue):
            self._lost.add(rank)
            self._troubles.pop(rank, None)
        self._death = None
        self._give(f"{end.message}. The policy saves what it has")
        return None

    def _end(self, now: float) -> Verdict | None:
        """Why the run must end now, if it must."""
        if self._death is not None:
            return self._death
        if self._troubles and now - self._trouble_since > GRACE_SECONDS:
            return judge_trouble(self._topology, self._peers, list(self._troubles.items()), now)
        there = self._there()
        for rank, peer in there.items():
            if rank != 0 and now - peer.heard > self._limits.silence:
                return judge_silence(self._topology, rank, peer, now)
        return judge_overdue(self._topology, there, self._limits.deadlines, now)

    def _there(self) -> Mapping[int, Peer]:
        """The processes that should give signs of life."""
        return {
            rank: peer
            for rank, peer in self._peers.items()
            if rank not in self._lost and not (peer.word is not None and peer.word.status == "done")
        }

    def _is_policy(self, rank: int) -> bool:
        return rank in self._topology.policy.ranks

    def _give(self, reason: str) -> None:
        if self._orders.stop is None:
            self._orders.give(reason)
            logs.say(reason)

    def main(self) -> Peer:
        """See Watch."""
        return self._peers[0]

    def wanted(self) -> tuple[str, dict[str, int]]:
        """See Watch."""
        return self._report.wanted, self._report.help.get("0", {})

    def forgive(self, seconds: float) -> None:
        """See Watch."""
        if seconds:
            self._peers = {
                rank: replace(peer, heard=peer.heard + seconds, since=peer.since + seconds)
                for rank, peer in self._peers.items()
            }

    def announce(self, verdict: Verdict) -> None:
        """See Watch."""
        for line in self._lines.values():
            line.send({"verdict": asdict(verdict)})
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self._lines and time.monotonic() < deadline:
            time.sleep(0.05)
            for key, _ in self._selector.select(0):
                if key.data in self._lines and self._lines[key.data].read() is None:
                    self._forget(key.data)

    def close(self) -> None:
        """See Watch."""
        for line in self._lines.values():
            line.close()
        self._server.close()

    def _part_from(self, descriptor: int) -> Line:
        """Take a connection from the strangers; it is still open."""
        line, _ = self._strangers.pop(descriptor)
        self._selector.unregister(line.socket)
        return line

    def _meet(self, descriptor: int, now: float) -> None:
        """The first word on a connection says which rank it is."""
        line, _ = self._strangers[descriptor]
        words = line.read()
        if words == []:
            return
        self._part_from(descriptor)
        hello = words[0] if words else {}
        rank = hello.get("rank")
        known = self._rendezvous  # whoever else finds the port is not of this run
        of_this_run = is_proof(hello.get("proof"), known.token, "heartbeat", known.nonce, rank)
        if not of_this_run or rank not in self._peers or rank in self._lines:
            line.close()
            return
        self._lines[rank] = line
        self._selector.register(line.socket, selectors.EVENT_READ, rank)
        line.send(asdict(self._peers[0].word or Word(socket.gethostname())))  # it shall know whom it lost, if it does
        for word in words[1:] if words else []:
            self._take_word(rank, Word(**word), now)

    def _listen_to(self, rank: int, now: float) -> None:
        words = self._lines[rank].read()
        for word in words or []:
            self._take_word(rank, Word(**word), now)
        if words is None:
            self._forget(rank)
            last = self._peers[rank].word or Word("unknown")
            if last.status != "done" and rank not in self._lost and self._death is None:
                self._death = judge_death(self._topology, rank, last)

    def _take_word(self, rank: int, word: Word, now: float) -> None:
        known = self._peers[rank]
        self._peers[rank] = hear(known, word, now)
        self._report.hear(rank, word, now)
        if rank in self._lost:
            return
        if word.stop and not (known.word and known.word.stop):
            who = "" if rank == 0 else f"{describe(self._topology, rank, word)} was "
            if self._orders.open:
                self._give(f"{who}{word.stop}: the run stops as soon as its work is saved")
            else:  # nothing is there to be saved
                word = replace(word, status="stopping", reason=word.stop, exit_code=RUN_AGAIN)
        if word.status not in ("running", "done") and rank not in self._troubles:
            if self._orders.stop is not None and not self._is_policy(rank):
                self._lost.add(rank)  # the policy does not need it any more
                return
            self._trouble_since = self._trouble_since or now
            self._troubles[rank] = word

    def _forget(self, rank: int) -> None:
        line = self._lines.pop(rank)
        self._selector.unregister(line.socket)
        line.close()
