"""The stacks of all threads of a rank, on demand: what shows where a run hangs, while it goes on.

SIGUSR2 is answered by faulthandler's C code, which needs neither the interpreter's lock nor a thread that is free. It
can write to a file that is open already, and to no other: a nameless one. The heartbeat's thread sees that and writes
the stacks of all threads to logs/stacks-TIME-rank-N.txt; when it cannot run, a neighbour moves there what the C code
has written, which is the main thread's.
"""

import contextlib
import faulthandler
import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mrpo_ds import logs
from mrpo_ds.errors import ConfigError

SIGNAL = signal.SIGUSR2
SETTLE_SECONDS = 2.0
"""A signal that comes so soon after this rank's part of a report was for that report too."""
DUMP_SECONDS = 1.0
"""How long a process that was signalled may take to show its stacks."""
WRITING_SECONDS = 0.05
"""A file of stacks that has not grown for so long is complete: C code writes it in one go."""


class Stacks:
    """The stacks of this process. Its files are written by threads of their own: a file system may be what hangs."""

    def __init__(self, run_dir: Path, rank: int, nonce: str, tell: Callable[[], None]) -> None:
        """Prepare to show them. Raises ConfigError when there is no place for temporary files.

        Args:
            run_dir: output_dir.
            rank: Global rank.
            nonce: The run's, so that a process of another run is not taken for one of this.
            tell: Called by another thread when this process's part of a report is written.
        """
        self.written = ""
        """The last report that this process has written its part of."""
        self.helped: tuple[int, ...] = ()
        """The neighbours whose part of it this process has written too."""
        self._directory = run_dir / logs.DIRECTORY
        self._rank = rank
        self._nonce = nonce
        self._tell = tell
        self._written_at = 0.0
        self._writer: threading.Thread | None = None
        self._descriptor = _nameless(_mark(nonce, rank, os.getpid()))
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, os.O_APPEND)  # it is emptied again and again

    def listen(self) -> None:
        """From now on SIGUSR2 shows this process's stacks. Call from the main thread."""
        signal.signal(SIGNAL, signal.SIG_IGN)  # what comes back when the interpreter ends
        # Of the thread that it interrupts alone: others may run meanwhile, and to read a stack that changes can crash.
        faulthandler.register(SIGNAL, self._descriptor, all_threads=False, chain=False)

    def waiting(self) -> bool:
        """Whether a signal has come whose stacks nobody has moved yet."""
        return not self._busy() and os.fstat(self._descriptor).st_size > 0

    def late(self, now: float) -> bool:
        """Whether a signal that comes now still belongs to the report that was written last."""
        return now - self._written_at < SETTLE_SECONDS

    def write(self, report: str, about: str) -> bool:
        """Begin to write this process's part of a report; False while the last one is still being written.

        about: one line on what this process is doing.
        """
        if self._busy():
            return False
        self._writer = threading.Thread(target=self._write, args=(report, about), name="stacks", daemon=True)
        self._writer.start()
        return True

    def help(self, report: str, neighbours: Mapping[str, int]) -> None:
        """Signal neighbours, given as rank -> process id, whose threads cannot run, and write their part."""
        for rank, pid in neighbours.items():
            threading.Thread(target=self._help, args=(report, int(rank), pid), name="stacks", daemon=True).start()

    def path(self, report: str, rank: int | str | None = None) -> Path:
        """Where the part of a rank, by default of this one, is."""
        return self._directory / f"stacks-{report}-rank-{self._rank if rank is None else rank}.txt"

    def _busy(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _write(self, report: str, about: str) -> None:
        os.ftruncate(self._descriptor, 0)  # with the interpreter's lock every thread's stack stands still
        faulthandler.dump_traceback(self._descriptor, all_threads=True)
        self._save(report, self._rank, about, _take(self._descriptor))
        if report != self.written:
            self.helped = ()
        self.written, self._written_at = report, time.monotonic()
        self._tell()

    def _help(self, report: str, rank: int, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended, or this is no process of ours
            descriptor = _find(pid, _mark(self._nonce, rank, pid))
            if descriptor is None:
                return
            os.kill(pid, SIGNAL)
            deadline = time.monotonic() + DUMP_SECONDS
            while not os.fstat(descriptor).st_size and time.monotonic() < deadline:
                time.sleep(WRITING_SECONDS)
            if text := _take(descriptor):
                self._save(report, rank, f"process {pid}, shown by global rank {self._rank} in its place", text)
                self.helped = (*self.helped, rank)
                self._tell()
            os.close(descriptor)

    def _save(self, report: str, rank: int, about: str, text: bytes) -> None:
        path = self.path(report, rank)
        data = f"{about}\n\n".encode() + text
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            logs.say(f"{path} cannot be written ({error.strerror}); the stacks are:")
            logs.tell_terminal(data.decode(errors="backslashreplace"))


def _mark(nonce: str, rank: int, pid: int) -> str:
    """What the nameless file of a rank was called for a moment: /proc still knows."""
    return f"mrpo-ds-stacks-{nonce[:16]}-{rank}-{pid}-"


def _nameless(prefix: str) -> int:
    """A file that is gone when its last process is."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=prefix)
    except OSError as error:
        raise ConfigError(f"no temporary file can be made ({error}); let TMPDIR be a directory of yours.") from error
    os.unlink(name)
    return descriptor


def _find(pid: int, mark: str) -> int | None:
    """A process's nameless file, opened; None when there is no such process or it is of another run."""
    folder = Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            if Path(os.readlink(entry)).name.startswith(mark):
                return os.open(entry, os.O_RDWR | os.O_APPEND)
    return None


def _take(descriptor: int) -> bytes:
    """All that a file has, once nothing comes any more; it is empty afterwards."""
    size = -1
    while size != (size := os.fstat(descriptor).st_size):
        time.sleep(WRITING_SECONDS)
    text = os.pread(descriptor, size, 0)
    os.ftruncate(descriptor, 0)
    return text
