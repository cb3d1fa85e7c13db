"""Signs of life: a dead or stuck peer is named within a bounded time, and nobody hangs.

Every process keeps a connection to global rank 0 and beats over it from a thread of its own. Global rank 0 judges:
it sees a death at once by the closed connection, and silence after a time; errors that the others report wait a
moment for the death that may have caused them. The verdict is printed once, sent to all, and every thread ends its
own process (os._exit), because by then the main thread may be inside a collective that never returns. A signal
reaches the thread through a wake-up pipe for the same reason.

Holding the interpreter's lock for long (a load, a compile) delays beats but closes nothing: it is no death.
"""

import contextlib
import faulthandler
import os
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import torch

from mrpo_ds.distributed.bridge import BrokenBridge
from mrpo_ds.distributed.judge import Judge
from mrpo_ds.distributed.launchers import Launchers
from mrpo_ds.distributed.member import Member
from mrpo_ds.distributed.orders import Orders
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.verdict import Verdict, Word
from mrpo_ds.distributed.watch import Limits, Watch
from mrpo_ds.distributed.worlds import Rendezvous
from mrpo_ds.errors import MrpoError, Stopped

BEAT_SECONDS = 1.0
SAME_SIGNAL_SECONDS = 3.0
"""Launchers pass one signal on several times; what comes later than this is a second one, and ends the run at once."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Heartbeat:
    """This process's beats and its watch over the others. Start it as soon as the shared store is open."""

    def __init__(
        self, topology: Topology, rendezvous: Rendezvous, limits: Limits, exit_code: Callable[[], int]
    ) -> None:
        """exit_code is asked when a run must end: 75 when there is a checkpoint to go on from, 1 otherwise."""
        self.orders = Orders()
        self._topology = topology
        self._rendezvous = rendezvous
        self._limits = limits
        self._exit_code = exit_code
        self._word = Word(socket.gethostname())
        self._trace = ""
        self._changed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        self._launchers = Launchers()
        self._stop_asked = 0.0
        self._watch: Watch
        self._thread = threading.Thread(target=self._run_to_the_end, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat, and take over the stop signals. Call from the main thread.

        Raises ConfigError when global rank 0 cannot be reached.
        """
        if self._rendezvous.launch.rank == 0:
            self._watch = Judge(self._topology, self._rendezvous, self._limits, self.orders, self._selector)
        else:
            self._watch = Member(self._topology, self._rendezvous, self._limits, self._selector)
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up pipe carries it to our thread
        self._thread.start()

    def rename(self, topology: Topology) -> None:
        """Say which roles the ranks have, as soon as their nodes have decided that; messages name them by it."""
        self._watch.rename(topology)

    def phase(self, name: str, step: int = 0) -> None:
        """Say what this process is doing now; messages about it quote the last word it said."""
        self._set(phase=name, step=step, tick=self._word.tick + 1)

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
        if isinstance(error, Stopped):
            self._set(status="stopped", reason=text, exit_code=error.exit_code)
            self._thread.join()
        if not isinstance(error, MrpoError):
            self._trace = "".join(traceback.format_exception(error))  # a defect, unless a peer turns out to have died
            text = f"{type(error).__name__}: {text}"
        # Collectives fail with a RuntimeError of some kind: it may be the echo of what happened elsewhere.
        broken = isinstance(error, BrokenBridge | RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        code = error.exit_code if isinstance(error, MrpoError) and not (broken or error.resumable) else None
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
                self._look_at_launchers()
            if word.status == "done":
                self._watch.close()
                return
            verdict = self._watch.verdict(word, now)
            if verdict is not None:
                self._leave(verdict)

    def _take_signals(self) -> None:
        received = [signal.Signals(number) for number in os.read(self._wake_reader, 1 << 12) if number]
        if received:
            self._ask_to_stop(f"stopped by {received[0].name}", again=True)

    def _look_at_launchers(self) -> None:
        gone = "" if self._stop_asked else self._launchers.gone()
        if gone:
            self._ask_to_stop(f"stopped because {gone}", again=False)

    def _ask_to_stop(self, reason: str, again: bool) -> None:
        """The first time, ask global rank 0; the second time, if it counts as one, end."""
        now = time.monotonic()
        if not self._stop_asked:
            self._stop_asked = now
            self._set(stop=reason)
        elif again and now - self._stop_asked > SAME_SIGNAL_SECONDS:
            self._set(status="stopping", reason=f"{reason} (the second signal)")

    def _leave(self, verdict: Verdict) -> NoReturn:
        """End this process. The message goes out in one write past Python's buffers: their locks may be held."""
        if verdict.culprit == self._rendezvous.launch.rank and self._trace:
            os.write(2, self._trace.encode())
        if self._rendezvous.launch.rank in verdict.overdue:
            faulthandler.dump_traceback(2, all_threads=True)  # where its main thread is
        if self._watch.speaks:
            os.write(2, f"mrpo-ds: error: {verdict.message}\n".encode())
        code = self._exit_code() if verdict.exit_code is None else verdict.exit_code
        self._watch.announce(replace(verdict, exit_code=code))
        os._exit(code)
