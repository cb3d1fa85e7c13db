"""A run goes on with other numbers of policy ranks, precisions and places of the optimizer; real ZeRO-3 everywhere.

With the same number of ranks the metrics repeat to the last bit. Otherwise only the order of sums differs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mrpo_ds.checkpoint import find_damage
from tests.e2e.conftest import Run, Runs
from tests.support import base_config, without_clock, write_config

HALF, STEPS = 3, 6
TOLERANCE = 1e-5
"""Relative, of fp32 metrics after resuming; the largest seen is a tenth of it."""
SHARDINGS: dict[str, dict[str, Any]] = {
    "all kept whole": {},  # ZeRO-3 keeps small parameters whole on every rank: here all of them
    "some kept whole": {"stage3_param_persistence_threshold": 100},
    "many sub-groups": {"stage3_param_persistence_threshold": 0, "sub_group_size": 2000},
    "offload": {
        "stage3_param_persistence_threshold": 0,
        "sub_group_size": 2000,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}


class Halves:
    """Whole runs, and second halves of them that go on from the first half's checkpoint."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def whole(self, sharding: str, ranks: int, dtype: str = "fp32") -> Run:
        return self._runs.train(f"{sharding} {ranks} {dtype}", self._config(sharding, ranks, dtype))

    def second_half(self, sharding: str, written: int, ranks: int, dtype: str = "fp32") -> Run:
        whole = self.whole(sharding, written, dtype)
        checkpoint = whole.directory / "checkpoints" / f"step-{HALF:08d}"
        name = f"{sharding} {written} to {ranks} {dtype}"
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


@pytest.mark.parametrize(
    ("sharding", "ranks", "dtype"),
    [
        ("all kept whole", 1, "fp32"),
        ("some kept whole", 2, "fp32"),
        ("many sub-groups", 2, "fp32"),
        ("many sub-groups", 3, "bf16"),
        ("some kept whole", 2, "bf16"),
        ("offload", 2, "fp32"),
        ("offload", 2, "bf16"),
    ],
)
def test_the_same_number_of_ranks_repeats_every_bit(halves: Halves, sharding: str, ranks: int, dtype: str) -> None:
    resumed, whole = halves.second_half(sharding, ranks, ranks, dtype), halves.whole(sharding, ranks, dtype)
    assert len(last_steps(resumed)) == STEPS - HALF
    assert last_steps(resumed) == last_steps(whole)
    assert without_clock(resumed.evals)[-1] == without_clock(whole.evals)[-1]


@pytest.mark.parametrize(
    ("sharding", "written", "ranks"),
    [
        ("all kept whole", 1, 2),
        ("some kept whole", 2, 1),
        ("some kept whole", 2, 3),
        ("many sub-groups", 2, 4),
        ("offload", 2, 3),
    ],
)
def test_another_number_of_ranks_follows_the_same_trajectory(
    halves: Halves, sharding: str, written: int, ranks: int
) -> None:
    resumed, whole = halves.second_half(sharding, written, ranks), halves.whole(sharding, written)
    assert len(last_steps(resumed)) == STEPS - HALF
    worst = 0.0
    for ours, theirs in zip(last_steps(resumed), last_steps(whole), strict=True):
        for name, value in theirs.items():
            worst = max(worst, abs(ours[name] - value) / max(1e-2, abs(value)))
            assert ours[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-7), name
    print("WORST", worst)


def test_a_checkpoint_is_numbers_under_names_and_nothing_else(halves: Halves) -> None:
    checkpoint = halves.whole("some kept whole", 2).directory / "checkpoints" / f"step-{STEPS:08d}"
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


@pytest.mark.parametrize(
    ("sharding", "problem"),
    [
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}, "offload_optimizer.device is 'nvme'"),
        ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "offload_optimizer.ratio is 0.5"),
        ({"mics_shard_size": 1}, "mics_shard_size is 1"),
    ],
)
def test_what_cannot_be_restored_is_refused_before_training(
    warm_runs: Runs, tmp_path: Path, sharding: dict[str, Any], problem: str
) -> None:
    config = base_config(warm_runs.root, references=0) | {"loss": {"name": "simpo"}, "checkpoint": {"every_steps": 1}}
    file = tmp_path / "sharding.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, **sharding}}))
    config |= {"deepspeed": str(file), "output_dir": str(tmp_path / "run")}
    run = warm_runs._command("train", str(write_config(tmp_path / "run.yaml", config)))
    assert run.returncode == 2 and f"zero_optimization.{problem}" in run.stderr, run.stderr[-3000:]
    assert "checkpoint.every_steps=0" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()
