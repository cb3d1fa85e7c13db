"""The reference store in real runs: filled by the score command, by runs of any placement, and after kills."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.reference.shards import read_folder, shards_of
from tests.conftest import Run, Runs
from tests.support import (
    ROOT,
    base_config,
    command_environment,
    free_port,
    make_rows,
    mrpo_ds,
    without_clock,
    write_config,
    write_jsonl,
)
from tests.warm import Warm

ROWS = 50


def config(root: Path, store: Path, **topology: Any) -> dict[str, Any]:
    values = base_config(root)
    values["topology"] |= {"store": str(store), **topology}
    return values


def score(warm: Warm, store: Path, values: dict[str, Any]) -> str:
    """What `mrpo-ds score` writes, on as many ranks as the configuration has."""
    store.with_suffix(".out").unlink(missing_ok=True)  # of an earlier time
    run = warm("score", str(write_config(store.with_suffix(".yaml"), values)))
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stderr


def found(text: str) -> list[str]:
    """'10 of 50' per reference, in order: what score found; afterwards all rows must be there."""
    before_and_after = re.findall(r"(\d+ of \d+) rows are stored", text)
    assert set(before_and_after[1::2]) == {f"{ROWS} of {ROWS}"}
    return before_and_after[::2]


def loaded(run: Run) -> list[str]:
    """The references whose weights were loaded."""
    return re.findall(r"\| reference (\w+): \S+ in float32", run.process.stderr)


@pytest.fixture(scope="module")
def served(warm_runs: Runs) -> Run:
    """The run that all others must repeat; without a store."""
    values = base_config(warm_runs.root)
    values["checkpoint"] = {"every_steps": 1, "keep": 9}
    return warm_runs.train("served", values)


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same numbers up to the last bits, which the company of a row in its forward decides."""
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(without_clock(ours), without_clock(theirs), strict=True):
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), (one["step"], name)


def test_scored_beforehand_then_read_without_loading_a_reference(warm_runs: Runs, warm: Warm, served: Run) -> None:
    store = warm_runs.root / "beforehand"
    values = config(warm_runs.root, store, placement="stored", store_check_fraction=0)
    refused = warm_runs.train("refused", values, code=2)
    said = f"the store lacks {ROWS} of {ROWS} rows of ref1, {ROWS} of {ROWS} rows of ref2. Fill it with `mrpo-ds score"
    assert said in refused.process.stderr and "Traceback" not in refused.process.stderr
    assert not (refused.directory / "config.yaml").exists() and not store.exists()
    four_ranks = {**values, "topology": {**values["topology"], "placement": "served", "policy": 2}}
    assert found(score(warm, store, four_ranks)) == [f"0 of {ROWS}"] * 2
    run = warm_runs.train("read", values)
    assert loaded(run) == []
    assert all(row["ref/ref1/stored_fraction"] == row["ref/ref2/stored_fraction"] == 1 for row in run.metrics)
    same(run.metrics, served.metrics)
    same([row for row in run.evals if row["step"]], [row for row in served.evals if row["step"]])


@pytest.mark.parametrize("placement", ["served", "colocated"])
def test_a_run_with_models_fills_the_store_and_the_next_one_reads_the_same_bits(
    warm_runs: Runs, served: Run, placement: str
) -> None:
    values = config(warm_runs.root, warm_runs.root / f"by-{placement}", placement=placement)
    values["train"]["max_steps"] = 8  # 5 an epoch
    first = warm_runs.train(f"fills-{placement}", values)
    assert [row["ref/ref2/stored_fraction"] for row in first.metrics] == [0.0] * 5 + [1.0] * 3
    again = warm_runs.train(f"reads-{placement}", values)
    assert [row["ref/ref2/stored_fraction"] for row in again.metrics] == [1.0] * 8
    assert without_clock(again.metrics) == without_clock(first.metrics)
    assert first.metrics[0]["loss"] == served.metrics[0]["loss"], "an empty store changes no bit"


def test_a_changed_row_and_a_changed_model_are_scored_anew(warm_runs: Runs, warm: Warm) -> None:
    store, data = warm_runs.root / "changes", warm_runs.root / "data" / "changes.jsonl"
    values = config(warm_runs.root, store)
    values["references"][1]["path"] = str(shutil.copytree(values["references"][1]["path"], warm_runs.root / "own"))
    rows = make_rows(40)
    values["data"]["train"] = [{"source": str(write_jsonl(data, rows))}]
    assert found(score(warm, store, values)) == ["0 of 50", "0 of 50"]
    rows[7]["rejected"] += " Maybe."
    write_jsonl(data, [*rows[20:], *rows[:20]])
    assert found(score(warm, store, values)) == ["49 of 50", "49 of 50"]
    weights = warm_runs.root / "own" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert found(score(warm, store, values)) == ["50 of 50", "0 of 50"]


def test_served_then_colocated_then_stored_is_one_run(warm_runs: Runs, warm: Warm, served: Run) -> None:
    """Stopped after steps 1 and 3, each time with its newest checkpoint copied out, and resumed elsewhere."""
    root, store = warm_runs.root, warm_runs.root / "moving"
    checkpoint = {"every_steps": 1, "keep": 9}
    first = shutil.copytree(served.directory / "checkpoints" / "step-00000001", root / "after-1" / "step-00000001")
    values = {**config(root, store, placement="colocated"), "checkpoint": checkpoint}
    colocated = warm_runs.train("then-colocated", values, "--resume", str(first))
    third = colocated.directory / "checkpoints" / "step-00000003"
    third = shutil.copytree(third, root / "after-3" / "step-00000003")
    values = {**config(root, store, placement="stored"), "checkpoint": checkpoint}
    score(warm, store, values)
    stored = warm_runs.train("then-stored", values, "--resume", str(third))
    assert [row["step"] for row in colocated.metrics] == [2, 3, 4] and [row["step"] for row in stored.metrics] == [4]
    same([*served.metrics[:1], *colocated.metrics[:2], *stored.metrics], served.metrics)
    assert stored.metrics[0]["ref/ref1/stored_fraction"] == 1


def test_scoring_that_is_killed_is_taken_up_where_it_was(warm_runs: Runs, warm: Warm) -> None:
    store = warm_runs.root / "killed"
    values = config(warm_runs.root, store)
    path = write_config(warm_runs.root / "killed-first.yaml", values)
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-m", "mrpo_ds", "score", str(path)],
        cwd=ROOT,
        env=command_environment(MASTER_ADDR="127.0.0.1", **launched),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not any(shards_of(folder) for folder in store.glob("*")):  # the first batch of the first reference
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first, second = found(score(warm, store, values))
    assert first != "0 of 50" and second == "0 of 50"
    assert found(score(warm, store, values)) == ["50 of 50", "50 of 50"]


def test_scoring_into_a_store_that_cannot_be_written_fails_and_says_why(warm_runs: Runs, warm: Warm) -> None:
    store = warm_runs.root / "a-file"
    store.write_text("no directory")
    run = warm("score", str(write_config(warm_runs.root / "a-file.yaml", config(warm_runs.root, store))))
    assert run.returncode == 1 and "cannot be written: Not a directory. Make room, or name another" in run.stderr
    assert "reference ref1: 50 of 50 rows are not stored. Their log-probs are not finite, or" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_commands_outside_a_launcher(warm_runs: Runs, warm: Warm) -> None:
    """check says what is missing; score starts its processes itself."""
    store = warm_runs.root / "outside"
    path = str(write_config(warm_runs.root / "outside.yaml", config(warm_runs.root, store, placement="stored")))
    checked = warm.alone("check", path)
    assert checked.returncode == 2 and "the store lacks 50 of 50 rows of ref1" in checked.stderr
    scored = mrpo_ds("score", path, "topology.policy=2")
    assert scored.returncode == 0, scored.stderr[-3000:]
    assert "starting 2 processes on this machine" in scored.stderr
    assert {len(read_folder(folder)[0]) for folder in store.iterdir()} == {2 * ROWS}


def test_score_without_references_is_refused(warm_runs: Runs, warm: Warm) -> None:
    values = base_config(warm_runs.root, references=0)
    values["loss"] = {"name": "cpo"}
    run = warm.alone("score", str(write_config(warm_runs.root / "nobody.yaml", values)))
    assert run.returncode == 2 and "references is []; allowed: at least one reference to score with." in run.stderr
