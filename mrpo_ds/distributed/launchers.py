"""The processes that started this one: when a launcher is killed, its ranks must not go on by themselves."""

from pathlib import Path

import psutil


class Launchers:
    """The Python processes above this one: torchrun's agent, or deepspeed's launcher, its runner and our own command.

    What is above them (a shell, Slurm) may leave while a run goes on in the background, and is not watched.
    """

    def __init__(self) -> None:
        self._watched: list[psutil.Process] = []
        for process in psutil.Process().parents():
            if not _is_python(process):
                break
            self._watched.append(process)

    def gone(self) -> str:
        """Which launcher is gone, for a message; "" when all are there."""
        for process in self._watched:
            if not _lives(process):
                return f"the launcher (process {process.pid}) is gone"
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # gone between the two
        return False


def _is_python(process: psutil.Process) -> bool:
    try:
        return Path(process.exe()).name.startswith("python")  # its name says nothing: torchrun changes it
    except psutil.Error:  # another user's, or gone just now
        return False
