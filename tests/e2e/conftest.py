"""Runs of the real command, each made once, when a test first asks for it."""

from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support import mrpo_ds, read_metrics, write_config


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


@dataclass
class Runs:
    """Runs below one directory, by name."""

    root: Path
    _done: dict[str, Run] = field(default_factory=dict)

    def train(self, name: str, config: dict[str, Any], *arguments: str, code: int = 0) -> Run:
        """The run of that name; made now, with this configuration, if it is not there yet. code: the exit code."""
        if name not in self._done:
            directory = self.root / name
            path = write_config(self.root / f"{name}.yaml", {**config, "output_dir": str(directory)})
            self._done[name] = Run(directory, mrpo_ds("train", str(path), *arguments))
        run = self._done[name]
        assert run.process.returncode == code, f"{name}: {run.process.stderr[-4000:]}"
        return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))
