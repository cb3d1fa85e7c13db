"""What a sweep, or a shard of one, says and writes when it ends."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard import sweep
from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.options import Options
from mrpo_ds.leaderboard.schedule import Unit
from mrpo_ds.leaderboard.suites import Suite, SuiteTask

X, Y = SuiteTask(task="x", metric="acc"), SuiteTask(task="y", metric="acc")
MODELS = [Candidate("a", "path/a"), Candidate("b", "path/b")]


def sweep_of(out: Path, **options: Any) -> tuple[sweep.Sweep, list[Unit]]:
    asked = Options(models=["a=path/a", "b=path/b"], suite="mine", out=str(out), limit=2, **options)
    one = sweep.Sweep(asked, Suite(tasks=[X, Y]), MODELS, out, ["cpu"], None)
    head = {"settings": {"limit": 2}}
    return one, [Unit(model, [task], {"head": head}, 1) for model in MODELS for task in (X, Y)]


def put(one: sweep.Sweep, model: str, task: SuiteTask, limit: int = 2) -> None:
    cell = {"model": model, "settings": {"limit": limit}, "versions": {}, "samples": [], "truncated_requests": 0}
    cell |= {"computed": {task.task: {"n": 2, "scores": {"acc,none": [0.5, 0.5]}}}, "value": 0.5, "stderr": 0.5, "n": 2}
    one.cells.write(cell, model, task.title)


def ended(one: sweep.Sweep, ours: list[Unit], units: list[Unit], failed: dict[str, str]) -> int:
    return sweep._report(one, ours, sweep._write_table(one, units), failed)


def table_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text(encoding="utf-8")))


def test_every_cell_that_is_missing_is_named_and_1(tmp_path: Path, console: None, capsys: Any) -> None:
    one, units = sweep_of(tmp_path)
    put(one, "a", X)
    put(one, "a", Y, limit=8)  # --redo has failed
    put(one, "b", X)
    assert ended(one, units, units, {"a/y": "out of memory"}) == 1
    said = capsys.readouterr()
    assert "failed: a/y: out of memory" in said.err and "failed: b/y: its worker gave no answer" in said.err
    assert "2 of 4 cells failed" in said.err
    assert "| a | 50.00 +- 50.00 | - | - |" in said.out
    put(one, "a", Y)
    put(one, "b", Y)
    assert ended(one, units, units, {}) == 0
    assert table_of(tmp_path)["missing"] == []


def test_a_shard_answers_for_its_own_cells_and_writes_the_table(tmp_path: Path, console: None, capsys: Any) -> None:
    one, units = sweep_of(tmp_path, shard="0/2")
    put(one, "a", X)
    put(one, "a", Y)
    assert ended(one, units[:2], units, {}) == 0
    assert table_of(tmp_path)["missing"] == ["b/x", "b/y"]
    assert "shard 0/2 is done; 2 cells of others are missing so far" in capsys.readouterr().err
    put(one, "b", X)
    assert ended(one, units[2:], units, {"b/y": "no"}) == 1
    assert table_of(tmp_path)["missing"] == ["b/y"]


def test_cells_of_another_shard_are_not_looked_at_before(tmp_path: Path) -> None:
    one, units = sweep_of(tmp_path, shard="0/2")
    put(one, "b", X, limit=8)
    assert sweep._not_done(one, units[:2]) == units[:2]
    with pytest.raises(ConfigError, match="1 cells in .* limit 8 then, 2 now"):
        sweep._not_done(one, units)


def test_a_cell_of_another_shard_is_shown_by_the_metric_of_today(tmp_path: Path) -> None:
    """The suite was edited after it was computed: acc is 0.5 there, acc_norm 0.75, and f1 nothing."""
    one, units = sweep_of(tmp_path, shard="0/2")
    for model in ("a", "b"):
        for task in (X, Y):
            put(one, model, task)
            cell = one.cells.read(model, task.title)
            assert cell is not None
            cell["computed"][task.task]["scores"]["acc_norm,none"] = [0.75, 0.25]
            one.cells.write(cell, model, task.title)
    columns = [replace(X, metric="acc_norm"), replace(Y, metric="f1")]
    edited = replace(one, suite=Suite(tasks=columns))
    table = sweep._write_table(edited, units)
    assert [row["scores"]["x"]["value"] for row in table["models"]] == [0.75, 0.75]
    assert table["missing"] == ["a/y", "b/y"]
    assert table["otherwise"]["b/y"] == ["y has no 'f1,none'; it has acc,none, acc_norm,none"]


def test_what_a_command_line_is_told_for_the_same_figures() -> None:
    plain = Options(models=["a"], suite="mine")
    assert plain.words == []
    asked = Options(
        models=["a"], suite="mine", offline="d", limit=2, batch_size=4, dtype="bf16", chat_template=False, redo=True
    )
    words = ["--offline", "d", "--limit", "2", "--batch-size", "4", "--dtype", "bf16", "--no-chat-template", "--redo"]
    assert asked.words == words
