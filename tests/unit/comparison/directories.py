"""Run directories as training and the evaluations leave them, with numbers that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support import write_jsonl

BASE_MODEL = "models/base"


def make_run(
    directory: Path, loss: str = "dpo", seed: int = 0, evals: Sequence[dict[str, Any]] = (), **settings: Any
) -> Path:
    """A finished run. evals: rows of evals.jsonl. settings: 'section.key'-less overrides of config.yaml's sections."""
    directory.mkdir(parents=True)
    config: dict[str, Any] = {
        "model": {"path": BASE_MODEL, "attention": "sdpa"},
        "references": [{"name": "one", "path": BASE_MODEL}],
        "loss": {"name": loss, "beta": 0.1},
        "data": {"train": [{"source": "train.jsonl"}], "eval": [{"source": "eval.jsonl"}], "max_length": 256},
        "train": {"seed": seed, "learning_rate": 1e-6, "micro_batch_size": 4},
        "tracking": {"wandb": {"mode": "disabled"}},
        "output_dir": str(directory),
    }
    for section, values in settings.items():
        config[section] = {**config[section], **values}
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_jsonl(directory / "evals.jsonl", list(evals))
    rows = {"train": "40 rows, SHA-256 aa", "eval": "10 rows, SHA-256 bb"}
    (directory / "summary.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return directory


def evaluation(step: int, accuracy: float, margin: float = 0.0, ties: float = 0.0) -> dict[str, Any]:
    """A row of evals.jsonl."""
    return {
        "step": step,
        "prompts": 10.0,
        "rewards/accuracies": accuracy,
        "rewards/margins": margin,
        "rewards/ties": ties,
        "logps/accuracies": 0.5,
    }


def put_cell(
    run: Path, values: Sequence[float | None], model: str = "own", task: str = "arc_easy", **changes: Any
) -> Path:
    """The cell of a sweep for the run's model ('own') or for its base ('base'): one value per document."""
    known = [value for value in values if value is not None]
    cell: dict[str, Any] = {
        "model": model,
        "model_path": str(run / "model") if model == "own" else BASE_MODEL,
        "task": task,
        "shots": 0,
        "metric": "acc",
        "filter": "none",
        "value": sum(known) / len(known),
        "stderr": 0.1,
        "n": len(values),
        "seed": 1234,
        "limit": None,
        "versions": {"lm_eval": "0.4.13"},
        "samples": [
            {"doc_id": number, "prompt_hash": f"p{number}", "target_hash": "t", "value": value}
            for number, value in enumerate(values)
        ],
        **changes,
    }
    path = run / "eval" / "cells" / model / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell), encoding="utf-8")
    return path
