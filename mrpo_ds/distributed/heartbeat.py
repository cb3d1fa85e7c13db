"""Signs of life: a dead or stuck peer is named within a bounded time, and nobody hangs.

Every process beats into the shared store from a thread of its own. Global rank 0 watches all others, the others
watch global rank 0. The watcher's thread ends the process itself (os._exit), because by then the main thread may be
inside a collective that never returns. A signal reaches the thread at once through a wake-up pipe for the same reason.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

from mrpo_ds.distributed.worlds import World

BEAT_SECONDS = 1.0
SUSPECT_SECONDS = 4.0
"""After a first sign of trouble a peer that is silent for this long is the one to name."""


@dataclass(frozen=True)
class Beat:
    """What a process last said about itself."""

    count: int
    role: str
    rank: int
    """Rank within the role."""
    host: str
    phase: str
    step: int
    status: str
    """running | stopping (it was told to) | failed (reason says why) | done."""
    reason: str = ""

    def describe(self, global_rank: int) -> str:
        return f"{self.role} rank {self.rank} (global rank {global_rank}, host {self.host})"


class Heartbeat:
    """This process's beats and its watch over the others. Start it right after the split."""

    def __init__(self, world: World, timeout_seconds: float, exit_code: Callable[[], int]) -> None:
        """exit_code is asked when a run must end: 75 when there is a checkpoint to go on from, 1 otherwise."""
        self._world = world
        self._timeout = timeout_seconds
        self._exit_code = exit_code
        self._store = world.rendezvous.connect()
        self._beat = Beat(0, world.role.name, world.rank, socket.gethostname(), "start", 0, "running")
        self._seen: dict[int, tuple[Beat | None, float]] = {}
        self._lock = threading.Lock()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat, and take over SIGTERM and SIGINT. Call from the main thread."""
        signal.set_wakeup_fd(self._wake_writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the wake-up pipe carries it to our thread
        self._publish()
        self._thread.start()

    def phase(self, name: str, step: int = 0) -> None:
        """Say what this process is doing now; messages about it quote the last word it said."""
        with self._lock:
            self._beat = replace(self._beat, phase=name, step=step)

    def done(self) -> None:
        """Say that this process has finished its work: from now on its silence is no failure."""
        with self._lock:
            self._beat = replace(self._beat, status="done")
        self._publish()
        # A daemon thread inside the store's C++ code when the interpreter ends would abort the process.
        signal.set_wakeup_fd(-1)
        os.write(self._wake_writer, bytes([0]))
        self._thread.join()

    def end_because(self, reason: str, exit_code: int | None = None) -> NoReturn:
        """This process failed, or saw the bridge break: tell the others, name the culprit, leave."""
        with self._lock:
            self._beat = replace(self._beat, status="failed", reason=reason)
        self._publish_quietly()
        self._leave(self._diagnose(reason), exit_code)

    def end_after_broken_bridge(self, reason: str) -> NoReturn:
        """A collective broke because some peer is gone: find out which, then leave."""
        with self._lock:
            self._beat = replace(self._beat, status="stopping")
        self._publish_quietly()
        self._leave(self._diagnose(reason), None)

    def _run(self) -> None:
        while self._beat.status != "done":
            readable, _, _ = select.select([self._wake_reader], [], [], BEAT_SECONDS)
            if self._beat.status == "done":
                return
            if readable:
                self._stop_on_signal(os.read(self._wake_reader, 16)[0])
            try:
                self._publish()
                self._watch()
            except (RuntimeError, ConnectionError) as error:
                if self._beat.status == "running":
                    self._leave(f"lost global rank 0, which keeps the run together ({str(error).splitlines()[0]})")

    def _stop_on_signal(self, number: int) -> None:
        with self._lock:
            self._beat = replace(self._beat, status="stopping")
        self._publish_quietly()
        self._leave(self._diagnose(f"stopped by {signal.Signals(number).name}"))

    def _watched(self) -> list[int]:
        if not self._world.is_main:
            return [0]
        return [rank for rank in range(self._world.topology.world_size) if rank != 0]

    def _watch(self) -> None:
        for rank, beat in self._read(self._watched()).items():
            known, since = self._seen.get(rank, (None, time.monotonic()))
            if beat is None or beat != known:
                since = time.monotonic() if beat is not None or rank not in self._seen else since
                self._seen[rank] = (beat, since)
            if beat is not None and beat.status == "failed":
                self._leave(_failure(rank, beat))
            silent = time.monotonic() - since
            if silent > self._timeout and (beat is None or beat.status != "done"):
                self._leave(_silence(rank, beat, silent))

    def _read(self, ranks: list[int]) -> dict[int, Beat | None]:
        """The last beat of each rank; None for one that has not begun yet."""
        begun = [rank for rank in ranks if self._store.check([f"beat/{rank}"])]
        beats: dict[int, Beat | None] = dict.fromkeys(ranks)
        for rank in begun:
            beats[rank] = Beat(**json.loads(self._store.get(f"beat/{rank}")))
        return beats

    def _diagnose(self, reason: str) -> str:
        """Who is to blame: a peer that failed or that says nothing at all while the others stop. Takes seconds."""
        if self._beat.status == "failed":
            return _failure(self._world.global_rank, self._beat)
        others = [rank for rank in range(self._world.topology.world_size) if rank != self._world.global_rank]
        try:
            before = self._read(others)
            deadline = time.monotonic() + SUSPECT_SECONDS
            while time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 2)
                self._publish_quietly()
                now = self._read(others)
                for rank, beat in now.items():
                    if beat is not None and beat.status == "failed":
                        return _failure(rank, beat)
        except (RuntimeError, ConnectionError):
            return f"{reason}; global rank 0, which keeps the run together, is gone"
        for rank, beat in now.items():
            if beat is not None and beat.status == "running" and beat == before[rank]:
                return _silence(rank, beat, SUSPECT_SECONDS)
        return reason

    def _publish(self) -> None:
        with self._lock:
            self._beat = replace(self._beat, count=self._beat.count + 1)
            self._store.set(f"beat/{self._world.global_rank}", json.dumps(asdict(self._beat)))

    def _publish_quietly(self) -> None:
        try:
            self._publish()
        except (RuntimeError, ConnectionError):
            pass  # the store went with global rank 0; there is nobody left to tell

    def _leave(self, message: str, exit_code: int | None = None) -> NoReturn:
        """End this process. Only global rank 0 speaks, unless it is the one that is gone."""
        if self._world.is_main or "global rank 0" in message:
            print(f"mrpo-ds: error: {message}", file=sys.stderr, flush=True)
        if self._world.is_main:
            self._publish_quietly()
            time.sleep(BEAT_SECONDS)  # the others read this rank's state before its store closes
        os._exit(self._exit_code() if exit_code is None else exit_code)


def _failure(rank: int, beat: Beat) -> str:
    return f"{beat.describe(rank)} failed at step {beat.step} while in phase '{beat.phase}': {beat.reason}"


def _silence(rank: int, beat: Beat | None, seconds: float) -> str:
    if beat is None:
        return f"global rank {rank} never started; waited {seconds:.0f} s"
    return (
        f"{beat.describe(rank)} died or is stuck: no sign of life for {seconds:.0f} s; "
        f"last seen at step {beat.step} in phase '{beat.phase}'"
    )
