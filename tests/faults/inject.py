"""A process of a run that kills, stops or signals one of its run's processes at a moment that a test names.

The processes are the command's own, with one addition: every rank notes its process id, and when global rank 0 begins
the named phase of the named step, the signal is sent. `python -m tests.faults.inject ...` is `mrpo-ds ...` with that.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

VARIABLE = "MRPO_DS_TEST_FAULT"
"""A JSON object: directory (for the process ids), phase, step, delay (seconds after the phase began), pause
(seconds that the phase is made longer), signal, again (seconds until it comes a second time, 0 for never), victim: a
global rank, or "launcher", the process that started global rank 0, or "runner", the one that started that."""


def arm() -> None:
    """Prepare this process, if the environment says so. Called before the command's main()."""
    fault = json.loads(os.environ.get(VARIABLE, "null"))
    if fault is None:
        return
    rank = int(os.environ["RANK"])
    _note(fault, str(rank), os.getpid())
    if rank == 0:
        _note(fault, "launcher", os.getppid())
        _note(fault, "runner", psutil.Process(os.getppid()).ppid())
        _wait_for(fault)


def _wait_for(fault: dict[str, Any]) -> None:
    from mrpo_ds.distributed.heartbeat import Heartbeat

    begin = Heartbeat.phase
    fired = threading.Event()

    def phase(self: Heartbeat, name: str, step: int = 0) -> None:
        begin(self, name, step)
        if not fired.is_set() and name.startswith(fault["phase"]) and step >= fault["step"]:
            fired.set()
            if fault["delay"]:
                threading.Thread(target=_fire, args=(fault,), daemon=True).start()
            else:
                _fire(fault)
            time.sleep(fault["pause"])  # a step of a real model takes its time

    Heartbeat.phase = phase  # type: ignore[method-assign]


def _fire(fault: dict[str, Any]) -> None:
    time.sleep(fault["delay"])
    pid = int((Path(fault["directory"]) / str(fault["victim"])).read_text(encoding="utf-8"))
    _note(fault, "fired", time.time())
    os.kill(pid, getattr(signal, fault["signal"]))
    if fault["again"]:
        threading.Timer(fault["again"], os.kill, (pid, getattr(signal, fault["signal"]))).start()


def _note(fault: dict[str, Any], name: str, value: float) -> None:
    """Write a number to a file that other processes read, whole or not at all."""
    path = Path(fault["directory"]) / name
    path.with_suffix(".part").write_text(str(value), encoding="utf-8")
    path.with_suffix(".part").replace(path)


if __name__ == "__main__":
    arm()
    from mrpo_ds.cli import main

    sys.exit(main())
