"""Every benchmark runs to its end at its smallest size, and its result says what it must."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, command, need

SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct"
TRL = ROOT / ".cache/trl/bin/python"
pytestmark = pytest.mark.real_models


def run(name: str, out: Path, *options: str) -> dict[str, Any]:
    """The result of a benchmark."""
    need(SMOLLM2.exists(), "the tokenizer of SmolLM2 (make models)")
    done = command(["-m", f"benchmarks.{name}", "--device", "cpu", "--out", str(out), *options], timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert found["command"].startswith(f"python -m benchmarks.{name} ")
    assert found["commit"] and found["hardware"]["cores"] and found["versions"]["torch"]
    return found


STEP = ("--synthetic", "tiny", "--batch", "4", "--steps", "2", "--turns", "1", "--threads", "1")


def test_our_side_of_a_step(tmp_path: Path) -> None:
    found = run("bench_step", tmp_path / "step.json", *STEP, "--responses", "4", "--micro-batch-tokens", "512", "1024")
    assert found["settings"]["micro_batch_tokens"] in (512, 1024)
    assert found["work"]["pairs_a_step"] == 12 and found["work"]["prompts"] == 8
    ours = found["sides"]["ours"]
    assert ours["pairs_a_second"]["median"] == pytest.approx(3 * ours["prompts_a_second"]["median"], rel=1e-4)
    assert found["turns"]["ours"][0]["losses"][0] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.benchmarks
@pytest.mark.skipif(not TRL.exists(), reason="needs TRL in .cache/trl (make bench-step); it is no part of CI")
@pytest.mark.parametrize("options", [("--responses", "2"), ("--responses", "4", "--per-device", "3")])
def test_both_sides_of_a_step_have_the_same_losses(tmp_path: Path, options: tuple[str, ...]) -> None:
    more = ("--trl", str(TRL), "--learning-rate", "1e-3", *options)
    found = run("bench_step", tmp_path / "step.json", *STEP, *more)
    assert found["agreement"]["largest_difference_of_losses"] < 1e-4
    assert found["agreement"]["largest_relative_difference_of_chosen_logps"] < 1e-5
    assert found["ratios"]["TRL"]["times_faster"] > 0
    assert found["settings"]["liger"]  # that it runs, or what it said


def test_log_probs_are_measured_and_extrapolated(tmp_path: Path) -> None:
    sizes = ("--vocabularies", "4000", "--tokens", "256", "8192", "--hidden", "32", "--turns", "1")
    found = run("bench_logps", tmp_path / "logps.json", *sizes, "--memory-gib", "0.15", "--chunk-rows", "1")
    rows = {(row["variant"], row["tokens"]): row for row in found["cases"]}
    assert not rows["log_softmax", 256]["extrapolated"] and not rows["ours", 8192]["extrapolated"]
    assert rows["log_softmax", 8192]["extrapolated"]
    block = 4 * 4000 * 8192 / 2**30
    assert rows["log_softmax", 8192]["peak_gib"]["median"] > 1.5 * block
    (chunked,) = found["chunks"]
    assert chunked["peak_gib"]["median"] < 0.5 * block


def test_prefix_sharing_is_measured_against_its_bound(tmp_path: Path) -> None:
    sizes = ("--models", "tiny", "--ratios", "2", "--responses", "2", "--response", "16", "--tokens", "192")
    found = run("bench_prefix", tmp_path / "prefix.json", *sizes, "--turns", "1")
    assert [row["work"] for row in found["cases"]] == ["policy", "reference"]
    assert found["largest_disagreement"] < 1e-4
    for row in found["cases"]:
        assert row["bound"] == 1.5
        assert row["places"]["shared"] < row["places"]["repeated"]


TINY_RUNS = ("--model", "tiny", "--reference", "tiny", "--batch", "4", "--steps", "2", "--turns", "1")


@pytest.mark.benchmarks
def test_references_by_number_and_placement(tmp_path: Path) -> None:
    out = tmp_path / "references.json"
    found = run("bench_references", out, *TINY_RUNS, "--most-references", "1", "--parts", "steps", "store")
    cases = [(row["references"], row["placement"]) for row in found["steps"]["cases"]]
    assert cases == [(0, "none"), (1, "served"), (1, "colocated"), (1, "stored")]
    assert all(0 <= row["wait_share"]["median"] < 1 for row in found["steps"]["cases"])
    assert found["store"]["first_epoch"]["least_stored_fraction"] == 0.0
    assert found["store"]["second_run_first_epoch"]["least_stored_fraction"] == 1.0
    bridge = ("--parts", "bridge", "--most-processes", "3", "--messages", "20", "--pause", "0.001")
    again = run("bench_references", out, *TINY_RUNS, *bridge)
    assert again["store"] == found["store"]  # parts that were not asked for stay
    assert {row["policy_ranks"] for row in again["bridge"]["cases"]} == {1, 2}
    assert again["bridge"]["fits"]["waited_seconds"]["points"] == len(again["bridge"]["cases"])


@pytest.mark.benchmarks
def test_served_and_stored_references_take_turns(tmp_path: Path) -> None:
    found = run("bench_references", tmp_path / "references.json", *TINY_RUNS, "--parts", "served_or_stored")
    part = found["served_or_stored"]
    assert part["step_time_ratio"] > 0
    assert len(part["mrpo_2_served"]["peak_gib_of_ranks"]) == 3 and len(part["dpo_stored"]["peak_gib_of_ranks"]) == 1


@pytest.mark.benchmarks
def test_scale_by_ranks_and_the_split_of_the_start(tmp_path: Path) -> None:
    sizes = ("--models", "tiny", "--ranks", "2", "--batch", "4", "--steps", "2", "--turns", "1")
    found = run("bench_scale", tmp_path / "scale.json", *sizes)
    (row,) = found["cases"]
    assert row["ranks"] == 2 and row["parameters"] > 49152 * 32
    assert {"imports", "load", "preflight", "first step"} <= set(row["start"])
    assert all(seconds >= 0 for seconds in row["start"].values())
