"""What saves memory changes no number under a real ZeRO-3 engine of two ranks, frozen parameters or not."""

import json
from typing import Any

import pytest

from tests.distributed.harness import make_topology, run_ranks
from tests.distributed.zero3_trainings import FROZEN, STEPS, train
from tests.support import make_model


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank, with every parameter sharded."""
    root = tmp_path_factory.mktemp("memory")
    sharding = root / "zero3.json"
    sharding.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    model = make_model(root / "model", scale=0.1)
    return run_ranks(train, make_topology(2), str(model), str(sharding), timeout=240)


@pytest.mark.parametrize("way", ["checkpointed", "offloaded", "both"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_checkpointing_and_offload_work_with_frozen_parameters(
    reports: list[dict[str, Any]], frozen: str, way: str
) -> None:
    for report in reports:
        losses, norms, _ = report[f"{frozen}, plain"]
        assert len(set(losses)) == STEPS and all(norm > 0 for norm in norms)
        assert report[f"{frozen}, {way}"][:2] == (losses, norms)


def test_activations_travel_and_gathered_weights_do_not(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        for name, (_, _, counts) in report.items():
            assert (counts["moved"] > 0) == name.endswith(("both", "offloaded")), name
            assert counts["weights"] == 0, name


def test_what_is_frozen_matters(reports: list[dict[str, Any]]) -> None:
    """The runs compared above are different trainings."""
    norms = {tuple(reports[0][f"{frozen}, plain"][1]) for frozen in FROZEN}
    assert len(norms) == len(FROZEN)
