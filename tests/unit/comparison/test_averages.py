"""A comparison's averages are the leaderboard's: those of results.md, for the same cells."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.comparison.command import compare
from mrpo_ds.errors import DataError
from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cells, view
from mrpo_ds.leaderboard.suites import Suite, SuiteTask, load_suite
from mrpo_ds.leaderboard.table import collect, write_results
from tests.unit.comparison.directories import BASE_MODEL, make_run

SIZES = (40, 60)
"""Documents of the leaves of a group, in turn."""


def leaves_of(task: SuiteTask) -> list[str]:
    return list(task.baselines) or [f"{task.task}_{number}" for number in range(task.subtasks)]


def call_of(tasks: Sequence[SuiteTask], head: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the worker computes in one call, with answers that are drawn."""
    draw = random.Random(f"{seed} {tasks[0].task}")
    keys = [f"{task.metric},{task.filter}" for task in tasks]
    computed, samples = {}, []
    leaves = leaves_of(tasks[0])
    for number, leaf in enumerate(leaves):
        n = SIZES[number % len(SIZES)]
        rows = [{key: float(draw.random() < 0.6) for key in keys} for _ in range(n)]
        scores = {}
        for key in keys:
            mean = sum(row[key] for row in rows) / n
            scores[key] = [mean, (mean * (1 - mean) / (n - 1)) ** 0.5]
        computed[leaf] = {"n": n, "scores": scores}
        for place, row in enumerate(rows):
            name = f"{leaf}/{place}" if len(leaves) > 1 else place
            samples.append({"doc_id": name, "prompt_hash": "p", "target_hash": "t", "scores": row})
    call = {"lm_eval_task": tasks[0].task, "shots": tasks[0].shots, "max_new_tokens": tasks[0].max_new_tokens}
    rest = {"limit": None, "seed": 1234, "versions": {}, "truncated_requests": 0, "settings": call}
    return {**head, "shots": tasks[0].shots, **rest, "computed": computed, "samples": samples}


def put_sweep(out: Path, name: str, suite: Suite, models: dict[str, Path | str]) -> dict[str, float | None]:
    """A sweep's folder as the command leaves it. Returns the averages of its results.json by model."""
    for seed, (model, path) in enumerate(models.items()):
        for tasks in suite.calls().values():
            cell = call_of(tasks, {"model": model, "model_path": str(path)}, seed)
            for task in tasks:
                Cells(out).write(view(cell, task), model, task.title)
    candidates = [Candidate(model, str(path)) for model, path in models.items()]
    cells = {(model, task.title): Cells(out).read(model, task.title) for model in models for task in suite.tasks}
    wanted = {place: cell["settings"] for place, cell in cells.items() if cell is not None}
    results = collect(name, suite, candidates, Cells(out), wanted, [], None)
    write_results(results, out)
    (out / "suite.json").write_text(json.dumps(asdict(suite)), encoding="utf-8")
    averages = {row["model"]: row["average"] for row in results["models"]}
    return {model: None if one is None else one["value"] for model, one in averages.items()}


def benchmarks(out: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads((out / "benchmarks.json").read_text())["rows"]}


def runs_of(root: Path) -> dict[str, Path]:
    return {loss: make_run(root / loss, loss) for loss in ("dpo", "mrpo")}


@pytest.mark.parametrize("name", ["open_llm_leaderboard", "tpo_paper", "open_llm_leaderboard_v2"])
def test_an_average_is_that_of_the_table_of_the_sweep(name: str, tmp_path: Path) -> None:
    """Columns of weight 0 do not count, IFEval's two count half, and guessing is 0 where the suite says so."""
    runs = runs_of(tmp_path)
    models: dict[str, Path | str] = {"base": BASE_MODEL, **{loss: run / "model" for loss, run in runs.items()}}
    theirs = put_sweep(tmp_path / "sweep", name, load_suite(name), models)
    compare([str(run) for run in runs.values()], tmp_path / "out", results=[str(tmp_path / "sweep")])
    ours = benchmarks(tmp_path / "out")
    assert {label: row[f"average of {name}"] for label, row in ours.items()} == theirs
    assert len(set(theirs.values())) == 3 and None not in theirs.values()
    page = (tmp_path / "out" / "benchmarks.md").read_text()
    assert ("guessing is 0" in page) == (name == "open_llm_leaderboard_v2")
    assert f"average of {name}: over " in page


def test_each_suite_has_its_average_whichever_folder_it_is_in(tmp_path: Path) -> None:
    """Of the run's own eval/ and of --results; the tasks that both have are shown once."""
    runs = runs_of(tmp_path)
    theirs: dict[str, dict[str, float | None]] = {"mrpo_paper": {}, "mine": {}}
    mine = Suite(tasks=[SuiteTask(task="winogrande", shots=5, metric="acc")])
    for loss, run in runs.items():
        models: dict[str, Path | str] = {loss: run / "model"}
        paper = load_suite("mrpo_paper")
        theirs["mrpo_paper"] |= put_sweep(run / "eval" / "mrpo_paper", "mrpo_paper", paper, models)
        theirs["mine"] |= put_sweep(tmp_path / "more" / loss, f"suites/{loss}/mine.yaml", mine, models)
    compare([str(run) for run in runs.values()], tmp_path / "out", results=[str(tmp_path / "more")])
    for label, row in benchmarks(tmp_path / "out").items():
        for suite, averages in theirs.items():
            assert row[f"average of {suite}"] == averages[label]
        assert row["average of mine"] == row["winogrande (acc, 5-shot)"]


def test_without_a_suite_or_with_a_column_missing_there_is_no_average(tmp_path: Path) -> None:
    runs = runs_of(tmp_path)
    for loss, run in runs.items():
        put_sweep(run / "eval" / "smoke", "smoke", load_suite("smoke"), {loss: run / "model"})
    words = [str(run) for run in runs.values()]
    (runs["mrpo"] / "eval/smoke/cells/mrpo/gsm8k.json").unlink()
    compare(words, tmp_path / "out")
    assert not [key for key in benchmarks(tmp_path / "out")["dpo"] if "average" in key]
    said = "No average of smoke: mrpo lack some of arc_easy, winogrande, truthfulqa_mc2, gsm8k."
    assert said in (tmp_path / "out" / "benchmarks.md").read_text()
    for run in runs.values():
        (run / "eval/smoke/suite.json").unlink()
    compare(words, tmp_path / "again")
    page = (tmp_path / "again" / "benchmarks.md").read_text()
    assert "average" not in page and "winogrande (acc, 0-shot)" in page


def test_two_suites_of_one_name_have_no_common_average(tmp_path: Path) -> None:
    """The second run was evaluated after arc_easy had lost its weight: its average is of other columns."""
    runs = runs_of(tmp_path)
    smoke = load_suite("smoke")
    put_sweep(runs["dpo"] / "eval" / "smoke", "smoke", smoke, {"dpo": runs["dpo"] / "model"})
    changed = replace(smoke, tasks=[replace(smoke.tasks[0], weight=0.0), *smoke.tasks[1:]])
    put_sweep(runs["mrpo"] / "eval" / "smoke", "smoke", changed, {"mrpo": runs["mrpo"] / "model"})
    compare([str(run) for run in runs.values()], tmp_path / "out")
    page = (tmp_path / "out" / "benchmarks.md").read_text()
    assert "No average of smoke: mrpo lack" in page and "No average of smoke #2: dpo lack" in page


def test_cells_of_an_earlier_state_of_the_suite_do_not_count(tmp_path: Path) -> None:
    """Of a model that the last sweep into the folder left out: its winogrande was of 0 shots, and now 5 are asked."""
    runs = runs_of(tmp_path)
    smoke = load_suite("smoke")
    out = tmp_path / "sweep"
    put_sweep(out, "smoke", smoke, {"mrpo": runs["mrpo"] / "model"})
    tasks = [replace(task, shots=5) if task.task == "winogrande" else task for task in smoke.tasks]
    put_sweep(out, "smoke", replace(smoke, tasks=tasks), {"dpo": runs["dpo"] / "model"})
    compare([str(run) for run in runs.values()], tmp_path / "out", results=[str(out)])
    assert "No average of smoke: mrpo lack" in (tmp_path / "out" / "benchmarks.md").read_text()


def test_cells_that_were_computed_in_two_ways_have_no_average(tmp_path: Path) -> None:
    """What a --redo with another limit leaves when one of its columns fails: results.md has no average either."""
    runs = runs_of(tmp_path)
    out = tmp_path / "sweep"
    put_sweep(out, "smoke", load_suite("smoke"), {name: run / "model" for name, run in runs.items()})
    asked = [str(run) for run in runs.values()]
    compare(asked, tmp_path / "before", results=[str(out)])
    assert "average of smoke" in (tmp_path / "before" / "benchmarks.md").read_text()
    for name in runs:
        cell = Cells(out).read(name, "winogrande")
        assert cell is not None
        Cells(out).write({**cell, "settings": {**cell["settings"], "limit": 8}}, name, "winogrande")
    compare(asked, tmp_path / "out", results=[str(out)])
    assert "average of smoke" not in (tmp_path / "out" / "benchmarks.md").read_text()


def test_seeds_have_a_mean_average_and_its_spread(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"dpo-{seed}", seed=seed) for seed in (0, 1)]
    suite = load_suite("smoke")
    theirs = put_sweep(tmp_path / "sweep", "smoke", suite, {run.name: run / "model" for run in runs})
    compare([str(run) for run in runs], tmp_path / "out", results=[str(tmp_path / "sweep")])
    row = benchmarks(tmp_path / "out")["dpo"]
    one, other = theirs.values()
    assert one is not None and other is not None and one != other
    assert row["average of smoke"] == pytest.approx((one + other) / 2) and row["average of smoke stderr"] is None
    (seeds,) = json.loads((tmp_path / "out" / "benchmarks_seeds.json").read_text())["rows"]
    assert seeds["average of smoke std"] == pytest.approx(abs(one - other) / 2**0.5)


def test_a_damaged_suite_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "dpo")
    put_sweep(run / "eval", "smoke", load_suite("smoke"), {"dpo": run / "model"})
    (run / "eval" / "suite.json").write_text('{"tasks": 3}', encoding="utf-8")
    with pytest.raises(DataError, match=r"suite.json is no suite .*; `mrpo-ds eval` writes it anew"):
        compare([str(run)], tmp_path / "out")
