"""Processes of a real run are killed, stopped and told to stop: it ends in time, says why, once, and can go on."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import (
    base_config,
    command,
    command_environment,
    free_port,
    read_metrics,
    without_clock,
    write_config,
)

POLICY, OTHER_POLICY, REFERENCE, SECOND_REFERENCE = range(4)
"""Global ranks: two of the policy, one of each reference."""
TIMEOUT = 15
"""topology.timeout_seconds: after this much silence a process is given up."""
LAUNCHER_SECONDS = 30
"""Both launchers kill what does not follow their SIGTERM after this long."""
MARGIN = 15
"""Seconds for noticing, for the farewell and for the launcher's own end, on a busy machine."""
ENDLESS, SHORT = 3000, 12
"""Steps of a run that is to be stopped for good, and of one that is resumed."""


class LiveRun:
    """A run in the background, with its processes by global rank."""

    def __init__(self, root: Path, name: str, *launcher: str, **settings: Any) -> None:
        self.directory = root / name
        config = base_config(root)
        config["topology"] |= {"policy": 2, "timeout_seconds": TIMEOUT}
        config["train"] |= {"max_steps": ENDLESS, "epochs": ENDLESS} | settings.pop("train", {})
        config |= settings | {"output_dir": str(self.directory)}
        self.config = write_config(root / f"{name}.yaml", config)
        self._console = root / f"{name}.txt"
        with self._console.open("wb") as console:
            self.process = psutil.Popen(
                [sys.executable, *launcher, "-m", "mrpo_ds", "train", str(self.config)],
                env=command_environment(),
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        self.ended: float | None = None
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()
        self.family: list[psutil.Process] = []
        self.ranks: dict[int, psutil.Process] = {}

    @property
    def console(self) -> str:
        return self._console.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """What the run said to the user, without the logs and the launcher's own words."""
        return [line for line in self.console.splitlines() if line.startswith("mrpo-ds: error: ")]

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Wait until the run has logged a step, then learn which processes it has."""
        metrics = self.directory / "metrics.jsonl"
        deadline = time.monotonic() + timeout
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            assert self.ended is None and time.monotonic() < deadline, self.console[-4000:]
            time.sleep(0.05)
        self.family = [self.process, *self.process.children(recursive=True)]
        for process in self.family:
            rank = process.environ().get("RANK")
            if rank is not None:
                self.ranks[int(rank)] = process
        assert sorted(self.ranks) == [0, 1, 2, 3]

    def signal(self, number: signal.Signals, process: psutil.Process) -> None:
        self.signalled = time.monotonic()
        process.send_signal(number)

    def finish(self, within: float) -> int:
        """The exit code. Fails, after killing all, when the run or a process of it outlives the time."""
        self._waiter.join(max(0.0, self.signalled + within - time.monotonic()))
        left = [process for process in self.family if process.is_running() and process.status() != "zombie"]
        self.kill()
        assert self.ended is not None, f"still running {within:g} s after the signal: {self.console[-4000:]}"
        assert self.ended - self.signalled < within
        assert not left, f"left behind: {left}"
        return int(self.process.returncode)

    def kill(self) -> None:
        for process in self.family or [self.process]:
            if process.is_running():
                process.kill()
        self._waiter.join()

    def _wait(self) -> None:
        self.process.wait()
        self.ended = time.monotonic()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module", autouse=True)
def stopped_reference(root: Path) -> Iterator[LiveRun]:
    """A run whose reference is stopped. Begun before the other tests, since waiting for it is most of its time."""
    run = LiveRun(root, "stopped")
    run.wait_for_step(2)
    run.signal(signal.SIGSTOP, run.ranks[REFERENCE])
    yield run
    run.kill()


def torchrun() -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc_per_node", "4", "--master_port", str(free_port())]


def who(role: str, rank: int, global_rank: int) -> str:
    return re.escape(f"{role} rank {rank} (global rank {global_rank}, host {socket.gethostname()})")


WHERE = r"last seen at step \d+ in phase '[a-z ]+'"
SHORT_RUN = {"train": {"max_steps": SHORT}, "checkpoint": {"every_steps": 1}}


def test_a_killed_reference_is_named_and_the_run_resumes_as_if_nothing_had_happened(root: Path) -> None:
    run = LiveRun(root, "killed", **SHORT_RUN)
    run.wait_for_step(3)
    run.signal(signal.SIGKILL, run.ranks[SECOND_REFERENCE])
    assert run.finish(MARGIN) == 75
    assert len(run.errors) == 1
    assert re.search(f"{who('ref/ref2', 0, 3)} died: it is gone without a word, {WHERE}", run.errors[0])
    assert "Traceback" not in run.console
    done = len(read_metrics(run.directory))
    assert 3 <= done < SHORT, "the run must be killed in the middle"

    resumed = command([*torchrun(), "-m", "mrpo_ds", "train", str(run.config), "--resume", "auto"])
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    overrides = [f"output_dir={root / 'whole'}", "checkpoint.every_steps=0"]
    whole = command([*torchrun(), "-m", "mrpo_ds", "train", str(run.config), *overrides])
    assert whole.returncode == 0, whole.stderr[-4000:]
    for name in ("metrics.jsonl", "evals.jsonl"):
        rows = without_clock(read_metrics(run.directory, name))
        assert rows == without_clock(read_metrics(root / "whole", name))
    assert len(read_metrics(run.directory)) == SHORT


def test_a_killed_policy_rank_is_named_under_torchrun(root: Path) -> None:
    run = LiveRun(root, "policy", *torchrun())
    run.wait_for_step(2)
    run.signal(signal.SIGKILL, run.ranks[OTHER_POLICY])
    assert run.finish(MARGIN) == 1
    assert len(run.errors) == 1
    assert re.search(f"{who('policy', 1, 1)} died: it is gone without a word, {WHERE}", run.errors[0])


def test_the_loss_of_rank_0_is_named_by_another_rank(root: Path) -> None:
    run = LiveRun(root, "main")
    run.wait_for_step(2)
    run.signal(signal.SIGKILL, run.ranks[POLICY])
    assert run.finish(MARGIN) == 1
    assert len(run.errors) == 1
    assert re.search(f"{who('policy', 0, 0)} died: it is gone without a word, {WHERE}", run.errors[0])
    assert "Traceback" not in run.console


def test_a_run_that_is_told_to_stop_leaves_no_process_behind(root: Path) -> None:
    run = LiveRun(root, "terminated", tracking={"plots": False, "wandb": {"mode": "offline"}})
    run.wait_for_step(2)
    run.signal(signal.SIGTERM, run.process)
    assert run.finish(MARGIN) == 1
    assert len(run.errors) == 1
    assert re.search(r"stopped by SIGTERM at step \d+ in phase", run.errors[0])
    assert "Traceback" not in run.console


def test_a_stopped_reference_is_named_after_the_timeout(stopped_reference: LiveRun) -> None:
    run = stopped_reference
    assert run.finish(TIMEOUT + LAUNCHER_SECONDS + MARGIN) == 1
    assert len(run.errors) == 1
    silence = r"is stuck or cut off: no sign of life for 1\d s, "
    assert re.search(f"{who('ref/ref1', 0, 2)} {silence}{WHERE}", run.errors[0])
    assert "Traceback" not in run.console
