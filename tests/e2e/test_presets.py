"""The files of ds_configs train: where weights and moments lie changes the speed and the memory, not the numbers.

Each is run with the smallest parameters sharded too; as shipped, ZeRO-3 would keep all of these tiny models whole.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, Runs
from tests.support import ROOT, base_config, without_clock

STEPS = 3
LOSS_TOLERANCE = 1e-6
"""Absolute, of fp32 losses near 1: another AdamW (DeepSpeedCPUAdam) and other gathers round otherwise."""
NAMES = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
HPZ = {"zeropp": 2}
"""Preset -> ranks per node that stand for the eight of the file."""


def sharding_of(root: Path, name: str) -> str:
    """The preset with all parameters sharded and, where it counts ranks, a node of two."""
    content = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    zero = content["zero_optimization"]
    zero |= {"stage3_param_persistence_threshold": 0, "sub_group_size": 2000}
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = 2
    path = root / f"{name}.json"
    path.write_text(json.dumps(content))
    return str(path)


def config_of(root: Path, name: str, ranks: int) -> dict[str, Any]:
    values = base_config(root, references=0)
    values["topology"]["policy"] = ranks
    values["loss"] = {"name": "simpo"}
    values["train"] |= {"batch_size": 8, "micro_batch_size": 1, "max_steps": STEPS, "weight_decay": 0.1}
    return values | {"deepspeed": sharding_of(root, name), "checkpoint": {"every_steps": 2}}


@pytest.fixture(scope="module")
def trained(warm_runs: Runs) -> Any:
    """(preset, ranks) -> its run."""
    return lambda name, ranks: warm_runs.train(f"{name} {ranks}", config_of(warm_runs.root, name, ranks))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains_as_plain_zero3_does(trained: Any, name: str, ranks: int) -> None:
    ours, plain = trained(name, ranks), trained("zero3", ranks)
    print([row["loss"] for row in ours.metrics], [row["loss"] for row in plain.metrics])
    losses = [row["loss"] for row in plain.metrics]
    assert len(losses) == STEPS and max(losses) - min(losses) > 100 * LOSS_TOLERANCE
    assert [row["loss"] for row in ours.metrics] == pytest.approx(losses, abs=LOSS_TOLERANCE)


@pytest.mark.parametrize("name", ["zero3_offload_optimizer", "zeropp"])
def test_a_preset_resumes_to_the_bit(warm_runs: Runs, trained: Any, name: str) -> None:
    whole: Run = trained(name, 4)
    checkpoint = whole.directory / "checkpoints" / "step-00000002"
    resumed = warm_runs.train(f"{name} resumed", config_of(warm_runs.root, name, 4), "--resume", str(checkpoint))
    assert without_clock(resumed.metrics)[-1] == without_clock(whole.metrics)[-1]
