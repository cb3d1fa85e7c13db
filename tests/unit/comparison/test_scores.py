"""Results of eval-preferences and of groups of tasks as scores that runs are compared by."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.comparison.scores import Score, check_comparable, estimated, from_cell, from_preferences, paired
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.cells import view
from mrpo_ds.leaderboard.suites import SuiteTask

SMALL, LARGE = 10, 1000
"""Documents of a group's two subjects."""


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
    assert paired([ours, ours], [theirs]) == difference


# ---- groups of tasks -------------------------------------------------------------------------------------------------


def group(small: int, large: int, group_mean: str = "plain", sizes: tuple[int, int] = (SMALL, LARGE)) -> Score:
    """A cell as the worker makes it, of a model that knows the first answers of each of two subjects."""
    computed, samples = {}, []
    for leaf, right, n in (("small", small, sizes[0]), ("large", large, sizes[1])):
        share = right / n
        stderr = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
        computed[leaf] = {"n": n, "scores": {"acc,none": [share, stderr]}}
        samples += [
            {"doc_id": f"{leaf}/{number}", "prompt_hash": "p", "target_hash": "t",
             "scores": {"acc,none": float(number < right)}}
            for number in range(n)
        ]  # fmt: skip
    call = {"model": "m", "model_path": "m", "shots": 5, "seed": 1, "limit": None}
    task = SuiteTask(task="mmlu", metric="acc", shots=5, subtasks=2, group_mean=group_mean)
    return from_cell(view({**call, "computed": computed, "samples": samples}, task), "here")


def test_a_difference_of_subjects_that_count_alike_is_that_of_their_means() -> None:
    """10 documents: 10 right and 5; 1000: 450 and 550. Subjects: +0.5 and -0.1, so +0.2; documents: -95 of 1010.

    Squared errors: of five ones among ten 0.25 / 9 = 1/36; of a hundred among a thousand 0.09 / 999; their sum's root
    is halved.
    """
    ours, theirs = group(10, 450), group(5, 550)
    check_comparable(ours, theirs)
    difference = paired([ours], [theirs])
    assert ours.value == pytest.approx(0.725) and theirs.value == pytest.approx(0.525)
    assert difference.mean == pytest.approx(0.2) and difference.mean == pytest.approx(ours.value - theirs.value)
    assert difference.stderr == pytest.approx(math.sqrt(1 / 36 + 0.09 / 999) / 2)
    assert difference.count == 1010
    by_size = paired([group(10, 450, "by_size")], [group(5, 550, "by_size")])
    assert by_size.mean == pytest.approx(-95 / 1010)


def test_a_groups_error_is_the_same_of_one_seed_and_of_several() -> None:
    """Two seeds that say the same are worth one: the error of the cell, which lm-eval's errors of the subjects give."""
    for group_mean in ("plain", "by_size"):
        one = group(10, 450, group_mean)
        single, double = estimated([one]), estimated([one, one])
        assert single.stderr == one.stderr and one.is_mean
        assert (double.mean, double.stderr) == pytest.approx((one.value, one.stderr))
    other = estimated([group(10, 450), group(5, 550)])
    squares = 5 * 0.25**2 + 5 * 0.25**2, 450 * 0.5**2 + 100 * 0.0 + 450 * 0.5**2  # mean 0.75 of 1, .5; 0.5 of 1, .5, 0
    assert other.mean == pytest.approx(0.625)
    assert other.stderr == pytest.approx(math.sqrt(squares[0] / 9 / 10 + squares[1] / 999 / 1000) / 2)


def test_a_subject_of_one_document_has_no_error() -> None:
    assert paired([group(1, 3, sizes=(1, 4))], [group(0, 2, sizes=(1, 4))]).stderr is None


def test_the_two_means_of_a_group_are_two_columns() -> None:
    assert group(1, 1).task == "mmlu (acc, 5-shot)"
    assert group(1, 1, "by_size").task == "mmlu (acc, by size, 5-shot)"


def single(values: Sequence[float], **changes: Any) -> Score:
    head = {"model": "m", "model_path": "m", "task": "t", "shots": 0, "metric": "acc", "filter": "none", "seed": 1}
    samples = [{"doc_id": n, "prompt_hash": "p", "target_hash": "t", "value": one} for n, one in enumerate(values)]
    rest = {"value": sum(values) / len(values), "n": len(values), "limit": None, "samples": samples}
    return from_cell({**head, **rest, **changes}, "here")


def test_a_value_over_something_else_than_documents_gives_no_error_of_theirs() -> None:
    """Prompts of 1 and 3 instructions, of which 1 and 0 are followed: 1 of 4, and not the mean 1/2 of the prompts."""
    one = single([1.0, 0.0], value=0.25, stderr=None)
    assert not one.is_mean and single([1.0, 0.0]).is_mean
    assert estimated([one, one]).stderr is None and estimated([one, one]).mean == 0.25
    difference = paired([one], [single([0.0, 0.0])])
    assert difference is not None and difference.mean == 0.5


@pytest.mark.parametrize("group_mean", [None, "plain", "by_size"])
def test_a_metric_over_a_whole_corpus_has_no_documents_to_pair(group_mean: str | None) -> None:
    one = replace(single([1.0], value=0.3, stderr=0.1), documents={}, group_mean=group_mean)
    assert paired([one], [one]) is None
    assert (estimated([one]).mean, estimated([one]).stderr) == (0.3, 0.1)
    assert (estimated([one, one]).mean, estimated([one, one]).stderr) == (0.3, None)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("0", {}), ("small", {"group_mean": "plain"}), ("small/0", {"group_mean": "plain"})],
)
def test_documents_that_are_there_twice_or_of_no_subject_are_named(name: str, changes: dict[str, Any]) -> None:
    samples = [{"doc_id": name, "prompt_hash": "p", "target_hash": "t", "value": 1.0} for _ in range(2)]
    with pytest.raises(DataError, match=f"here has a document '{name}'; allowed: each once, in a group as subtask/"):
        single([1.0, 1.0], samples=samples, **changes)


NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@settings(deadline=None)
@given(NUMBERS, st.floats(-50, 50))
def test_a_constant_that_is_added_to_one_side_is_the_whole_difference(values: list[float], shift: float) -> None:
    difference = paired([single([value + shift for value in values])], [single(values)])
    assert difference.mean == pytest.approx(shift, abs=1e-9)
    assert difference.stderr == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=30))
def test_a_paired_difference_is_antisymmetric_and_its_mean_that_of_the_means(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (single(values) for values in zip(*pairs, strict=True))
    one, other = paired([ours], [theirs]), paired([theirs], [ours])
    assert one.mean == pytest.approx(-other.mean, abs=1e-9)
    assert one.stderr == pytest.approx(other.stderr, abs=1e-9)
    assert one.mean == pytest.approx(ours.value - theirs.value, abs=1e-9)
