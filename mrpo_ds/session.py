"""The ranks of a run on this machine, each in a session of its own: our launcher, when no other one has started us.

Signals reach the run in the way that loses least, a checkpoint may take as long as it needs, the exit code is that of
the run, and nothing outlives it. (The deepspeed launcher kills after 30 s, and says 0 when a part of it was killed.)
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType

import psutil

from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError

GRACE_SECONDS = 10.0
"""After which the others are told that a rank has failed: by then their heartbeats have acted, if they run already."""
END_SECONDS = 60.0
"""How long ranks that lack rank 0, and whatever ranks have started, may take to end."""


def run_ranks(command: list[str], environment: dict[str, str], count: int) -> tuple[int, bool]:
    """Run a command as so many ranks of one machine, to the end of all of their processes.

    The first signal goes to global rank 0 alone, which stops the run in order; the second one ends all ranks. SIGUSR2
    goes to all of them, who show their stacks.

    Returns:
        The first exit code that is not 0, from rank 0 on (negative: a signal), and whether we were told to stop.

    Raises ConfigError when the system does not let us start so many processes.
    """
    run = _Ranks()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, run.pass_on)
    signal.signal(signal.SIGUSR2, run.ask_for_stacks)
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            run.start(command, environment | place)
        run.wait()
    finally:
        run.end()
    finished = len(run.codes) == count
    return next((code for code in run.codes if code), 0 if finished else -signal.SIGTERM), run.signals > 0


class _Ranks:
    def __init__(self) -> None:
        self.signals = 0
        """How often the user has told us to stop."""
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._asked = False
        """Whether rank 0 has been told to stop, by the user or because a rank has failed."""

    @property
    def codes(self) -> list[int]:
        """The exit codes of the ranks that have ended."""
        return [process.returncode for process in self._ranks if process.returncode is not None]

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the next rank, unless we have been told to stop."""
        if self.signals:
            return
        try:
            self._ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
        except OSError as error:
            _tell(self._ranks, signal.SIGKILL)
            raise ConfigError(
                f"rank {len(self._ranks)} cannot be started ({error}); raise the limit, or ask for fewer "
                "ranks with topology.policy and references."
            ) from error

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Take a signal of the user's."""
        self.signals += 1
        if self.signals > 1:
            _tell(self._ranks, signal.SIGTERM)
        elif not self._asked:  # or it stops already
            self._ask(number)

    def ask_for_stacks(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on to those who are ready for it; it would end the others."""
        for process in [one for one in self._ranks if _catches(one.pid, number)]:
            process.send_signal(number)

    def wait(self) -> None:
        """Until every rank has ended. When one fails, the others end by themselves, or are made to."""
        failed = float("inf")
        while [process for process in self._ranks if process.poll() is None]:
            time.sleep(0.1)
            now = time.monotonic()
            if any(self.codes):
                failed = min(failed, now)
            if now - failed > GRACE_SECONDS and not self._asked:
                log("a rank has failed and the others still run; they are told to stop")
                self._ask(signal.SIGTERM)
            if now - failed > GRACE_SECONDS and self._ranks[0].returncode is not None:
                _tell(self._ranks, signal.SIGTERM if now - failed < END_SECONDS else signal.SIGKILL)
                time.sleep(1.0)

    def end(self) -> None:
        """See that nothing is left of any rank's session."""
        deadline = time.monotonic() + END_SECONDS
        sessions = {process.pid for process in self._ranks}
        while (left := _alive(sessions)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            log(f"process {process.pid} of the run does not end, and is killed")
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _ask(self, number: int) -> None:
        """Ask the run to stop in order; without rank 0 there is none."""
        self._asked = True
        alone = self._ranks[:1] if self._ranks and self._ranks[0].poll() is None else self._ranks
        _tell(alone, signal.SIGTERM if number == signal.SIGHUP else number)


def _tell(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        process.send_signal(number)  # does nothing to one that has ended


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _alive(sessions: set[int]) -> list[psutil.Process]:
    """The processes of these sessions; a zombie that nobody reaps has ended."""
    alive = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive
