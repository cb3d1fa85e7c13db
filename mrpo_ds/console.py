"""The console: lines and progress bars on stderr, from the one process that may print."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from mrpo_ds import logs

LINE_SECONDS = 30.0
"""Without a terminal, long work prints a line at every tenth, and after this many silent seconds."""

_console_enabled = False


def configure_console(enabled: bool) -> None:
    """Say whether this process prints. True on rank 0 of the policy; every process starts quiet."""
    global _console_enabled
    _console_enabled = enabled


def log(message: str) -> None:
    """Print one line, 'mrpo-ds | HH:MM:SS | message', to stderr; where the console is off, only the log has it."""
    if _console_enabled:
        warn(message)
    else:
        logs.write(" ".join(message.splitlines()))


def warn(message: str) -> None:
    """Print a line even where the console is off: what only this process knows and a person must."""
    text = " ".join(message.splitlines())
    with contextlib.suppress(OSError):  # stderr may be a file on a full disk
        # tqdm.write lifts open bars out of the way; without one it is a plain print.
        tqdm.write(f"mrpo-ds | {time.strftime('%H:%M:%S')} | {text}", file=logs.terminal())
    logs.write(text)


class Progress:
    """How far a long piece of work is: a bar on a terminal, a line now and then anywhere else. See progress()."""

    def __init__(self, total: int | None, label: str, unit: str, done: int) -> None:
        self.total = total
        self.done = done
        self._label = label
        self._unit = unit
        self._first = done
        self._started = self._shown = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if _console_enabled and _on_terminal():
            self._bar = tqdm(None, label, total, file=sys.stderr, initial=done, unit=f" {unit}", dynamic_ncols=True)

    def update(self, count: int = 1, note: str = "") -> None:
        """Add count finished units. A note, such as 'loss 0.69', is shown beside them."""
        tenth = self._tenth()
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        now = time.monotonic()
        if self._tenth() > tenth or now - self._shown >= LINE_SECONDS:
            self._shown = now
            say = log if self._bar is None else logs.write
            say(self._line(now - self._started, note))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _tenth(self) -> int:
        return 0 if self.total is None else 10 * self.done // max(self.total, 1)

    def _line(self, elapsed: float, note: str) -> str:
        if self.total is None:
            text = f"{self._label}: {self.done} {self._unit}, {tqdm.format_interval(elapsed)} elapsed"
            return f"{text}, {note}" if note else text
        percent = 100 * self.done / max(self.total, 1)
        left = elapsed / max(self.done - self._first, 1) * max(self.total - self.done, 0)
        times = f"{tqdm.format_interval(elapsed)} elapsed, {tqdm.format_interval(left)} left"
        text = f"{self._label}: {self.done}/{self.total} {self._unit} ({percent:.0f}%), {times}"
        return f"{text}, {note}" if note else text


def _on_terminal() -> bool:
    """Whether stderr is a terminal with a width; containers may give one of 0 columns, where a bar is invisible."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


@contextlib.contextmanager
def progress(total: int | None, label: str, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show the progress of long work; the body calls update() on what this yields.

    A log file gets whole lines instead of control characters, and a rank whose console is off shows nothing.

    Args:
        total: Units of work, >= 0, or None when that cannot be known.
        label: What is going on: 'train', 'load llama'.
        unit: Plural noun: 'steps', 'shards'.
        done: Units that a resumed run has already behind it.
    """
    work = Progress(total, label, unit, done)
    try:
        yield work
    finally:
        work.close()
