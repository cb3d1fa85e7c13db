"""Results of eval-preferences as scores that runs are compared by."""

from typing import Any

import pytest

from mrpo_ds.comparison.scores import check_comparable, from_preferences, mean_documents, paired
from mrpo_ds.errors import ConfigError


def result(**changes: Any) -> dict[str, Any]:
    """Two documents, the second without a value against the virtual reference."""
    values = {"logps/accuracy": [1.0, 0.0], "logps/margin": [2.0, -1.0], "vref/accuracy": [1.0, None]}
    whole: dict[str, Any] = {
        "set": "held",
        "rows": "2 rows, SHA-256 aa",
        "reading": {"max_length": 8, "view": "pair"},
        "references": {"one": "a", "two": "b"},
        "virtual_reference": {"eps_max": 0.1},
        "metrics": {name: {"mean": 0.5, "stderr": 0.5} for name in values},
        "documents": {"id": ["x", "y"], "prompt_hash": ["p", "q"], "target_hash": ["t", "u"], "values": values},
    }
    return {**whole, **changes}


def test_each_measure_is_a_task_and_a_missing_value_is_no_document() -> None:
    scores = {score.measure: score for score in from_preferences(result(), "here")}
    assert list(scores) == ["logps/accuracy", "logps/margin", "vref/accuracy"]
    assert scores["logps/margin"].task == "held: logps/margin" and not scores["logps/margin"].percent
    assert scores["logps/margin"].documents == {"x": 2.0, "y": -1.0}
    assert scores["vref/accuracy"].documents == {"x": 1.0} and scores["vref/accuracy"].percent


def test_another_virtual_reference_is_another_task() -> None:
    tasks = [
        from_preferences(one, "here")[-1].task
        for one in (result(), result(), result(virtual_reference={"eps_max": 0.2}), result(references={"one": "a"}))
    ]
    assert tasks[0] == tasks[1] and len(set(tasks)) == 3
    assert all(task.startswith("held: vref@") for task in tasks)


def test_rows_that_were_read_otherwise_are_refused() -> None:
    ours, theirs = (from_preferences(one, place)[0] for one, place in (
        (result(), "A"), (result(reading={"max_length": 9, "view": "pair"}), "B"),
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="logps/accuracy of A and B cannot be compared: max_length is 8 and 9"):
        check_comparable(ours, theirs)


def test_documents_are_paired_by_name_and_not_by_place() -> None:
    """2 - (-3) and -1 - 4: 5 and -5."""
    turned = result()
    turned["documents"] = {
        "id": ["y", "x"], "prompt_hash": ["q", "p"], "target_hash": ["u", "t"],
        "values": {"logps/margin": [4.0, -3.0]},
    }  # fmt: skip
    turned["metrics"] = {"logps/margin": {"mean": 0.5, "stderr": 3.5}}
    ours = from_preferences(result(), "A")[1]
    (theirs,) = from_preferences(turned, "B")
    check_comparable(ours, theirs)
    difference = paired([ours], [theirs])
    assert difference.mean == 0 and difference.stderr == pytest.approx(5)
    assert mean_documents([ours, ours]).tolist() == [2, -1]
