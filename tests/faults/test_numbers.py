"""A model says NaN: the update does not happen, a file says where it began, and the step may be skipped.

The models are damaged for real: a NaN in the embedding of one token, which only some rows contain.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mrpo_ds.data.order import step_ids
from tests.conftest import Runs
from tests.distributed.harness import make_topology, run_ranks
from tests.faults.skipped_steps import parameters_after
from tests.support import base_config, make_model, make_rows, read_metrics, without_clock, write_jsonl

SIGN = "\u00a7"
"""What the damaged models cannot read: its last byte is a token of its own."""
ROWS, BATCH = 40, 8


def marked_rows(runs: Runs, name: str, *steps: int) -> str:
    """A data file in which one row of each of these steps has the sign in its better answer, and no other row has."""
    rows = make_rows(ROWS)
    for step in steps:
        rows[row_of(step) - 1]["chosen"] += SIGN
    return str(write_jsonl(runs.root / "data" / f"{name}.jsonl", rows))


def row_of(step: int) -> int:
    """The number, from 1, of the row that marked_rows marks for a step."""
    return max(step_ids(ROWS, BATCH, 0, step - 1)) + 1


def damaged(path: Path) -> Path:
    """A copy of a model that knows no number for the sign."""
    target = path.with_name(f"{path.name}-damaged")
    if not target.exists():
        shutil.copytree(path, target)
        tensors = load_file(target / "model.safetensors")
        token = AutoTokenizer.from_pretrained(path)(SIGN, add_special_tokens=False)["input_ids"][-1]
        tensors["model.embed_tokens.weight"][token] = math.nan
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def config_of(runs: Runs, name: str, *steps: int, **train: Any) -> dict[str, Any]:
    """Two policy ranks and two references of one untied family; the rows of some steps have the sign."""
    config = base_config(runs.root)
    first, second = (make_once(runs.root / "models" / f"untied-{seed}", seed) for seed in (0, 1))
    config["model"]["path"] = config["references"][0]["path"] = str(first)
    config["references"][1]["path"] = str(second)
    config["topology"]["policy"] = 2
    config["train"] |= {"batch_size": BATCH} | train
    config["data"]["train"] = [{"source": marked_rows(runs, name, *steps)}]
    return config


def make_once(path: Path, seed: int) -> Path:
    return path if path.exists() else make_model(path, "qwen2", seed)


@pytest.fixture(scope="module", autouse=True)
def started(warm_runs: Runs) -> None:
    """Every run that no other one must precede, begun at once."""
    for name, config in configs(warm_runs).items():
        warm_runs.start(name, config)


def configs(runs: Runs) -> dict[str, dict[str, Any]]:
    reference = config_of(runs, "reference", 3)
    reference["references"][1]["path"] = str(damaged(runs.root / "models" / "untied-1"))
    reference["topology"]["references"] = {"ref2": 2}
    policy = config_of(runs, "policy", 2)
    skipping = config_of(runs, "skipping", 2, 4, max_skipped_steps=1, max_steps=5) | {"checkpoint": {"every_steps": 1}}
    for config in (policy, skipping):
        config["model"]["path"] = str(damaged(runs.root / "models" / "untied-0"))
    dropping = json.loads(json.dumps(reference))
    dropping["loss"]["nonfinite"] = "drop"
    return {"reference": reference, "policy": policy, "skipping": skipping, "dropping": dropping}


def failure(directory: Path, step: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((directory / "failures" / f"step-{step:08d}.json").read_text(encoding="utf-8"))
    return record


def test_a_reference_of_which_one_rank_meets_a_nan_is_named_with_the_row(warm_runs: Runs) -> None:
    run = warm_runs.train("reference", configs(warm_runs)["reference"], code=1)
    place = f"reference:{row_of(3)} ({warm_runs.root / 'data' / 'reference.jsonl'} row {row_of(3)})"
    assert f"the log-probs of reference ref2 of {place} are not finite at step 3" in run.process.stderr
    assert "failures/step-00000003.json has the numbers" in run.process.stderr
    assert run.process.stderr.count("mrpo-ds: error: ") == 1 and "Traceback" not in run.process.stderr
    assert [row["step"] for row in run.metrics] == [1, 2]
    record = failure(run.directory, 3)
    assert (record["step"], record["not_finite"], record["num_rows"]) == (3, "reference ref2", 1)
    assert math.isfinite(record["loss"])  # what is left of the batch looks well: that is why it must not be trained on
    (row,) = record["rows"]
    assert row["source"].endswith(f"reference.jsonl row {row_of(3)}") and row["responses"][0].endswith(SIGN)
    assert row["references"]["ref2"]["logps"][0] == "nan" and math.isfinite(row["references"]["ref2"]["logps"][1])
    assert all(map(math.isfinite, row["policy_logps"] + row["references"]["ref1"]["logps"] + row["policy_lengths"]))
    assert set(row["weights"]) == {"ref1", "ref2"}


def test_the_innocent_rows_beside_a_nan_are_not_dropped_with_it(warm_runs: Runs) -> None:
    """A NaN spreads over all sequences that share its row of a forward."""
    run = warm_runs.train("dropping", configs(warm_runs)["dropping"])
    assert [(row["dropped"], row["skipped_steps"]) for row in run.metrics] == [(0, 0), (0, 0), (1, 0), (0, 0)]
    assert not (run.directory / "failures").exists()


def test_a_nan_in_a_weight_of_the_policy_stops_all_ranks_and_names_the_row(warm_runs: Runs) -> None:
    run = warm_runs.train("policy", configs(warm_runs)["policy"], code=1)
    place = f"policy:{row_of(2)} ({warm_runs.root / 'data' / 'policy.jsonl'} row {row_of(2)})"
    assert f"the policy's log-probs of {place} are not finite at step 2" in run.process.stderr
    assert [row["step"] for row in run.metrics] == [1]
    record = failure(run.directory, 2)
    assert (record["not_finite"], record["loss"], record["num_rows"]) == ("policy", "nan", 1)
    (row,) = record["rows"]
    assert row["not_finite"] == "policy" and row["policy_logps"][0] == "nan"
    assert all(map(math.isfinite, row["references"]["ref1"]["logps"] + row["references"]["ref2"]["logps"]))


def test_a_step_is_skipped_counted_and_one_too_many_stops(warm_runs: Runs) -> None:
    config = configs(warm_runs)["skipping"]
    run = warm_runs.train("skipping", config, code=1)
    assert [row["skipped_steps"] for row in run.metrics] == [0, 1, 1]
    skipped = run.metrics[1]
    assert skipped["loss"] is skipped["grad_norm"] is None and skipped["num_tokens"] == run.metrics[0]["num_tokens"]
    assert all(math.isfinite(row[name]) for row in (run.metrics[0], run.metrics[2]) for name in ("loss", "grad_norm"))
    assert run.process.stderr.count("The step is skipped (1 of at most 1).") == 1
    assert "1 steps were skipped before (train.max_skipped_steps=1)" in run.process.stderr
    assert sorted(path.name for path in (run.directory / "failures").iterdir()) == [
        "step-00000002.json",
        "step-00000004.json",
    ]

    third = str(run.directory / "checkpoints" / "step-00000003")  # its weights are those of step 1 and one more
    again = warm_runs.train("again", config, "--resume", third, code=1)
    assert "1 steps were skipped before" in again.process.stderr
    more = {**config, "train": {**config["train"], "max_skipped_steps": 2}}
    to_the_end = warm_runs.train("more", more, "--resume", third)
    assert [(row["step"], row["skipped_steps"]) for row in to_the_end.metrics] == [(4, 2), (5, 2)]
    assert to_the_end.metrics[0]["loss"] is None and math.isfinite(to_the_end.metrics[1]["loss"])
    whole = warm_runs.train("whole", more)
    assert without_clock(whole.metrics)[3:] == without_clock(read_metrics(to_the_end.directory))


SHARDED = [(preset, dtype) for preset in ("zero1", "zero2", "zero3") for dtype in (torch.float32, torch.bfloat16)]
SHARDED_ALWAYS = [("zero1", torch.float32), ("zero2", torch.bfloat16), ("zero3", torch.bfloat16)]


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [pytest.param(*one, marks=[] if one in SHARDED_ALWAYS else pytest.mark.all_faults) for one in SHARDED],
    ids=str,
)
def test_a_step_that_was_left_out_leaves_nothing_in_the_sharded_gradients(
    tmp_path: Path, preset: str, dtype: torch.dtype
) -> None:
    """What two ranks have after good, bad, good is to the bit what they have after good, good."""
    model = make_model(tmp_path / "model", "qwen2")
    for rank in run_ranks(parameters_after, make_topology(2), str(model), preset, dtype, timeout=120):
        assert len(rank) == 4 and len(set(rank)) == 1
