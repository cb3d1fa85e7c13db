"""From what lm-eval computed to a score: of a task, of a group, of a suite. Plain arithmetic; tests know it by hand.

Everything that a call computed is kept, so another metric, filter or mean of a suite needs no new computation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mrpo_ds.leaderboard.suites import Suite, SuiteTask


@dataclass(frozen=True)
class Score:
    """A number with its standard error; both are fractions, not percent."""

    value: float
    stderr: float | None
    """None where there is none: of one document, or of a statistic without one."""
    n: int
    """Documents."""


Computed = dict[str, dict[str, Any]]
"""Subtask -> {"n": documents, "scores": {"metric,filter": [value, standard error or None]}}."""


class ScoreError(Exception):
    """What was computed holds no usable score."""


def subtask_scores(computed: Computed, metric: str, filter_name: str) -> dict[str, Score]:
    """The score of every subtask. Raises ScoreError when one lacks it, or it is no finite number."""
    key = f"{metric},{filter_name}"
    found = {}
    for name, entry in computed.items():
        if key not in entry["scores"]:
            raise ScoreError(f"{name} has no {key!r}; it has {', '.join(sorted(entry['scores'])) or 'none'}")
        value, stderr = entry["scores"][key]
        if value is None or not math.isfinite(value):
            raise ScoreError(f"{key!r} of {name} is {value}: the model's log-probs have collapsed or are not finite")
        found[name] = Score(float(value), None if stderr is None else float(stderr), int(entry["n"]))
    return found


def score_of(task: SuiteTask, computed: Computed) -> Score:
    """A column's score: that of a task, or the group's mean that the suite asks for. Raises ScoreError."""
    scores = list(subtask_scores(computed, task.metric, task.filter).values())
    if len(scores) == 1:
        return scores[0]
    return plain_mean(scores) if task.group_mean == "plain" else mean_by_size(scores)


def plain_mean(scores: Iterable[Score]) -> Score:
    """Mean of independent scores, each counting alike: its standard error is the root of the sum of squares over n."""
    listed = list(scores)
    value = sum(score.value for score in listed) / len(listed)
    return Score(value, _root_of_squares(listed, [1 / len(listed)] * len(listed)), sum(score.n for score in listed))


def mean_by_size(scores: Iterable[Score]) -> Score:
    """Mean over all documents. The standard error is the pooled one, as lm-eval has it."""
    listed = list(scores)
    total = sum(score.n for score in listed)
    value = sum(score.value * score.n for score in listed) / total
    free = total - len(listed)
    if free < 1 or any(score.stderr is None for score in listed):
        return Score(value, None, total)
    pooled = sum((score.n - 1) * (score.stderr or 0.0) ** 2 * score.n for score in listed) / free
    return Score(value, math.sqrt(pooled / total), total)


def normalized(task: SuiteTask, computed: Computed) -> Score:
    """The score that counts in the average: mapped so that guessing is 0, where the suite has a baseline."""
    if not task.is_normalized:
        return score_of(task, computed)
    if task.baseline is not None:
        return _above_chance(score_of(task, computed), task.chance())
    found = subtask_scores(computed, task.metric, task.filter)
    return plain_mean(_above_chance(score, task.chance(name)) for name, score in found.items())


def average(suite: Suite, scores: dict[str, Score]) -> Score | None:
    """The weighted mean of a suite's columns, by their names; None when one that counts is missing.

    Its standard error takes the columns as independent.
    """
    counted = [task for task in suite.tasks if task.weight > 0]
    if any(task.title not in scores for task in counted):
        return None
    listed = [scores[task.title] for task in counted]
    weights = [task.weight / sum(task.weight for task in counted) for task in counted]
    value = sum(weight * score.value for weight, score in zip(weights, listed, strict=True))
    return Score(value, _root_of_squares(listed, weights), sum(score.n for score in listed))


def _above_chance(score: Score, chance: float) -> Score:
    scale = 1 / (1 - chance)
    stderr = None if score.stderr is None else score.stderr * scale
    return Score(max(0.0, (score.value - chance) * scale), stderr, score.n)


def _root_of_squares(scores: list[Score], weights: list[float]) -> float | None:
    parts = [
        (weight * score.stderr) ** 2 for weight, score in zip(weights, scores, strict=True) if score.stderr is not None
    ]
    return math.sqrt(sum(parts)) if len(parts) == len(scores) else None
