"""The wall clock of a run: what is left is compared with what a step and a checkpoint take."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.budget import LEAVE_SECONDS, Budget, make_budget, parse_time_left, slurm_end


def with_left(seconds: float, checkpoint_seconds: float = 0.0) -> Budget:
    return Budget(time.time() + seconds, "train.max_seconds", checkpoint_seconds)


def test_before_its_first_checkpoint_a_run_counts_on_a_guess() -> None:
    budget = with_left(60, checkpoint_seconds=1680)
    budget.took("step", 5.0)
    assert "stopped by train.max_seconds" in budget.over(False)
    budget.took("checkpoint", 10.0)
    assert budget.over(False) == ""


@pytest.mark.parametrize(
    ("evaluates", "checkpoints", "needs"), [(False, 1, 45.0), (True, 1, 75.0), (False, 2, 60.0), (True, 2, 90.0)]
)
def test_what_must_fit(evaluates: bool, checkpoints: int, needs: float) -> None:
    for left, fits in ((needs + LEAVE_SECONDS + 1, True), (needs + LEAVE_SECONDS - 1, False)):
        budget = with_left(left)
        for part, seconds in {"step": 20.0, "checkpoint": 10.0, "evaluate": 20.0}.items():
            budget.took(part, seconds)
            budget.took(part, seconds / 2)  # the longest counts
        assert (budget.over(evaluates, checkpoints) == "") is fits


def test_the_earlier_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert make_budget(None, 1000.0, 0, 0).ends == float("inf")
    assert make_budget(50.0, 1000.0, 0, 0).ends == 1050.0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1040")
    assert make_budget(50.0, 1000.0, 0, 0).why == "the end of the Slurm job"
    assert make_budget(30.0, 1000.0, 0, 0).why == "train.max_seconds"
    assert make_budget(30.0, 1000.0, 5e8, 30.0).leave_seconds == LEAVE_SECONDS + 30


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_how_slurm_writes_a_time(days: int, hours: int, minutes: int, seconds: int) -> None:
    wanted = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_time_left(f"{days}-{hours:02}:{minutes:02}:{seconds:02}\n") == wanted


@pytest.mark.parametrize(
    ("text", "seconds"), [("3:04", 184), ("1:02:03", 3723), ("UNLIMITED", "inf"), ("", "inf"), ("INVALID", "inf")]
)
def test_other_forms_of_it(text: str, seconds: float | str) -> None:
    assert parse_time_left(text) == float(seconds)


def test_a_squeue_that_is_not_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert slurm_end({"SLURM_JOB_ID": "7"}) == float("inf")
    assert slurm_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "12"}) == 12
    assert slurm_end({}) == float("inf")
