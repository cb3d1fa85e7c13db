"""Runs of the real command, each made once and shared between the tests of a file.

The cache of prepared data is a folder of this session, and never the user's own.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support import mrpo_ds, read_metrics, write_config
from tests.warm import Warm

Command = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True)
class Run:
    """A finished `mrpo-ds train`."""

    directory: Path
    process: CompletedProcess[str]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory)

    @property
    def evals(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory, "evals.jsonl")


class Runs:
    """Runs below one directory, by name, two at a time, or one where another worker of pytest-xdist has its own."""

    def __init__(self, root: Path, command: Command = mrpo_ds) -> None:
        self.root = root
        self.command = command
        self._pool = ThreadPoolExecutor(max_workers=1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
        self._started: dict[str, Future[Run]] = {}

    def start(self, name: str, config: dict[str, Any], *arguments: str) -> None:
        """Begin the run of that name with this configuration, unless it has begun."""
        if name not in self._started:
            directory = self.root / name
            path = write_config(self.root / f"{name}.yaml", {**config, "output_dir": str(directory)})
            self._started[name] = self._pool.submit(
                lambda: Run(directory, self.command("train", str(path), *arguments, timeout=500))
            )

    def train(self, name: str, config: dict[str, Any], *arguments: str, code: int = 0) -> Run:
        """The run of that name when it is done; begun now if it has not been. code: its exit code."""
        self.start(name, config, *arguments)
        run = self._started[name].result()
        assert run.process.returncode == code, f"{name}: {run.process.stderr[-4000:]}"
        return run

    def begin(self, configs: dict[str, dict[str, Any]]) -> Callable[..., Run]:
        """Begin several runs by name; what comes back is train for these, with the name alone (and code=)."""
        for name, config in configs.items():
            self.start(name, config)
        return lambda name, code=0: self.train(name, configs[name], code=code)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs of the command as it is typed."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """The command with everything imported; its servers serve all tests."""
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def warm_runs(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Iterator[Runs]:
    """Runs that begin with everything imported."""
    runs = Runs(tmp_path_factory.mktemp("warm"), warm)
    yield runs
    runs.close()


def pytest_configure(config: pytest.Config) -> None:
    os.environ["MRPO_DS_CACHE"] = tempfile.mkdtemp(prefix="mrpo-ds-test-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["MRPO_DS_CACHE"], ignore_errors=True)
