"""Whose a result is: directories of one name, moved and retrained runs, and results of another project."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.comparison.command import compare
from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.errors import DataError
from mrpo_ds.models import fingerprint, weights_digest
from tests.unit.comparison.directories import evaluation, make_run, put_cell

KEY = "arc_easy (acc, 0-shot)"


def train(directory: Path, loss: str, weights: str) -> Path:
    """A run with a model, of which only the bytes matter here, and without results."""
    run = make_run(directory, loss, evals=[evaluation(0, 0.4), evaluation(8, 0.5)])
    put_weights(run / "model", weights)
    return run


def put_weights(model: Path, weights: str) -> None:
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "model.safetensors").write_text(weights, encoding="utf-8")


def digest(run: Path) -> dict[str, Any]:
    """What a cell records of a run's model."""
    return {"settings": {"model_hash": weights_digest(ModelConfig(path=str(run / "model")))}}


def rows(out: Path, name: str = "benchmarks") -> dict[str, dict[str, Any]]:
    path = out / f"{name}.json"
    return {row["method"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}


def test_directories_of_one_name_do_not_share_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """runs/dpo/seed0 and runs/mrpo/seed0, and a folder with the results of the first one only."""
    runs = {loss: train(tmp_path / loss / "seed0", loss, loss) for loss in ("dpo", "mrpo")}
    put_cell(tmp_path / "sweep", [0, 1], "dpo", model_path=str(runs["dpo"] / "model"), **digest(runs["dpo"]))
    words, results = [str(run) for run in runs.values()], [str(tmp_path / "sweep" / "eval")]
    compare(words, tmp_path / "out", results=results)
    assert list(rows(tmp_path / "out")) == ["dpo"]
    put_cell(tmp_path / "sweep", [1, 1], "mrpo", model_path=str(runs["mrpo"] / "model"), **digest(runs["mrpo"]))
    compare(words, tmp_path / "out", results=results)
    assert {label: row[KEY] for label, row in rows(tmp_path / "out").items()} == {"dpo": 0.5, "mrpo": 1}
    assert "other models" not in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [True, False])
def test_results_go_with_a_run_that_was_moved_and_renamed(tmp_path: Path, recorded: bool) -> None:
    """By the weights. Where a result has no digest it is nobody's, and that is said."""
    old = train(tmp_path / "old" / "seed0", "dpo", "mine")
    put_cell(old, [0, 1], **(digest(old) if recorded else {}))
    (old / "evals.jsonl").unlink()
    new = old.rename(tmp_path / ("renamed" if recorded else "seed0"))
    if recorded:
        compare([str(new)], tmp_path / "out")
        assert rows(tmp_path / "out")["dpo"][KEY] == 0.5
        return
    with pytest.raises(DataError, match="nothing to compare: .*own .of .*old/seed0/model, which is not there, and wit"):
        compare([str(new)], tmp_path / "out")


def test_another_runs_results_in_a_moved_runs_folder_stay_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both directories were called seed0 and are moved; their cells lie in the eval/ of one of them."""
    runs = {loss: train(tmp_path / "old" / loss / "seed0", loss, loss) for loss in ("dpo", "mrpo")}
    dpo = runs["dpo"]
    put_cell(dpo, [1, 1], "other", model_path=str(runs["mrpo"] / "model"), **digest(runs["mrpo"]))
    put_cell(dpo, [0, 1], **digest(dpo))
    (tmp_path / "old").rename(tmp_path / "new")
    words = [str(tmp_path / "new" / loss / "seed0") for loss in runs]
    compare(words, tmp_path / "out")
    assert {label: row[KEY] for label, row in rows(tmp_path / "out").items()} == {"dpo": 0.5}
    assert "are some of other models, which are not shown: other\n" in capsys.readouterr().err
    compare(words, tmp_path / "out", results=[str(tmp_path / "new" / "dpo" / "seed0" / "eval")])
    assert {label: row[KEY] for label, row in rows(tmp_path / "out").items()} == {"dpo": 0.5, "mrpo": 1}


def test_a_relative_path_of_another_project_is_not_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And neither are results of a run that has been trained anew since."""
    run = train(tmp_path / "here" / "runs" / "dpo", "dpo", "mine")
    theirs = train(tmp_path / "there" / "runs" / "dpo", "dpo", "theirs")
    put_cell(tmp_path / "there", [1, 1], "dpo", model_path="runs/dpo/model", **digest(theirs))
    monkeypatch.chdir(tmp_path / "here")
    words, results = ["runs/dpo"], [str(tmp_path / "there" / "eval")]
    compare(words, Path("out"), results=results)
    assert rows(Path("out")) == {}
    assert "dpo (made with other weights than runs/dpo/model has now)" in capsys.readouterr().err
    put_weights(run / "model", "theirs")
    compare(words, Path("out"), results=results)
    assert rows(Path("out"))["dpo"][KEY] == 1


def test_preferences_are_known_by_their_fingerprint(tmp_path: Path) -> None:
    run = train(tmp_path / "old" / "seed0", "dpo", "mine")
    values = {"logps/accuracy": [1.0, 0.0]}
    result: dict[str, Any] = {
        "model": "seed0",
        "model_path": str(run / "model"),
        "fingerprint": fingerprint(ModelConfig(path=str(run / "model"))),
        "kind": "model",
        "set": "held",
        "rows": "2 rows",
        "reading": {},
        "references": {},
        "virtual_reference": None,
        "metrics": {"logps/accuracy": {"mean": 0.5, "stderr": 0.5}},
        "documents": {"id": ["x", "y"], "prompt_hash": ["p", "q"], "target_hash": ["t", "u"], "values": values},
    }
    folder = run / "eval" / "preferences" / "seed0"
    folder.mkdir(parents=True)
    (folder / "held.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "other.json").write_text(json.dumps({**result, "set": "other", "fingerprint": "SHA-256 0"}))
    new = run.rename(tmp_path / "seed0")
    compare([str(new)], tmp_path / "out")
    row = rows(tmp_path / "out", "preferences")["dpo"]
    assert row["held: logps/accuracy"] == 0.5 and not [key for key in row if key.startswith("other")]
