"""Signals that ask a command to end: what it does about them instead of dying at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[list[signal.Signals]]:
    """Give these signals to a handler, but those that are ignored, as nohup has it. Yields which.

    Outside the main thread, where Python has no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before: dict[Any, Any] = {number: signal.signal(number, handler) for number in ours}
    try:
        yield ours
    finally:
        for number, theirs in before.items():
            signal.signal(number, theirs)


@contextmanager
def first_signal(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell of the first signal by its name (SIGTERM), and let the second one end the process."""
    ours: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        for again in ours:
            signal.signal(again, signal.SIG_DFL)
        tell(signal.Signals(number).name)

    with handled(note) as found:
        ours += found
        yield
