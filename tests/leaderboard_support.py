"""Sweeps by the real command, without a network: a suite, a mirror and tiny models in one folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT, command_environment, make_model, make_task_files

LIMIT = 3
SUBJECTS = 12
"""Of MMLU's 57, whose tables take most of the time of a sweep of a tiny model."""
SUITE = """\
description: one task of each kind
tasks:
  - {task: arc_easy, shots: 2, metric: acc_norm}
  - {task: mmlu_social_sciences, name: mmlu, shots: 2, metric: acc, subtasks: 12, group_mean: plain}
  - {task: gsm8k, shots: 2, metric: exact_match, filter: strict-match, max_new_tokens: 8}
  - {task: gsm8k, name: flexible, shots: 2, metric: exact_match, filter: flexible-extract, max_new_tokens: 8, weight: 0}
"""


def without_network() -> list[str]:
    """What a command is put behind to have only loopback; where the system forbids that, the offline mode must do."""
    cut = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    allowed = shutil.which("unshare") and subprocess.run([*cut, "true"], capture_output=True).returncode == 0
    return cut if allowed else []


def environment(home: Path) -> dict[str, str]:
    """Of a compute node: a scratch folder for the Hub's caches, and nothing in it."""
    home.mkdir(parents=True, exist_ok=True)
    return command_environment(HF_HOME=str(home / "hf"), HF_DATASETS_CACHE=str(home / "hf" / "datasets"))


def run(home: Path, *arguments: str, timeout: float = 1800, **more: str) -> subprocess.CompletedProcess[str]:
    """A module of Python by name and its arguments, without a network."""
    command = [*without_network(), sys.executable, "-m", *arguments]
    settings = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
    return subprocess.run(command, cwd=ROOT, env=environment(home) | more, **settings)  # type: ignore[call-overload]


class World:
    """A suite, a mirror and models of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.suite = root / "mine.yaml"
        self.mirror = root / "mirror"
        self.models: dict[str, Path] = {}

    @classmethod
    def made(cls, root: Path) -> "World":
        """With SUITE, a mirror of rows written here, and a model named base."""
        world = cls(root)
        world.suite.write_text(SUITE, encoding="utf-8")
        world.models = {"base": make_model(root / "base", seed=1)}
        make_task_files(root / "rows")
        done = run(root, "mrpo_ds", "eval-mirror", "--from", str(root / "rows"), "--to", str(world.mirror))
        assert done.returncode == 0, done.stderr
        return world

    def arguments(self, out: str, *more: str, limit: int = LIMIT) -> list[str]:
        named = [f"{name}={path}" for name, path in self.models.items()]
        options = ["--suite", str(self.suite), "--offline", str(self.mirror), "--limit", str(limit)]
        return ["mrpo_ds", "eval", *named, *options, "--out", str(self.root / out), "--devices", "cpu", *more]

    def sweep(self, out: str, *more: str, code: int = 0, limit: int = LIMIT, **environment: str) -> str:
        done = run(self.root, *self.arguments(out, *more, limit=limit), **environment)
        assert done.returncode == code, done.stderr[-4000:]
        return done.stdout + done.stderr

    def start(self, out: str, *more: str) -> subprocess.Popen[bytes]:
        """A sweep that somebody is going to kill; it has a session of its own."""
        command = [*without_network(), sys.executable, "-m", *self.arguments(out, *more)]
        with (self.root / f"{out}.log").open("ab") as log:
            env = environment(self.root)
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def results(self, out: str) -> dict[str, Any]:
        return dict(json.loads((self.root / out / "results.json").read_text(encoding="utf-8")))

    def cells(self, out: str) -> dict[str, Path]:
        return {f"{path.parent.name}/{path.stem}": path for path in (self.root / out / "cells").glob("*/*.json")}

    def computed(self, out: str) -> list[str]:
        """What was computed to its end, in order: "model/task"."""
        lines = (self.root / out / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        return [f"{row['model']}/{row['task']}" for row in map(json.loads, lines)]
