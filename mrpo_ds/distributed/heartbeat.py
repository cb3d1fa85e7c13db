"""Signs of life: a dead or stuck peer is named within a bounded time, and nobody hangs.

Every process keeps a connection to global rank 0 and beats over it from a thread of its own. Global rank 0 judges:
it sees a death at once by the closed connection, and silence after a time; errors that the others report wait a
moment for the death that may have caused them. The verdict is printed once, sent to all, and every thread ends its
own process (os._exit), because by then the main thread may be inside a collective that never returns. A signal
reaches the thread through a wake-up pipe for the same reason.

Holding the interpreter's lock for long (a load, a compile) delays beats but closes nothing: it is no death.

SIGUSR2 to any rank makes global rank 0 ask everybody for a hang report, the stacks of all threads; the run goes on.
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
from pathlib import Path
from typing import NoReturn

import torch

from mrpo_ds import logs
from mrpo_ds.distributed.bridge import BrokenBridge
from mrpo_ds.distributed.hang_report import ANSWER_SECONDS, HangReport
from mrpo_ds.distributed.judge import Judge
from mrpo_ds.distributed.launchers import Launchers
from mrpo_ds.distributed.member import Member
from mrpo_ds.distributed.orders import Orders
from mrpo_ds.distributed.stacks import Stacks
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.verdict import Peer, Verdict, Word, describe, where_of
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
        self,
        topology: Topology,
        rendezvous: Rendezvous,
        limits: Limits,
        exit_code: Callable[[], int],
        run_dir: Path,
    ) -> None:
        """exit_code is asked when a run must end: 75 when there is a checkpoint to go on from, 1 otherwise.

        run_dir: output_dir, for hang reports.
        """
        self.orders = Orders()
        self._topology = topology
        self._rendezvous = rendezvous
        self._limits = limits
        self._exit_code = exit_code
        self._word = Word(socket.gethostname(), pid=os.getpid())
        self._trace = ""
        self._changed = False
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        self._launchers = Launchers()
        self._stop_asked = 0.0
        self._stacks = Stacks(run_dir, rendezvous.launch.rank, rendezvous.nonce, self._wake)
        self._signalled = False
        self._report_asked = 0.0
        self._to_write = ""
        """A report of which this process's part is still to be written."""
        self._alone = ""
        """A report that this process writes alone, because global rank 0 does not answer."""
        self._wanted: tuple[str, dict[str, int]] = ("", {})
        self._watch: Watch
        self._thread = threading.Thread(target=self._run_to_the_end, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat, and take over the stop signals. Call from the main thread.

        Raises ConfigError when global rank 0 cannot be reached.
        """
        self._stacks.listen()  # before anybody knows our process id
        if self._rendezvous.launch.rank == 0:
            report = HangReport(self._stacks)
            self._watch = Judge(self._topology, self._rendezvous, self._limits, self.orders, self._selector, report)
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
        trace = "".join(traceback.format_exception(error))
        if not isinstance(error, MrpoError):
            self._trace = trace  # a defect, unless a peer turns out to have died
            text = f"{type(error).__name__}: {text}"
        # Collectives fail with a RuntimeError of some kind: it may be the echo of what happened elsewhere.
        broken = isinstance(error, BrokenBridge | RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        code = error.exit_code if isinstance(error, MrpoError) and not (broken or error.resumable) else None
        self._set(status="broken" if broken else "failed", reason=text, exit_code=code)
        logs.write(trace)
        self._thread.join()
        raise AssertionError("the heartbeat thread ends the process")

    def _set(self, **changes: str | int | tuple[int, ...] | None) -> None:
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
            trace = traceback.format_exc()
            logs.tell_terminal(trace)
            logs.write(trace)
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
            self._look_at_stacks(now)
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

    def _look_at_stacks(self, now: float) -> None:
        """See what signals have left and what global rank 0 wants, and pass it on."""
        wanted, self._wanted = self._wanted, self._watch.wanted()
        report, neighbours = self._wanted
        if self._wanted != wanted:
            self._changed = True
            self._stacks.help(report, neighbours)
        if report != wanted[0]:
            self._to_write, self._report_asked = report, 0.0
        if (self._stacks.written, self._stacks.helped) != (self._word.stacks, self._word.helped):
            self._set(stacks=self._stacks.written, helped=self._stacks.helped)
        signalled, self._signalled = self._signalled, self._stacks.waiting()
        if self._signalled and self._stacks.late(now):
            self._to_write = self._to_write or self._stacks.written
        elif self._signalled and not signalled:
            self._wake()  # a process that was stopped finds the word of global rank 0 first
        elif self._signalled and not self._report_asked and not self._to_write:
            self._report_asked = now
            self._set(asks=self._word.asks + 1)
        elif self._report_asked and now - self._report_asked > ANSWER_SECONDS:
            self._to_write = self._alone = time.strftime("%Y%m%d-%H%M%S")
            self._report_asked = 0.0
        self._write_stacks()

    def _write_stacks(self) -> None:
        """Begin to write this process's part of a report, or say where it is when no other part will come."""
        if self._to_write:
            about = describe(self._topology, self._rendezvous.launch.rank, self._word)
            if self._stacks.write(self._to_write, f"{about} {where_of(Peer(self._word, 0.0))}"):
                self._to_write = ""
        if self._alone and self._stacks.written == self._alone:
            self._alone = ""
            main = self._watch.main()
            logs.say(
                f"no answer within {ANSWER_SECONDS:.0f} s from {describe(self._topology, 0, main.word)} "
                f"{where_of(main)}; the stacks of this rank alone are in {self._stacks.path(self._stacks.written)}"
            )

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
        me = self._rendezvous.launch.rank
        if verdict.culprit == me:
            logs.tell_terminal(self._trace)
        if me in verdict.overdue:
            faulthandler.dump_traceback(logs.terminal_descriptor(), all_threads=True)  # where its main thread is
        error = f"mrpo-ds: error: {verdict.message}\n"
        if self._watch.speaks:
            logs.tell_terminal(error)
        code = self._exit_code() if verdict.exit_code is None else verdict.exit_code
        self._watch.announce(replace(verdict, exit_code=code))
        if me in verdict.overdue:
            logs.write_stacks()
        logs.write(error)  # last: it may be the log's file system that hangs
        os._exit(code)
