"""Cells: whole or not there, never of other settings; the columns of one call come from each other."""

import json
import os

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cells, differences, view
from mrpo_ds.leaderboard.scores import ScoreError
from mrpo_ds.leaderboard.suites import Suite, SuiteTask
from mrpo_ds.leaderboard.table import as_csv, as_markdown, collect, write_results

STRICT = SuiteTask(task="gsm8k", shots=5, metric="exact_match", filter="strict-match")
FLEXIBLE = SuiteTask(task="gsm8k", name="flexible", shots=5, metric="exact_match", filter="flexible-extract", weight=0)
KEYS = {
    "model",
    "model_path",
    "task",
    "shots",
    "metric",
    "filter",
    "value",
    "stderr",
    "n",
    "samples",
    "versions",
    "seed",
}


def make_cell(strict: float = 0.5) -> dict:
    scores = {"exact_match,strict-match": [strict, 0.5], "exact_match,flexible-extract": [1.0, 0.0]}
    samples = [
        {
            "doc_id": number,
            "prompt_hash": f"p{number}",
            "target_hash": f"t{number}",
            "scores": {"exact_match,strict-match": float(number), "exact_match,flexible-extract": 1.0},
        }
        for number in range(2)
    ]
    head = {"model": "base", "model_path": "m", "shots": 5, "limit": 2, "versions": {"lm_eval": "0.4.13"}, "seed": 1234}
    computed = {"gsm8k": {"n": 2, "scores": scores}}
    return {**head, "settings": {"limit": 2}, "computed": computed, "samples": samples, "truncated_requests": 0}


def test_a_cell_is_read_as_it_was_written_and_clears_its_failure(tmp_path):
    cells = Cells(tmp_path)
    cells.note_failure("base", "gsm8k", "out of memory")
    assert cells.failure("base", "gsm8k").read_text(encoding="utf-8") == "out of memory"
    assert cells.read("base", "gsm8k") is None
    cell = view(make_cell(), STRICT)
    cells.write(cell, "base", "gsm8k")
    assert cells.read("base", "gsm8k") == cell
    assert not cells.failure("base", "gsm8k").exists()
    assert cell.keys() >= KEYS | {"limit"}
    assert [sample["value"] for sample in cell["samples"]] == [0.0, 1.0]
    assert (cell["task"], cell["value"], cell["stderr"], cell["n"]) == ("gsm8k", 0.5, 0.5, 2)


def test_what_a_kill_leaves_of_a_write_is_no_cell(tmp_path):
    cells = Cells(tmp_path)
    path = cells.path("base", "gsm8k")
    path.parent.mkdir(parents=True)
    part = path.with_name("gsm8k.json.node-1-77.tmp")
    part.write_text('{"settings": {', encoding="utf-8")
    os.utime(part, (0, 0))
    assert cells.read("base", "gsm8k") is None
    cells.write(view(make_cell(), STRICT), "base", "gsm8k")
    assert os.listdir(path.parent) == ["gsm8k.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}}'])
def test_a_file_that_is_no_cell_is_refused(tmp_path, text):
    cells = Cells(tmp_path)
    cells.path("base", "gsm8k").parent.mkdir(parents=True)
    cells.path("base", "gsm8k").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read .*remove it"):
        cells.read("base", "gsm8k")


def test_another_column_of_the_call_comes_from_the_same_cell():
    strict = view(make_cell(), STRICT)
    flexible = view(strict, FLEXIBLE)
    assert (flexible["task"], flexible["value"]) == ("flexible", 1.0)
    assert [sample["value"] for sample in flexible["samples"]] == [1.0, 1.0]
    assert view(flexible, STRICT) == strict
    with pytest.raises(ScoreError):
        view(strict, SuiteTask(task="gsm8k", metric="acc"))


def test_other_settings_are_named():
    cell = make_cell()
    assert differences(cell, {"limit": 2}) == []
    assert differences(cell, {"limit": 16, "data": "x"}) == ["data None then, 'x' now", "limit 2 then, 16 now"]


def table(tmp_path, *models: str, notes: list[str], wanted_limit: int = 2) -> dict:
    cells = Cells(tmp_path)
    for model in models:
        for column in (STRICT, FLEXIBLE):
            cells.write(view(make_cell(), column), model, column.title)
    suite = Suite(description="maths", tasks=[STRICT, FLEXIBLE])
    candidates = [Candidate("base", "m"), Candidate("mrpo", "n")]
    wanted = {(one.name, column.title): {"limit": wanted_limit} for one in candidates for column in suite.tasks}
    return collect("mine", suite, candidates, cells, wanted, notes, wanted_limit)


def test_the_table_in_its_three_forms(tmp_path):
    results = table(tmp_path, "base", "mrpo", notes=["a note"])
    assert results["missing"] == []
    assert results["models"][1]["average"] == {"value": 0.5, "stderr": 0.5}
    text = as_markdown(results)
    assert (
        "| model | gsm8k (5-shot exact_match, strict-match) | flexible (5-shot exact_match, flexible-extract) |" in text
    )
    assert "| base | 50.00 +- 50.00 | 100.00 +- 0.00 | 50.00 +- 50.00 |" in text
    assert "> a note" in text
    assert "Average over gsm8k." in text
    assert as_csv(results).splitlines()[1] == "mine,base,gsm8k,5,exact_match,strict-match,0.5,0.5,2,"
    write_results(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))


def test_a_missing_cell_is_shown_and_makes_no_average(tmp_path):
    results = table(tmp_path, "base", notes=[])
    assert results["missing"] == ["mrpo/gsm8k", "mrpo/flexible"]
    assert results["models"][1]["average"] is None
    assert "| mrpo | - | - | - |" in as_markdown(results)
    assert "Missing: mrpo/gsm8k, mrpo/flexible." in as_markdown(results)


def test_a_cell_of_other_settings_is_missing_and_named(tmp_path):
    """As --redo leaves it when the new one has failed, or another shard has not come to it yet."""
    results = table(tmp_path, "base", notes=[], wanted_limit=16)
    assert results["missing"] == ["base/gsm8k", "base/flexible", "mrpo/gsm8k", "mrpo/flexible"]
    assert [row["scores"] for row in results["models"]] == [{}, {}]
    assert [row["average"] for row in results["models"]] == [None, None]
    text = as_markdown(results)
    assert "Missing: base/gsm8k, base/flexible, mrpo/gsm8k, mrpo/flexible." in text
    told = "base/gsm8k (limit 2 then, 16 now), base/flexible (limit 2 then, 16 now)"
    assert f"Computed otherwise, and not counted: {told}." in text
