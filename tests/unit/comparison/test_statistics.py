"""The arithmetic of comparisons against numbers worked out by hand, and properties that hold for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.comparison.statistics import (
    Bootstrap,
    Spread,
    bootstrap_means,
    cohens_d,
    estimate_of,
    percentile_interval,
    ranks_of,
    spread_of,
)

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


def test_spread_of_three_seeds() -> None:
    """1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, / 2 = 7."""
    spread = spread_of([1.0, 2.0, 6.0])
    assert spread.mean == 3 and spread.count == 3
    assert spread.std == pytest.approx(math.sqrt(7))


def test_one_seed_has_no_spread() -> None:
    assert spread_of([4.0]) == Spread(4.0, None, 1)
    assert estimate_of([4.0]).stderr is None


def test_standard_error_of_shares() -> None:
    """3 of 4 right: deviations .25 .25 .25 -.75, squares 3/16 + 9/16 = 3/4, / 3 = 1/4, sqrt 1/2, / sqrt 4 = 1/4."""
    estimate = estimate_of([1.0, 1.0, 1.0, 0.0])
    assert (estimate.mean, estimate.count) == (0.75, 4)
    assert estimate.stderr == pytest.approx(0.25)


def test_cohens_d_of_the_papers_table() -> None:
    """MRPO's Table 1, S1, L<-M: 97.2 +- 1.7 against DPO's 93.9 +- 1.4; sqrt((2.89 + 1.96) / 2) = 1.5572."""
    assert cohens_d(Spread(97.2, 1.7, 5), Spread(93.9, 1.4, 5)) == pytest.approx(3.3 / math.sqrt(2.425))


def test_cohens_d_without_spread() -> None:
    assert cohens_d(Spread(1.0, None, 1), Spread(0.0, 1.0, 3)) is None
    assert cohens_d(Spread(1.0, 0.0, 2), Spread(2.0, 0.0, 2)) == -math.inf
    assert cohens_d(Spread(1.0, 0.0, 2), Spread(1.0, 0.0, 2)) == 0


def test_marks_follow_the_papers_rule() -> None:
    """S2, M<-L of Table 1: 97.0 +- 1.6 against 96.7 +- 1.8 is d = 0.18, so nothing is bold."""
    assert ranks_of([Spread(96.7, 1.8, 5), Spread(97.0, 1.6, 5)]) == ["", ""]
    assert ranks_of([Spread(93.9, 1.4, 5), Spread(97.2, 1.7, 5), Spread(95.9, 1.6, 5)]) == ["", "best", "second"]
    assert ranks_of([Spread(1.0, None, 1), Spread(2.0, None, 1)]) == ["", ""], "single runs say nothing of spread"
    assert ranks_of([Spread(1.0, 0.1, 3)]) == [""]


@settings(deadline=None)
@given(NUMBERS, NUMBERS, st.floats(0.1, 10), st.floats(-20, 20))
def test_cohens_d_is_antisymmetric_and_free_of_units(
    ours: list[float], theirs: list[float], scale: float, shift: float
) -> None:
    one, other = spread_of(ours), spread_of(theirs)
    effect = cohens_d(one, other)
    if (one.std or 0) + (other.std or 0) < 1e-3:
        return  # rounding decides
    assert effect == pytest.approx(-(cohens_d(other, one) or 0.0), abs=1e-9)
    moved = [[scale * value + shift for value in values] for values in (ours, theirs)]
    assert cohens_d(*map(spread_of, moved)) == pytest.approx(effect, rel=1e-5, abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 5))
def test_resampled_means_stay_within_the_documents_and_repeat_with_their_seed(values: list[float], seed: int) -> None:
    table = np.array(values).reshape(-1, 1)
    means = bootstrap_means(table, Bootstrap(50, seed))
    assert means.shape == (50, 1)
    assert min(values) - 1e-9 <= means.min() and means.max() <= max(values) + 1e-9
    np.testing.assert_array_equal(means, bootstrap_means(table, Bootstrap(50, seed)))


def test_the_same_documents_are_drawn_for_every_measure() -> None:
    values = np.random.default_rng(1).normal(size=(40, 1))
    means = bootstrap_means(np.hstack([values, values - 3]), Bootstrap(100))
    np.testing.assert_allclose(means[:, 0] - means[:, 1], 3)


def test_documents_without_a_value_are_left_out_of_each_resample() -> None:
    values = np.array([[1.0], [np.nan], [1.0], [np.nan]])
    means = bootstrap_means(values, Bootstrap(200))[:, 0]
    assert set(means[np.isfinite(means)]) == {1.0}
    assert np.isnan(means).any(), "about one resample of 16 has only documents without a value"
    assert percentile_interval(means, 0.95) == (1.0, 1.0)
    assert all(map(math.isnan, percentile_interval(np.array([np.nan]), 0.95)))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """300 samples of 100 coin flips with p = 0.7: a 95 % interval holds 0.7 in 280 or more of them (3 sigma: 0.912)."""
    generator = np.random.default_rng(0)
    hits = 0
    for sample in range(300):
        values = (generator.random((100, 1)) < 0.7).astype(float)
        low, high = percentile_interval(bootstrap_means(values, Bootstrap(400, sample))[:, 0], 0.95)
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 300 <= 0.99


def test_the_bootstraps_spread_is_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=(200, 1))
    stderr = estimate_of(values[:, 0]).stderr
    assert bootstrap_means(values, Bootstrap(4000))[:, 0].std() == pytest.approx(stderr, rel=0.06)
