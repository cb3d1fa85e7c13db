"""Signs of life: a dead or stuck peer is named within a bounded time, and nobody hangs.

Every process keeps a connection to global rank 0 and beats over it from a thread of its own. Global rank 0 judges:
it sees a death at once by the closed connection, and silence after a time; errors that the others report wait a
moment for the death that may have caused them. The verdict is printed once, sent to all, and every thread ends its
own process (os._exit), because by then the main thread may be inside a collective that never returns. A signal
reaches the thread through a wake-up pipe for the same reason.

Holding the interpreter's lock for long (a load, a compile) delays beats but closes nothing: it is no death.
"""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import NoReturn, Protocol

import torch

from mrpo_ds.distributed.bridge import BrokenBridge
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.trust import is_proof, prove
from mrpo_ds.distributed.verdict import (
    Peer,
    Verdict,
    Word,
    judge_death,
    judge_silence,
    judge_trouble,
)
from mrpo_ds.distributed.wire import Line, listen
from mrpo_ds.distributed.worlds import Rendezvous
from mrpo_ds.errors import ConfigError, MrpoError

BEAT_SECONDS = 1.0
GRACE_SECONDS = 1.0
"""How long global rank 0 waits, after a reported error, for the death that explains it."""
VERDICT_SECONDS = 15.0
"""How long a process in trouble waits for the verdict; launchers kill 30 s after their signal."""
FAREWELL_SECONDS = 3.0
"""How long global rank 0 stays after its verdict, for the others to read it and to leave first."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
KEY = "heartbeat"


class Heartbeat:
    """This process's beats and its watch over the others. Start it as soon as the shared store is open."""

    def __init__(
        self, topology: Topology, rendezvous: Rendezvous, timeout_seconds: float, exit_code: Callable[[], int]
    ) -> None:
        """exit_code is asked when a run must end: 75 when there is a checkpoint to go on from, 1 otherwise."""
        self._topology = topology
        self._rendezvous = rendezvous
        self._timeout = timeout_seconds
        self._exit_code = exit_code
        self._word = Word(socket.gethostname())
        self._trace = ""
        self._changed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        self._watch: _Watch
        self._thread = threading.Thread(target=self._run_to_the_end, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat, and take over the stop signals. Call from the main thread.

        Raises ConfigError when global rank 0 cannot be reached.
        """
        launch = self._rendezvous.launch
        make = _Judge if launch.rank == 0 else _Member
        self._watch = make(self._topology, self._rendezvous, self._timeout, self._selector)
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up pipe carries it to our thread
        self._thread.start()

    def phase(self, name: str, step: int = 0) -> None:
        """Say what this process is doing now; messages about it quote the last word it said."""
        self._set(phase=name, step=step)

    def done(self) -> None:
        """Say that this process has finished its work: from now on its silence is no failure. Ends the thread."""
        self._set(status="done")
        # A daemon thread inside C++ code when the interpreter ends would abort the process.
        self._thread.join()
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def end_because(self, error: Exception) -> NoReturn:
        """The work of this process failed: tell global rank 0, which names the culprit, and leave."""
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, MrpoError):
            self._trace = "".join(traceback.format_exception(error))  # a defect, unless a peer turns out to have died
            text = f"{type(error).__name__}: {text}"
        # Collectives fail with a RuntimeError of some kind: it may be the echo of what happened elsewhere.
        broken = isinstance(error, BrokenBridge | RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        code = error.exit_code if isinstance(error, MrpoError) and not broken else None
        self._set(status="broken" if broken else "failed", reason=text, exit_code=code)
        self._thread.join()
        raise AssertionError("the heartbeat thread ends the process")

    def _set(self, **changes: str | int | None) -> None:
        with self._lock:
            if "status" not in changes or self._word.status == "running":  # the first trouble is the one that counts
                self._word = replace(self._word, **changes)  # type: ignore[arg-type]
            self._changed = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: the thread will wake anyway
            os.write(self._wake_writer, b"\0")

    def _run_to_the_end(self) -> None:
        try:
            self._run()
        except BaseException:  # without this thread the run could hang for ever
            traceback.print_exc()
            os._exit(1)

    def _run(self) -> None:
        beat_due = turned = time.monotonic()
        while True:
            ready = self._selector.select(max(0.0, min(beat_due - time.monotonic(), BEAT_SECONDS)))
            now = time.monotonic()
            self._watch.forgive(max(0.0, now - turned - BEAT_SECONDS))
            turned = now
            for key, _ in ready:
                if key.fd == self._wake_reader:
                    self._take_signals()
                else:
                    self._watch.hear(key, now)
            with self._lock:
                word, changed, self._changed = self._word, self._changed, False
            due = now >= beat_due
            if changed or due:
                self._watch.say(word, now, due)
            if due:
                beat_due = now + BEAT_SECONDS
            if word.status == "done":
                self._watch.close()
                return
            verdict = self._watch.verdict(word, now)
            if verdict is not None:
                self._leave(verdict)

    def _take_signals(self) -> None:
        received = [signal.Signals(number) for number in os.read(self._wake_reader, 1 << 12) if number]
        if received:
            self._set(status="stopping", reason=f"stopped by {received[0].name}")

    def _leave(self, verdict: Verdict) -> NoReturn:
        """End this process. The message goes out in one write past Python's buffers: their locks may be held."""
        if verdict.culprit == self._rendezvous.launch.rank and self._trace:
            os.write(2, self._trace.encode())
        if self._watch.speaks:
            os.write(2, f"mrpo-ds: error: {verdict.message}\n".encode())
        code = self._exit_code() if verdict.exit_code is None else verdict.exit_code
        self._watch.announce(replace(verdict, exit_code=code))
        os._exit(code)


class _Watch(Protocol):
    """The watch of a process over others: global rank 0 over all, all over global rank 0."""

    speaks: bool
    """Whether this process prints the verdict that it just gave: one of all that give the same one."""

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
        """Read what a socket has."""

    def say(self, word: Word, now: float, due: bool) -> None:
        """Tell the other side, when the word has changed and when a beat is due."""

    def verdict(self, word: Word, now: float) -> Verdict | None:
        """The verdict, when it is time for one. word: this process's own."""

    def forgive(self, seconds: float) -> None:
        """This process did not run for so long (lock held, suspended): nobody's silence counts for that time."""

    def announce(self, verdict: Verdict) -> None:
        """The last act before this process ends."""

    def close(self) -> None:
        """This process is done and leaves in peace."""


class _Judge:
    """Global rank 0's side."""

    def __init__(
        self, topology: Topology, rendezvous: Rendezvous, timeout: float, selector: selectors.BaseSelector
    ) -> None:
        self.speaks = True
        self._topology = topology
        self._timeout = timeout
        self._selector = selector
        self._lines: dict[int, Line] = {}
        self._strangers: dict[int, Line] = {}
        now = time.monotonic()
        self._peers = {rank: Peer(None, now) for rank in range(topology.world_size)}
        self._troubles: dict[int, Word] = {}
        self._trouble_since = 0.0
        self._death: Verdict | None = None
        self._rendezvous = rendezvous
        self._server = listen(rendezvous.interface.address)
        self._server.setblocking(False)
        selector.register(self._server, selectors.EVENT_READ)
        rendezvous.store.set(KEY, f"{rendezvous.interface.public} {self._server.getsockname()[1]}")

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
        if key.fileobj is self._server:
            with contextlib.suppress(OSError):  # gone again before it was here
                connection, _ = self._server.accept()
                self._strangers[connection.fileno()] = Line(connection)
                self._selector.register(connection, selectors.EVENT_READ)
        elif key.fd in self._strangers:
            self._meet(key.fd, now)
        else:
            self._listen_to(key.data, now)

    def say(self, word: Word, now: float, due: bool) -> None:
        self._take_word(0, word, now)
        if due or word.status == "done":  # the others need to know that it lives, not every step of it
            for line in self._lines.values():
                line.send(asdict(word))

    def verdict(self, word: Word, now: float) -> Verdict | None:
        if self._death is not None:
            return self._death
        if self._troubles and now - self._trouble_since > GRACE_SECONDS:
            return judge_trouble(self._topology, self._peers, list(self._troubles.items()), now)
        for rank, peer in self._peers.items():
            gone = peer.word is not None and peer.word.status == "done"
            if rank != 0 and not gone and now - peer.heard > self._timeout:
                return judge_silence(self._topology, rank, peer, now)
        return None

    def forgive(self, seconds: float) -> None:
        if seconds:
            self._peers = {rank: replace(peer, heard=peer.heard + seconds) for rank, peer in self._peers.items()}

    def announce(self, verdict: Verdict) -> None:
        for line in self._lines.values():
            line.send({"verdict": asdict(verdict)})
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self._lines and time.monotonic() < deadline:
            time.sleep(0.05)
            for key, _ in self._selector.select(0):
                if key.data in self._lines and self._lines[key.data].read() is None:
                    self._forget(key.data)

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._server.close()

    def _meet(self, descriptor: int, now: float) -> None:
        """The first word on a connection says which rank it is."""
        line = self._strangers[descriptor]
        words = line.read()
        if words == []:
            return
        del self._strangers[descriptor]
        self._selector.unregister(line.socket)
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
            if last.status != "done" and self._death is None:
                self._death = judge_death(self._topology, rank, last)

    def _take_word(self, rank: int, word: Word, now: float) -> None:
        self._peers[rank] = Peer(word, now)
        if word.status not in ("running", "done") and rank not in self._troubles:
            self._trouble_since = self._trouble_since or now
            self._troubles[rank] = word

    def _forget(self, rank: int) -> None:
        line = self._lines.pop(rank)
        self._selector.unregister(line.socket)
        line.close()


class _Member:
    """The side of every other rank."""

    def __init__(
        self, topology: Topology, rendezvous: Rendezvous, timeout: float, selector: selectors.BaseSelector
    ) -> None:
        launch = rendezvous.launch
        # Global rank 0 speaks for all. When it is gone nobody can ask who else speaks: one rank of each host does.
        self._speaks_alone = launch.local_rank == 0 or launch.rank == 1
        self.speaks = self._speaks_alone
        self._topology = topology
        self._rank = launch.rank
        self._timeout = timeout
        self._selector = selector
        self._main = Peer(None, time.monotonic())
        self._troubled_since = 0.0
        self._verdict: Verdict | None = None
        self._line: Line | None = _connect(rendezvous)
        selector.register(self._line.socket, selectors.EVENT_READ)

    def hear(self, key: selectors.SelectorKey, now: float) -> None:
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
        if word.status not in ("running", "done"):
            self._troubled_since = self._troubled_since or now
        if self._line is not None:
            self._line.send(asdict(word))

    def verdict(self, word: Word, now: float) -> Verdict | None:
        if self._verdict is not None:
            return self._verdict
        if self._line is not None and now - self._main.heard > self._timeout:
            return judge_silence(self._topology, 0, self._main, now)
        alone = self._line is None or now - self._troubled_since > VERDICT_SECONDS
        if self._troubled_since and alone:  # global rank 0 is done, or too busy to judge
            self.speaks = True
            peers = {0: self._main, self._rank: Peer(word, now)}
            return judge_trouble(self._topology, peers, [(self._rank, word)], now)
        return None

    def forgive(self, seconds: float) -> None:
        self._main = replace(self._main, heard=self._main.heard + seconds)

    def announce(self, verdict: Verdict) -> None:
        """Nobody listens to a member's verdict."""

    def close(self) -> None:
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
