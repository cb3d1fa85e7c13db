"""A run goes on with other numbers of policy ranks, precisions, ZeRO stages and places of the optimizer.

With the same number of ranks the metrics repeat to the last bit. Otherwise only the order of sums differs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mrpo_ds.checkpoint import find_damage
from tests.conftest import Run, Runs
from tests.support import base_config, without_clock

HALF, STEPS = 3, 6
TOLERANCE = 1e-5
"""Relative, of fp32 metrics after resuming; the largest difference seen with other numbers of ranks is 5e-7."""
SHARDINGS: dict[str, dict[str, Any]] = {
    "whole": {},  # ZeRO-3 keeps small parameters whole on every rank: here all of them
    "mixed": {"stage3_param_persistence_threshold": 100, "sub_group_size": 2000},
    "offloaded": {
        "stage3_param_persistence_threshold": 100,
        "sub_group_size": 2000,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
}


class Halves:
    """Whole runs, and second halves of them that go on from the first half's checkpoint."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def whole(self, sharding: str, ranks: int, dtype: str = "fp32") -> Run:
        return self._runs.train(f"{sharding} {ranks} {dtype}", self._config(sharding, ranks, dtype))

    def second_half(self, whole: Run, sharding: str, ranks: int, dtype: str = "fp32") -> Run:
        checkpoint = whole.directory / "checkpoints" / f"step-{HALF:08d}"
        name = f"{whole.directory.name} to {sharding} {ranks}"
        return self._runs.train(name, self._config(sharding, ranks, dtype), "--resume", str(checkpoint))

    def _config(self, sharding: str, ranks: int, dtype: str) -> dict[str, Any]:
        values = base_config(self._runs.root, references=0)
        file = self._runs.root / f"{sharding}.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": 3, **SHARDINGS[sharding]}}))
        values["model"]["dtype"] = dtype
        values["topology"]["policy"] = ranks
        values["loss"] = {"name": "simpo"}
        values["train"] |= {"batch_size": 12, "micro_batch_size": 1, "max_steps": STEPS, "weight_decay": 0.1}
        return values | {"deepspeed": str(file), "checkpoint": {"every_steps": HALF}}


@pytest.fixture(scope="module")
def halves(warm_runs: Runs) -> Halves:
    return Halves(warm_runs)


def last_steps(run: Run) -> list[dict[str, float]]:
    return [row for row in without_clock(run.metrics) if row["step"] > HALF]


def of_the_matrix(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.matrix)


@pytest.mark.parametrize(
    ("sharding", "ranks", "dtype"),
    [
        ("whole", 1, "fp32"),
        of_the_matrix("mixed", 2, "fp32"),
        ("mixed", 2, "bf16"),
        ("offloaded", 2, "bf16"),
        ("zero1", 2, "fp32"),
        of_the_matrix("zero1", 2, "bf16"),
        of_the_matrix("zero2", 3, "fp32"),
        ("zero2", 2, "bf16"),
    ],
)
def test_the_same_number_of_ranks_repeats_every_bit(halves: Halves, sharding: str, ranks: int, dtype: str) -> None:
    whole = halves.whole(sharding, ranks, dtype)
    resumed = halves.second_half(whole, sharding, ranks, dtype)
    assert len(last_steps(resumed)) == STEPS - HALF
    assert last_steps(resumed) == last_steps(whole)
    assert without_clock(resumed.evals)[-1] == without_clock(whole.evals)[-1]


@pytest.mark.parametrize(
    ("written", "sharding", "ranks"),
    [
        (("whole", 1), "whole", 2),
        (("mixed", 2), "mixed", 1),
        of_the_matrix(("mixed", 2), "mixed", 3),
        of_the_matrix(("mixed", 2), "mixed", 4),
        (("mixed", 2), "offloaded", 2),
        (("mixed", 2), "zero2", 3),
        (("zero2", 3), "mixed", 2),
        of_the_matrix(("zero2", 3), "zero1", 2),
    ],
)
def test_another_number_of_ranks_stage_or_place_of_the_optimizer_follows_the_same_trajectory(
    halves: Halves, written: tuple[str, int], sharding: str, ranks: int
) -> None:
    whole = halves.whole(*written)
    resumed = halves.second_half(whole, sharding, ranks)
    assert len(last_steps(resumed)) == STEPS - HALF
    for ours, theirs in zip(last_steps(resumed), last_steps(whole), strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-7), name


def test_a_checkpoint_is_numbers_under_names_and_nothing_else(halves: Halves) -> None:
    checkpoint = halves.whole("mixed", 2).directory / "checkpoints" / f"step-{STEPS:08d}"
    assert find_damage(checkpoint) == ""
    files = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    assert files == [*(f"policy/rank-0000{rank}-of-00002.safetensors" for rank in (0, 1)), "state.json"]
    record = json.loads((checkpoint / "state.json").read_text())
    assert (record["format"], record["world_size"], record["optimizer_steps"]) == (2, 2, STEPS)
    stored: dict[str, int] = {}
    for file in files[:2]:
        with safe_open(checkpoint / file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                stored[key] = stored.get(key, 0) + opened.get_slice(key).get_shape()[0]
    full = {}
    for name, shape in record["parameters"].items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        full |= {f"{kind}/{name}": count for kind in ("fp32", "exp_avg", "exp_avg_sq")}
    assert stored == full


def test_what_cannot_be_restored_is_refused_before_training(warm_runs: Runs, tmp_path: Path) -> None:
    config = base_config(warm_runs.root, references=0) | {"loss": {"name": "simpo"}, "checkpoint": {"every_steps": 1}}
    file = tmp_path / "sharding.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}))
    run = warm_runs.train("nvme", config | {"deepspeed": str(file)}, code=2)
    assert (
        f"{file}: zero_optimization.offload_optimizer.device is 'nvme', and checkpoints cannot hold the state of such "
        "runs; allowed: cpu, or checkpoint.every_steps=0." in run.process.stderr
    )
    assert "Traceback" not in run.process.stderr and not run.directory.exists()
