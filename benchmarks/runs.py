"""Real runs of `mrpo-ds train` for benchmarks: their configuration and rows, their ranks as processes, metrics."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ROOT, Child, Finished, Place, free_port, rank_place, succeed

TRAIN_ROWS = ROOT / "launch/data/quickstart.train.jsonl"
LISTS = ROOT / "launch/data/ranked.jsonl"
ANY = 1.0
"""Limits of the data that a benchmark does not have: it chooses its rows itself."""


@dataclass(frozen=True)
class Plan:
    """What the runs of a benchmark have in common. Paths are of models on this disk."""

    model: Path
    rows: Path
    """In the layout of the adapter `ranked`, as write_rows makes them."""
    scratch: Path
    batch: int
    """Prompts of a step."""
    steps: int
    dtype: str = "fp32"
    device: str = "cpu"
    max_length: int = 512
    micro_batch_tokens: int = 2048
    gradient_checkpointing: bool = False
    learning_rate: float = 1e-6

    def tree(self, name: str, loss: dict[str, Any], references: Sequence[tuple[str, Path]]) -> dict[str, Any]:
        """A whole configuration: that loss against these references (name, path), colocated."""
        return {
            "model": {"path": str(self.model), "dtype": self.dtype} | self._checkpointing(),
            "references": [
                {"name": reference, "path": str(path), "dtype": self.dtype, "batch_tokens": self.micro_batch_tokens}
                for reference, path in references
            ],
            "topology": {"policy": 1, "placement": "colocated", "share_gpus": True},
            "loss": loss,
            "data": {
                "train": [{"source": str(self.rows), "adapter": "ranked"}],
                "view": "ranked" if loss["name"] == "mdpo" else "pair",
                "max_length": self.max_length,
                "max_dropped_fraction": ANY,
                "max_truncated_fraction": ANY,
                "max_misread_fraction": ANY,
                "cache_dir": str(self.scratch / "cache"),
            },
            "train": {
                "batch_size": self.batch,
                "micro_batch_tokens": self.micro_batch_tokens,
                "max_steps": self.steps,
                "epochs": 1000,
                "learning_rate": self.learning_rate,
                "scheduler": "constant",
                "warmup_ratio": 0.0,
            },
            "deepspeed": str(ROOT / "ds_configs/zero3.json"),
            "tracking": {"wandb": {"mode": "disabled"}, "plots": False},
            "checkpoint": {"every_steps": 0},
            "output_dir": str(self.scratch / name),
        }

    def _checkpointing(self) -> dict[str, bool]:
        return {"gradient_checkpointing": self.gradient_checkpointing}


@dataclass(frozen=True)
class Trained:
    """What a run has left, and its processes."""

    metrics: list[dict[str, Any]]
    """A row per step."""
    ranks: list[Finished]

    def steady(self, name: str) -> list[float]:
        """A metric of all steps but the first, which compiles and allocates."""
        return [row[name] for row in self.metrics[1:]]

    @property
    def wait_shares(self) -> list[float]:
        """Of all steps but the first: the wait for references, as a share of the step."""
        pairs = zip(self.steady("perf/reference_wait_seconds"), self.steady("perf/seconds_per_step"), strict=True)
        return [wait / step for wait, step in pairs]


PROGRAM = ("-m", "mrpo_ds")
"""What python runs as a rank."""


def train(tree: dict[str, Any], places: Sequence[Place], program: Sequence[str] = PROGRAM) -> Trained:
    """Run one configuration, with one process for each place, as a launcher would; ends the benchmark when it fails."""
    return start_ranks([*program, "train", *_saved(tree)], Path(tree["output_dir"]), places)


def score(tree: dict[str, Any], places: Sequence[Place]) -> Trained:
    """Fill the store of a configuration."""
    return start_ranks([*PROGRAM, "score", *_saved(tree)], Path(tree["output_dir"]), places)


def _saved(tree: dict[str, Any]) -> list[str]:
    output = Path(tree["output_dir"])
    config = output.with_name(output.name + ".yaml")
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return [str(config)]


def start_ranks(arguments: Sequence[str], output: Path, places: Sequence[Place]) -> Trained:
    """Run python with these arguments as the ranks at these places."""
    command = [sys.executable, *arguments]
    port = free_port()
    children = [Child(command, rank_place(place, rank, len(places), port)) for rank, place in enumerate(places)]
    ranks = [child.wait() for child in children]
    for rank in ranks:
        succeed(rank, command)
    return Trained(read_jsonl(output / "metrics.jsonl"), ranks)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- rows ------------------------------------------------------------------------------------------------------------


def write_rows(plan: Plan, source: Path, adapter: str, responses: int) -> Path:
    """Choose the rows of a plan: its first ones that fit uncut and have so many responses of different scores.

    Args:
        plan: says how many (batch * steps), their longest and who tokenizes.
        source: a file of preferences.
        adapter: what its columns mean.
        responses: R; of a row with more, the best and the worst and those evenly between.

    Returns:
        The file, which is plan.rows, for the adapter `ranked`. Ends the benchmark when there are too few.
    """
    from mrpo_ds.config.load import load_config
    from mrpo_ds.material import prepare

    wanted = plan.batch * plan.steps
    tree = plan.tree("choose", {"name": "mdpo"}, [("start", plan.model)])
    tree["data"]["train"] = [{"source": str(source), "adapter": adapter, "limit": max(1000, 10 * wanted)}]
    config = plan.scratch / "choose.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    examples = prepare(load_config(str(config)), only="policy").splits["train"]
    rows = []
    for example in examples:
        columns = evenly(example.scores or tuple(range(len(example.responses), 0, -1)), responses)
        if columns and all(map(example.is_complete, range(len(example.responses)))):
            rows.append(_row(example, columns))
    if len(rows) < min(wanted, 1) or len(rows) < plan.batch:
        raise SystemExit(
            f"{source.name} has {len(rows)} rows with {responses} responses of different scores within "
            f"{plan.max_length} tokens; a step needs {plan.batch}. Choose another file, or smaller steps."
        )
    plan.rows.write_text("".join(json.dumps(row) + "\n" for row in rows[:wanted]), encoding="utf-8")
    return plan.rows


def evenly(scores: Sequence[float], count: int) -> list[int]:
    """Columns of so many different scores, which fall: the first, the last, and evenly between; [] if there are fewer.

    With a loss over ordered pairs, ties would give prompts different numbers of pairs, and so other weights.
    """
    different = [column for column, score in enumerate(scores) if column == 0 or score < scores[column - 1]]
    if len(different) < count:
        return []
    return [different[round(index * (len(different) - 1) / (count - 1))] for index in range(count)]


def _row(example: Any, columns: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in example.prompt],
        "responses": [example.responses[column] for column in columns],
        "scores": list(range(len(columns), 0, -1)),
    }
