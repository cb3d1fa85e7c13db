"""The maths of the tables, against numbers worked out by hand."""

import math

import pytest

from mrpo_ds.leaderboard.scores import Score, ScoreError, average, mean_by_size, normalized, plain_mean, score_of
from mrpo_ds.leaderboard.suites import Suite, SuiteTask

GROUP = {
    "one": {"n": 10, "scores": {"acc,none": [0.5, 0.1]}},
    "two": {"n": 30, "scores": {"acc,none": [0.9, 0.2]}},
}


def task(**fields) -> SuiteTask:
    return SuiteTask(**{"task": "t", "metric": "acc", **fields})


def test_a_task_alone_has_its_own_score():
    computed = {"t": {"n": 8, "scores": {"acc,none": [0.25, 0.16], "acc_norm,none": [0.5, 0.2]}}}
    assert score_of(task(), computed) == Score(0.25, 0.16, 8)
    assert score_of(task(metric="acc_norm"), computed) == Score(0.5, 0.2, 8)


def test_a_group_by_size_and_plain():
    by_size = score_of(task(subtasks=2), GROUP)
    assert by_size.value == pytest.approx((10 * 0.5 + 30 * 0.9) / 40)
    pooled = (9 * 0.1**2 * 10 + 29 * 0.2**2 * 30) / 38
    assert by_size.stderr == pytest.approx(math.sqrt(pooled / 40))
    plain = score_of(task(subtasks=2, group_mean="plain"), GROUP)
    assert plain.value == pytest.approx(0.7)
    assert plain.stderr == pytest.approx(math.sqrt(0.1**2 + 0.2**2) / 2)
    assert plain.n == by_size.n == 40


def test_the_group_means_are_those_of_lm_eval():
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr, unweighted_mean_stderr

    scores = [Score(0.1, 0.05, 7), Score(0.6, 0.02, 19), Score(0.35, 0.11, 100)]
    values, errors, sizes = zip(*((score.value, score.stderr, score.n) for score in scores), strict=True)
    assert mean_by_size(scores).value == pytest.approx(aggregate_subtask_metrics(list(values), list(sizes)))
    assert mean_by_size(scores).stderr == pytest.approx(pooled_sample_stderr(list(errors), list(sizes)))
    assert plain_mean(scores).value == pytest.approx(aggregate_subtask_metrics(list(values), list(sizes), False))
    assert plain_mean(scores).stderr == pytest.approx(unweighted_mean_stderr(list(errors)))


def test_without_a_standard_error_there_is_none_of_the_mean():
    scores = [Score(0.5, None, 1), Score(1.0, 0.1, 9)]
    assert plain_mean(scores).stderr is None
    assert mean_by_size(scores).stderr is None
    assert mean_by_size([Score(0.5, 0.1, 1)]).stderr is None


def test_guessing_is_0_and_less_is_not_negative():
    computed = {"t": {"n": 8, "scores": {"acc,none": [0.625, 0.03]}}}
    assert normalized(task(baseline="1/4"), computed).value == pytest.approx(0.5)
    assert normalized(task(baseline="1/4"), computed).stderr == pytest.approx(0.04)
    assert normalized(task(baseline="0.7"), computed).value == 0.0


def test_subtasks_are_mapped_each_by_itself():
    # 0.5 of two choices is guessing; 0.9 above a third is 0.85
    wanted = task(subtasks=2, baselines={"one": "1/2", "two": "1/3"})
    assert normalized(wanted, GROUP).value == pytest.approx((0.0 + (0.9 - 1 / 3) / (2 / 3)) / 2)


def test_the_average_weighs_columns():
    suite = Suite(
        tasks=[task(name="a"), task(name="b", weight=0.5), task(name="c", weight=0.5), task(name="d", weight=0)]
    )
    scores = {"a": Score(0.8, 0.1, 5), "b": Score(0.4, 0.2, 5), "c": Score(0.2, 0.2, 5)}
    mean = average(suite, scores)
    assert mean is not None
    assert mean.value == pytest.approx(0.8 / 2 + 0.4 / 4 + 0.2 / 4)
    assert mean.stderr == pytest.approx(math.sqrt((0.1 / 2) ** 2 + 2 * (0.2 / 4) ** 2))


def test_a_missing_column_makes_no_average():
    suite = Suite(tasks=[task(name="a"), task(name="b")])
    assert average(suite, {"a": Score(0.8, 0.1, 5)}) is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_no_finite_number_is_no_score(value):
    with pytest.raises(ScoreError, match="collapsed"):
        score_of(task(), {"t": {"n": 8, "scores": {"acc,none": [value, 0.1]}}})


def test_a_metric_that_is_not_there_lists_those_that_are():
    with pytest.raises(ScoreError, match=r"t has no 'f1,none'; it has acc,none"):
        score_of(task(metric="f1"), {"t": {"n": 8, "scores": {"acc,none": [0.5, 0.1]}}})
