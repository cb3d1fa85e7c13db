"""The log of one rank: logs/rank-N.log, every line with its time and who says it.

Lines go out with one write each, past Python's buffers and locks: a thread that ends the process can write them too.
On every rank but global rank 0 the file also takes what libraries print to stdout and stderr, in Python or in C++.
"""

import atexit
import contextlib
import faulthandler
import io
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from pathlib import Path
from typing import TextIO

DIRECTORY = "logs"
"""Of a run directory: where the logs are."""
LOGGERS = ("transformers", "datasets", "huggingface_hub", "DeepSpeed")
"""Libraries whose loggers print by themselves and tell nobody above them."""

_descriptor: int | None = None
_who = ""
_full = False
_terminal: TextIO | None = None
_early: deque[tuple[float, str]] = deque(maxlen=1000)
"""What was said before the file was there."""


def open_log(run_dir: Path, rank: int, who: str, note: str, alone: bool) -> None:
    """Write what this process says to logs/rank-N.log of its run from now on, after what is there already.

    A file that cannot be written is said once on stderr, and the process goes on without.

    Args:
        run_dir: output_dir.
        rank: Global rank.
        who: 'policy rank 1 (global rank 1)', for every line.
        note: The first line: what begins here.
        alone: Whether only the file takes what libraries print, and not the terminal.
    """
    global _descriptor, _who
    _who = who
    path = run_dir / DIRECTORY / f"rank-{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        say(f"{who} has no log: {path} cannot be written ({error.strerror}); the run goes on")
        return
    _write(f"--- {note} ---", time.time())
    while _early:
        when, text = _early.popleft()
        _write(text, when)
    faulthandler.enable(_descriptor)  # where it was when the system killed it for what C code did
    sys.excepthook = _say_exception
    threading.excepthook = lambda given: _say_exception(given.exc_type, given.exc_value, given.exc_traceback)
    if alone:
        _take_over_streams(_descriptor)
    else:
        _listen_too()


def write(text: str) -> None:
    """Add lines to the log; they wait until there is one."""
    if _descriptor is None:
        _early.append((time.time(), text))
    else:
        _write(text, time.time())


def say(message: str) -> None:
    """As console.warn, but past Python's buffers: the main thread may hold their locks."""
    tell_terminal(f"mrpo-ds | {time.strftime('%H:%M:%S')} | {message}\n")
    write(message)


def tell_terminal(text: str) -> None:
    """Write text as it is to the terminal alone, past Python's buffers."""
    with contextlib.suppress(OSError):  # a file on a full disk
        os.write(terminal_descriptor(), text.encode(errors="backslashreplace"))


def terminal_descriptor() -> int:
    """Where the terminal is, for C code."""
    return _terminal.fileno() if _terminal else 2


def write_stacks() -> None:
    """Add to the log where every thread of this process is."""
    if _descriptor is not None:
        faulthandler.dump_traceback(_descriptor, all_threads=True)


def terminal() -> TextIO:
    """The stderr that this process was started with."""
    return _terminal or sys.stderr


def _write(text: str, when: float) -> None:
    global _full
    start = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} | {_who} | "
    data = "".join(f"{start}{line}\n" for line in text.splitlines()).encode(errors="backslashreplace")
    assert _descriptor is not None
    try:
        os.write(_descriptor, data)
    except OSError as error:
        if not _full:
            _full = True
            lost = f"the log of {_who} cannot be written ({error.strerror}); its lines are lost"
            tell_terminal(f"mrpo-ds | {time.strftime('%H:%M:%S')} | {lost}\n")


class _Lines(io.TextIOWrapper):
    """A stream whose lines get their time and who says them; of a progress bar the last state counts."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(open(descriptor, "wb", buffering=0, closefd=False), encoding="utf-8")  # noqa: SIM115
        self._rest = ""
        self._lock = threading.Lock()
        atexit.register(self.finish)

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                if shown := line.rstrip("\r").rpartition("\r")[2]:
                    write(shown)
        return len(text)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if self._rest.strip():
            self.write("\n")


def _take_over_streams(descriptor: int) -> None:
    """Send stdout and stderr to the log, those of C++ code and of child processes too."""
    global _terminal
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    _terminal = open(os.dup(2), "w", encoding="utf-8", buffering=1, errors="backslashreplace")  # noqa: SIM115
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = _Lines(1), _Lines(2)


class _ToLog(logging.Handler):
    """Adds a record to the log, once, whichever of its loggers it passes first."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "in_rank_log", False):
            record.in_rank_log = True
            write(f"{record.levelname} {record.name}: {self.format(record)}")


class _LastResort(_ToLog):
    """What logging does where nobody has set it up, and the log."""

    def __init__(self, usual: logging.Handler) -> None:
        super().__init__(usual.level)
        self._usual = usual

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self._usual.handle(record)


def _listen_too() -> None:
    """Let the log have what Python's warnings and loggers print on the terminal."""
    show = warnings.showwarning

    def show_and_write(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        show(message, category, filename, lineno, file, line)
        write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show_and_write
    for name in LOGGERS:
        logging.getLogger(name).addHandler(_ToLog())
    if logging.root.handlers:
        logging.root.addHandler(_ToLog())
    elif logging.lastResort is not None:
        logging.lastResort = _LastResort(logging.lastResort)


def _say_exception(kind: type[BaseException], error: BaseException | None, where: object) -> None:
    """What ends a thread that nobody catches: a person must see it on the terminal too."""
    if error is not None and not issubclass(kind, SystemExit):
        text = "".join(traceback.format_exception(error))
        tell_terminal(text)
        write(text)
