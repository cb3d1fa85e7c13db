"""Two methods of two seeds each, really trained: eval-preferences and compare say what training itself recorded."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from tests.conftest import Run, Runs
from tests.support import base_config, make_rows, mrpo_ds, write_config, write_jsonl
from tests.warm import Warm

METHODS = {"dpo": {"name": "dpo", "beta": 0.1}, "mrpo": {"name": "mrpo", "beta": 0.1}}
SAME = {"rel": 1e-4, "abs": 1e-4}
"""Forwards of other sizes differ in last bits, in fp32."""


@pytest.fixture(scope="module")
def trained(warm_runs: Runs) -> dict[str, Run]:
    """'dpo-0' and so on -> its run."""
    configs = {}
    for name, loss in METHODS.items():
        for seed in (0, 1):
            config = base_config(warm_runs.root)
            config |= {"loss": loss, "evaluate": {"every_steps": 2}}
            config["topology"] = {"policy": 1, "placement": "colocated", "timeout_seconds": 60}
            config["train"] = {**config["train"], "seed": seed}
            configs[f"{name}-{seed}"] = config
    train = warm_runs.begin(configs)
    return {name: train(name) for name in configs}


@pytest.fixture(scope="module")
def measured(trained: dict[str, Run], warm: Warm) -> dict[str, str]:
    """Name of a run -> what eval-preferences printed for it; by itself it measures that run's model."""
    said = {}
    for name in ("dpo-0", "mrpo-0"):
        done = warm("eval-preferences", str(trained[name].directory / "config.yaml"))
        assert done.returncode == 0, done.stderr[-3000:]
        said[name] = done.stderr
    return said


def result(folder: Path, model: str, name: str = "eval") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "preferences" / model / f"{name}.json").read_text())
    return found


def test_the_numbers_are_those_of_training(trained: dict[str, Run], measured: dict[str, str]) -> None:
    for name in measured:
        run = trained[name]
        ours = result(run.directory / "eval", name)["metrics"]
        base = result(run.directory / "eval", "base")["metrics"]
        for metrics, row in ((ours, run.evals[-1]), (base, run.evals[0])):
            assert metrics["objective/margin"]["mean"] == pytest.approx(row["rewards/margins"], **SAME)
            assert metrics["logps/accuracy"]["mean"] == pytest.approx(row["logps/accuracies"], **SAME)
            if (name, row["step"]) != ("dpo-0", 0):  # all rewards are 0, and in training ties but for rounding
                assert metrics["objective/accuracy"]["mean"] == pytest.approx(row["rewards/accuracies"], **SAME)
                assert metrics["objective/ties"]["mean"] == pytest.approx(row["rewards/ties"], **SAME)
        assert base["against/ref1/ties"]["mean"] == 1, "the base model is its own reference, scored once"
        other = result(run.directory / "eval", "ref2")["metrics"]
        assert other["logps/margin"]["mean"] == pytest.approx(run.evals[0]["ref/ref2/margin"], **SAME)
    own = result(trained["mrpo-0"].directory / "eval", "mrpo-0")["metrics"]
    assert own["vref/margin"] == own["objective/margin"]


def test_intervals_are_around_the_means_and_say_how_they_were_made(trained: dict[str, Run], measured: Any) -> None:
    found = result(trained["mrpo-0"].directory / "eval", "mrpo-0")
    assert found["bootstrap"]["resamples"] == 2000 and found["bootstrap"]["seed"] == 0
    for name, metric in found["metrics"].items():
        assert metric["low"] <= metric["mean"] <= metric["high"] and metric["n"] == 10, name
        values = found["documents"]["values"][name]
        assert mean(values) == pytest.approx(metric["mean"]) and len(values) == 10
    assert len(set(found["documents"]["prompt_hash"])) == 10


def test_any_sets_and_models_on_any_number_of_ranks(trained: dict[str, Run], measured: Any, warm: Warm) -> None:
    """Two files, all four models, two ranks. What was scored before is found, and the new rows give one rank's bits."""
    root = trained["dpo-0"].directory.parent
    other = write_jsonl(root / "other.jsonl", make_rows(12, seed=300))
    config = str(trained["mrpo-0"].directory / "config.yaml")
    held_out = str(root / "data" / "eval.jsonl")
    models = [str(run.directory) for run in trained.values()]
    asked = ["--models", *models, "--data", held_out, str(other), "--out"]
    done = warm("eval-preferences", config, "topology.policy=2", *asked, str(root / "both"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reference model.mrpo-0: 10 of 22 rows are stored" in done.stderr
    assert "reference model.mrpo-1: 0 of 22 rows are stored" in done.stderr
    before = result(trained["mrpo-0"].directory / "eval", "mrpo-0")
    assert result(root / "both", "mrpo-0")["documents"] == before["documents"]
    again = warm("eval-preferences", config, *asked, str(root / "again"))
    assert "reference model.mrpo-1: 22 of 22 rows are stored" in again.stderr
    for model in ("base", "ref2", *trained):
        for name in ("eval", "other"):
            assert result(root / "both", model, name) == result(root / "again", model, name)
    rows = json.loads((root / "both" / "preferences" / "table.json").read_text())["rows"]
    assert [row["set"] for row in rows] == ["eval"] * 6 + ["other"] * 6


def test_compare_says_what_training_recorded(trained: dict[str, Run], measured: Any) -> None:
    root = trained["dpo-0"].directory.parent
    out = root / "compared"
    done = mrpo_ds("compare", *(str(run.directory) for run in trained.values()), "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads((out / "held_out.json").read_text())["rows"]}
    assert list(rows) == ["base", "dpo", "mrpo"]
    for name in METHODS:
        for shown, recorded in (("accuracy", "rewards/accuracies"), ("margin", "rewards/margins")):
            values = [trained[f"{name}-{seed}"].evals[-1][recorded] for seed in (0, 1)]
            assert rows[name][shown] == pytest.approx(mean(values))
            assert rows[name][f"{shown} std"] == pytest.approx(stdev(values))
        assert rows[name]["seeds"] == "0, 1" and rows[name]["step"] == 4
    assert "### Held-out preferences at the end of training" in done.stdout
    assert {path.name for path in (out / "plots").iterdir()} >= {"accuracy.png", "margin.png"}


def test_compare_pairs_the_documents_of_eval_preferences(trained: dict[str, Run], measured: Any, warm: Warm) -> None:
    root = trained["dpo-0"].directory.parent
    runs = [str(trained[name].directory) for name in ("dpo-0", "mrpo-0")]
    done = warm.alone("compare", *runs, "--out", str(root / "paired"))
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "paired" / "preferences_paired.json").read_text())["rows"]
    ours, theirs = (
        result(trained[name].directory / "eval", name)["documents"]["values"]["logps/margin"]
        for name in ("mrpo-0", "dpo-0")
    )
    difference = [one - other for one, other in zip(ours, theirs, strict=True)]
    row = next(row for row in found if row["method"] == "mrpo")
    assert row["eval: logps/margin"] == pytest.approx(mean(difference))
    assert row["eval: logps/margin stderr"] == pytest.approx(stdev(difference) / len(difference) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.jsonl"], "data source 'nowhere.jsonl' does not exist"),
        (["--data", "{eval}", "--adapter", "hh-rlhf"], "hh-rlhf"),
        (["--models", "{root}"], "is no model: it has no config.json"),
        (["--resamples", "0"], "--resamples is 0; allowed: >= 1"),
    ],
)
def test_bad_input_to_eval_preferences(trained: dict[str, Run], warm: Warm, arguments: list[str], said: str) -> None:
    root = trained["dpo-0"].directory.parent
    words = [word.format(eval=root / "data" / "eval.jsonl", root=root) for word in arguments]
    done = warm("eval-preferences", str(trained["dpo-0"].directory / "config.yaml"), *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_to_compare(trained: dict[str, Run], warm: Warm, tmp_path: Path) -> None:
    good = str(trained["dpo-0"].directory)
    (tmp_path / "config.yaml").write_text((trained["dpo-0"].directory / "config.yaml").read_text())
    for run, said in ((str(tmp_path / "x"), "is no run directory"), (str(tmp_path), "has nothing to compare")):
        done = warm.alone("compare", good, run, "--out", str(tmp_path / "out"))
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_run_that_does_not_exist_yet_needs_a_place_for_results(
    trained: dict[str, Run], warm: Warm, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "new.yaml", base_config(trained["dpo-0"].directory.parent))
    done = warm.alone("eval-preferences", str(config))
    assert done.returncode == 2 and "--out is missing, and output_dir" in done.stderr
