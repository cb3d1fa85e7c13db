"""Run directories as training writes them, of any length."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Write = Callable[..., Path]


def row(step: int, references: tuple[str, ...] = ("one", "two")) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    per_reference = {f"ref/{name}/weight": 1 / len(references) for name in references}
    return {
        "step": step,
        "loss": math.log(2) / (step + 1),
        "rewards/accuracies": 0.5,
        "rewards/margins": 0.1 * step,
        "learning_rate": 1e-6,
        **per_reference,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """(name, rows of training, of evaluation, config, done) -> the directory of a run."""

    def write(
        name: str = "run",
        train: list[dict[str, Any]] | None = None,
        evals: list[dict[str, Any]] | None = None,
        config: dict[str, Any] | None = None,
        done: bool = True,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        train = [row(step) for step in range(1, 11)] if train is None else train
        write_rows(directory / "metrics.jsonl", train)
        write_rows(directory / "evals.jsonl", [row(0), row(10)] if evals is None else evals)
        settings = {"loss": {"name": "mrpo", "beta": 0.1}, "references": [{"name": "one"}, {"name": "two"}]}
        (directory / "config.yaml").write_text(yaml.safe_dump({**settings, **(config or {})}), encoding="utf-8")
        if done:
            (directory / "summary.json").write_text(json.dumps({"steps": train[-1]["step"] if train else 0}))
        return directory

    return write
