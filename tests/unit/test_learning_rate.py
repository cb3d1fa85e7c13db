"""The learning rate as a pure function of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.learning_rate import learning_rate_at

SCHEDULERS = ("linear", "cosine", "constant")


def schedule(total: int, scheduler: str, warmup_ratio: float, peak: float = 1.0) -> list[float]:
    config = OptimizationConfig(learning_rate=peak, scheduler=scheduler, warmup_ratio=warmup_ratio)
    return [learning_rate_at(step, total, config) for step in range(total)]


runs = st.tuples(st.integers(1, 400), st.sampled_from(SCHEDULERS), st.floats(0, 1), st.floats(1e-9, 1.0))


@pytest.mark.parametrize(
    ("total", "scheduler", "warmup_ratio", "expected"),
    [
        # 2 steps of warm-up, 1/2 and 2/2 of the peak; then 8 steps down a straight line that meets 0 after the last.
        (10, "linear", 0.2, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (4, "linear", 0.0, [1, 0.75, 0.5, 0.25]),
        # (1 + cos(pi * p)) / 2 at p = 0, 1/4, 1/2, 3/4
        (4, "cosine", 0.0, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (5, "cosine", 0.2, [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (4, "constant", 0.5, [0.5, 1, 1, 1]),
        (3, "linear", 1.0, [1 / 3, 2 / 3, 1]),
        (1, "linear", 0.0, [1]),
        (1, "linear", 0.1, [1]),
        (1, "cosine", 1.0, [1]),
        (7, "constant", 0.1, [1, 1, 1, 1, 1, 1, 1]),  # ceil(0.7) = 1 step of warm-up, which is at the peak
    ],
)
def test_values_by_hand(total, scheduler, warmup_ratio, expected):
    assert schedule(total, scheduler, warmup_ratio) == pytest.approx(expected)


def test_the_peak_scales_everything():
    assert schedule(9, "cosine", 0.3, 5e-7) == pytest.approx([5e-7 * value for value in schedule(9, "cosine", 0.3)])


@given(runs)
def test_every_step_moves_the_weights_and_none_exceeds_the_peak(run):
    total, scheduler, warmup_ratio, peak = run
    ceiling = peak * (1 + 1e-12)  # peak * 11 / 11 may round up
    assert all(0 < rate <= ceiling for rate in schedule(total, scheduler, warmup_ratio, peak))


@given(runs)
def test_warm_up_rises_in_equal_steps_to_the_peak_and_nothing_rises_after_it(run):
    total, scheduler, warmup_ratio, peak = run
    rates = schedule(total, scheduler, warmup_ratio, peak)
    warmup = math.ceil(warmup_ratio * total)
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
    after = rates[warmup:]
    assert all(later <= earlier for earlier, later in zip(after, after[1:], strict=False))
    if after:
        assert after[0] == peak


@given(st.integers(2, 400), st.floats(0, 0.9))
def test_the_last_step_is_small_but_for_a_constant_rate(total, warmup_ratio):
    left = total - math.ceil(warmup_ratio * total)
    if left < 1:
        return
    assert schedule(total, "linear", warmup_ratio)[-1] == pytest.approx(1 / left)
    assert schedule(total, "cosine", warmup_ratio)[-1] == pytest.approx((1 - math.cos(math.pi / left)) / 2)
    assert schedule(total, "constant", warmup_ratio)[-1] == 1


@given(runs, st.integers(0, 399))
def test_a_resumed_run_continues_the_same_schedule(run, step):
    total, scheduler, warmup_ratio, peak = run
    config = OptimizationConfig(learning_rate=peak, scheduler=scheduler, warmup_ratio=warmup_ratio)
    step %= total
    assert learning_rate_at(step, total, config) == schedule(total, scheduler, warmup_ratio, peak)[step]
