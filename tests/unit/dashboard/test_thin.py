"""Thinning: few points, and none of what matters lost."""

import json
import math

import pytest

from mrpo_ds.dashboard.thin import number, thin


def rows(values):
    return [{"step": step, "loss": value} for step, value in enumerate(values, start=1)]


def test_a_short_series_is_left_as_it_is():
    axis, series = thin(rows([3.0, 1.0, 2.0]), ["loss"], most=3)
    assert axis.first == axis.last == [1, 2, 3]
    assert (series["loss"].mean, series["loss"].low, series["loss"].high) == ([3.0, 1.0, 2.0], None, None)


def test_buckets_have_mean_lowest_and_highest():
    axis, series = thin(rows([1.0, 2.0, 6.0, 4.0, 4.0]), ["loss"], most=2)
    assert (axis.first, axis.last) == ([1, 3], [2, 5])
    assert series["loss"].mean == [1.5, 4.6667]  # (6 + 4 + 4) / 3 to five digits
    assert series["loss"].low == [1.0, 4.0]
    assert series["loss"].high == [2.0, 6.0]


@pytest.mark.parametrize("count", [500, 999, 20_000])
@pytest.mark.parametrize("spike", [0, 0.37, 1])
def test_a_single_spike_of_a_long_run_is_kept_whole(count, spike):
    values = [1.0] * count
    place = min(count - 1, int(spike * count))
    values[place] = 777.0
    axis, series = thin(rows(values), ["loss"])
    assert len(axis.first) == len(series["loss"].high) == 240
    (bucket,) = [index for index, high in enumerate(series["loss"].high) if high == 777.0]
    assert axis.first[bucket] <= place + 1 <= axis.last[bucket]
    assert set(series["loss"].low) == {1.0}


def test_every_step_is_in_one_bucket():
    axis, _ = thin(rows([0.0] * 1003), [], most=240)
    steps = [step for first, last in zip(axis.first, axis.last, strict=True) for step in range(first, last + 1)]
    assert steps == list(range(1, 1004))


def test_what_is_not_finite_or_missing_counts_in_nothing():
    content = rows([1.0, None, math.nan, math.inf, 3.0, None])
    content += [{"step": 7}, {"step": 8, "loss": "a word"}]
    _, series = thin(content, ["loss"], most=4)
    assert series["loss"].mean == [1.0, None, 3.0, None]
    json.dumps(series["loss"].mean, allow_nan=False)


def test_no_rows_are_no_buckets():
    axis, series = thin([], ["loss"])
    assert (axis.first, axis.last, series["loss"].mean) == ([], [], [])


@pytest.mark.parametrize("value", [None, "1.0", True, math.nan, -math.inf, [1.0]])
def test_only_finite_numbers_are_numbers(value):
    assert number(value) is None
