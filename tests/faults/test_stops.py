"""SIGSTOP of each role: a process that lives but does nothing is named within the deadline, and nobody hangs."""

from pathlib import Path

import pytest

from tests.faults.live import (
    NAMES,
    POLICY,
    REFERENCE,
    SILENCE,
    Fault,
    Victims,
    errors,
    note,
    resume_and_compare,
    seconds_to_end,
    settings,
)

ALWAYS = {(REFERENCE, "train"), (POLICY, "checkpoint")}
CASES = [(rank, moment) for rank in NAMES for moment in ("train", "checkpoint", "evaluate")]


@pytest.mark.parametrize(
    ("victim", "moment"),
    [pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.all_faults) for case in CASES],
)
def test_a_stopped_rank(victims: Victims, whole: Path, victim: int, moment: str) -> None:
    path, directory = victims.config(f"stop-{victim}-{moment}", settings(victims.root))
    run = victims.train(path, fault=Fault(moment, 6, victim, "SIGSTOP", pause=1.0))
    (message,) = errors(run.stderr)
    assert f"{NAMES[victim]} (global rank {victim}," in message
    assert "is stuck or cut off: no sign of life for" in message and "last seen at step" in message
    assert {run.codes[rank] for rank in NAMES if rank != victim} == {75}
    others = [when for rank, when in enumerate(run.ended) if rank != victim]
    seconds = seconds_to_end(path, run) - max(run.ended) + max(others)
    assert SILENCE - 1.5 < seconds < SILENCE + 10  # from the last word before the stop
    if victim == REFERENCE:
        assert "The policy saves what it has; step" in message
    note("SIGSTOP", f"{NAMES[victim]}, {moment}", seconds, "exit 75")
    resume_and_compare(victims, path, directory, whole)
