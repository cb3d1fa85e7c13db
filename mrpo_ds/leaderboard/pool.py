"""The workers of a sweep, seen from the process that gives them work."""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.environment import worker_environment

Answer = dict[str, Any]
END_SECONDS = 10.0
"""How long a worker may take to end once its stdin is closed."""


class Worker:
    """One worker process; started with its first job, and again after one that it did not survive."""

    def __init__(self, device: str, log: Path, offline: bool, locks: tuple[int, ...] = ()) -> None:
        """locks: descriptors that the process shall hold open for as long as it lives."""
        self.device = device
        self.model: str | None = None
        """The path of the model that it has loaded."""
        self._log = log
        self._offline = offline
        self._locks = locks
        self._process: subprocess.Popen[str] | None = None
        self._ended = False

    def ask(self, job: dict[str, Any], on_progress: Callable[[float], None] = lambda part: None) -> Answer:
        """Have a job done. The answer's "kind" is done, refused (the user's mistake) or failed; nothing is raised."""
        try:
            answer = self._answer(job, on_progress)
        except Exception as error:  # no process, no log, a line that is no answer: the other cells go on
            message = f"the worker on {self.device} could not do it: {type(error).__name__}: {error}"
            answer = {"kind": "failed", "message": message, "trace": traceback.format_exc()}
        if answer["kind"] == "done":
            self.model = job.get("head", {}).get("model_path", self.model)
        elif job["kind"] == "evaluate" or self._process is None or self._process.poll() is not None:
            self.close()  # whatever is left in its memory, the next cell starts in a new one
        return answer

    def demand(self, job: dict[str, Any]) -> Answer:
        """As ask, for what everything depends on. Raises ConfigError or DataError when it is not done."""
        answer = self.ask(job)
        if answer["kind"] == "done":
            return answer
        kind = DataError if answer.get("data") else ConfigError
        raise kind(answer["message"])

    def close(self) -> None:
        """End the process."""
        process, self._process, self.model = self._process, None, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the process at once and for good, from any thread; who waits for its answer hears that it is lost."""
        self._ended = True
        if self._process is not None:
            self._process.kill()

    def _answer(self, job: dict[str, Any], on_progress: Callable[[float], None]) -> Answer:
        """The process's answer, or that it has died. Raises OSError when there cannot be one."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
            for line in process.stdout:
                answer: Answer = json.loads(line)
                if answer["kind"] != "progress":
                    return answer
                on_progress(answer["part"])
        except OSError:
            pass  # the pipe of a process that is gone
        return self._lost(process)

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None:
            device = "cpu" if self.device == "cpu" else "cuda"
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "mrpo_ds.leaderboard.worker", device],
                    env=worker_environment(os.environ, self.device, self._offline),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the sweep, which ends its workers
                    pass_fds=self._locks,
                )
            if self._ended:
                self._process.kill()
        return self._process

    def _lost(self, process: "subprocess.Popen[str]") -> Answer:
        code = process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        if code == -signal.SIGKILL and not self._ended:
            how += " (the system's lack of memory, or a person)"
        return {"kind": "failed", "message": f"the worker ended by {how}; {self._log} has its last words", "trace": ""}
