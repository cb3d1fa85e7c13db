"""A launcher in a session of its own: signals reach the run in the way that loses least, and nothing outlives it."""

import contextlib
import os
import signal
import subprocess
import time

import psutil

from mrpo_ds.console import log

END_SECONDS = 60.0
"""How long the processes of a launcher that has ended may take to end too; the launcher itself kills after 30 s."""


def run_in_session(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a launcher to its end and that of all its processes.

    The first signal goes to global rank 0 alone, which stops the run in order and has all the time that it needs. The
    second one ends the whole session.

    Returns:
        The launcher's exit code, negative when a signal killed it, and whether we were told to stop.
    """
    started: list[int] = []
    told: list[int] = []

    def pass_on(number: int, _: object) -> None:
        told.append(number)
        for session in started:
            if len(told) > 1 or not _ask(session, signal.SIGTERM if number == signal.SIGHUP else number):
                # SIGTERM whatever came: the launcher is itself two processes, and dies of others without its ranks.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(session, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, pass_on)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    started.append(process.pid)
    if told:
        os.killpg(process.pid, signal.SIGTERM)
    code = process.wait()
    if code:
        _end(process.pid, code)
    return code, bool(told)


def _ask(session: int, number: int) -> bool:
    """Send a signal to global rank 0. Returns whether it is there."""
    ranks = []
    for process in _alive(session):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == "0":
                ranks.append((process.create_time(), process))
    if not ranks:
        return False
    with contextlib.suppress(psutil.Error):
        min(ranks, key=lambda pair: pair[0])[1].send_signal(number)  # the eldest: what it starts inherits RANK
    return True


def _end(session: int, code: int) -> None:
    """Wait until every process of a session has ended: the launcher's first one may die long before its ranks."""
    deadline = time.monotonic() + END_SECONDS
    if code < 0 and _alive(session):
        log(f"the launcher was killed (signal {-code}); its processes notice it and stop after their step")
        deadline = float("inf")  # they have deadlines of their own
    while (left := _alive(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        log(f"process {process.pid} of the run does not end, and is killed")
        with contextlib.suppress(psutil.Error):
            process.kill()


def _alive(session: int) -> list[psutil.Process]:
    """The processes of a session; a zombie that nobody reaps has ended."""
    alive = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive
