"""kill -9 of each process at each moment: the others leave and name it; the resumed run is the uninterrupted one."""

import random
from pathlib import Path

import pytest

from tests.faults.live import (
    NAMES,
    POLICY,
    REFERENCE,
    Fault,
    Victims,
    errors,
    note,
    resume_and_compare,
    seconds_to_end,
    settings,
)

MOMENTS = {
    "load": ("load", 0, 0.0),
    "first step": ("train", 1, 0.0),
    "mid-step": ("train", 7, 0.01),
    "checkpoint": ("checkpoint", 4, 0.01),
    "evaluation": ("evaluate", 6, 0.005),
    "export": ("export", 12, 0.0),
}
"""Phase, step, and delay in it."""
SECONDS = 15.0
"""Within which everybody has left: grace, farewell and a checkpoint, on a busy machine."""
SEED = 20261121
CASES = [(victim, moment) for victim in NAMES for moment in MOMENTS if (victim, moment) != (REFERENCE, "export")]
"""A reference has left by the time of the export."""
ALWAYS = {(victim, random.Random(SEED + victim).choice(list(MOMENTS)[:5])) for victim in NAMES} | {(POLICY, "export")}
LAUNCHERS = [
    (launcher, process, moment)
    for launcher in ("deepspeed", "torchrun")
    for process in ("launcher", "runner")
    for moment in MOMENTS
    if (launcher, process) != ("torchrun", "runner")
]
ALWAYS_LAUNCHERS = {("deepspeed", "launcher", "mid-step")}


@pytest.mark.parametrize(
    ("victim", "moment"),
    [pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.all_faults) for case in CASES],
)
def test_a_killed_rank(victims: Victims, whole: Path, victim: int, moment: str) -> None:
    phase, step, delay = MOMENTS[moment]
    path, directory = victims.config(f"kill-{victim}-{moment}".replace(" ", "-"), settings(victims.root))
    run = victims.train(path, fault=Fault(phase, step, victim, delay=delay))
    (message,) = errors(run.stderr)
    assert f"{NAMES[victim]} (global rank {victim}," in message and "died: it is gone without a word" in message
    assert run.codes[victim] == -9
    saved = moment not in ("load", "first step") or (victim == REFERENCE and moment == "first step")
    others = {run.codes[rank] for rank in NAMES if rank != victim and run.codes[rank]}  # a reference may be done
    assert others == {75 if saved else 1}
    if victim == REFERENCE and saved:
        assert "The policy saves what it has; step" in message
    seconds = seconds_to_end(path, run)
    assert seconds < SECONDS
    note("kill -9", f"{NAMES[victim]}, {moment}", seconds, f"exit {others.pop()}")
    resume_and_compare(victims, path, directory, whole)


@pytest.mark.parametrize(
    ("launcher", "process", "moment"),
    [pytest.param(*case, marks=[] if case in ALWAYS_LAUNCHERS else pytest.mark.all_faults) for case in LAUNCHERS],
)
def test_a_killed_launcher(victims: Victims, whole: Path, launcher: str, process: str, moment: str) -> None:
    phase, step, delay = MOMENTS[moment]
    name = f"kill-{launcher}-{process}-{moment}".replace(" ", "-")
    path, directory = victims.config(name, settings(victims.root))
    run = victims.launch(launcher, path, Fault(phase, step, process, delay=delay, pause=3.0))
    seconds = seconds_to_end(path)
    assert run.returncode or (launcher, process) == ("deepspeed", "launcher"), "its runner says 0 all the same"
    messages = errors(run.stderr)
    assert len(messages) <= 1 and "Traceback" not in run.stderr
    if moment not in ("export",):
        assert "the launcher (process" in messages[0] and "is gone" in messages[0]
    note("kill -9", f"{launcher}'s {process}, {moment}", seconds, "ranks stop in order")
    resume_and_compare(victims, path, directory, whole)
