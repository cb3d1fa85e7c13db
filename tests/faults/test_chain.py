"""One run that is killed at random again and again, and resumed each time, ends like the one that never was."""

import random

import pytest

from mrpo_ds.checkpoint import list_checkpoints
from tests.faults.live import NAMES, Fault, Victims, check_same, check_whole, note, settings

SEED = 20261121


@pytest.mark.parametrize(
    ("steps", "stride", "kills"), [(30, 6, 4), pytest.param(200, 8, 30, marks=pytest.mark.all_faults)]
)
@pytest.mark.timeout(1500)
def test_a_chain_of_kills(victims: Victims, steps: int, stride: int, kills: int) -> None:
    """At least so many kills, each some steps after the last, of a random rank at a random moment."""
    config = settings(victims.root, steps, checkpoint={"every_steps": 2, "keep": 3}, evaluate={"every_steps": 7})
    whole_path, whole = victims.config(f"whole-{steps}", config)
    assert victims.train(whole_path).returncode == 0
    path, directory = victims.config(f"chain-{steps}", config)
    dice = random.Random(SEED)
    done = 0
    while True:
        saved = [int(one.name.removeprefix("step-")) for one in list_checkpoints(directory / "checkpoints")]
        newest = max(saved, default=0)
        if newest + stride > steps:
            break
        phase = dice.choice(["train", "train", "wait", "checkpoint"])
        step = newest + dice.randint(3, stride)
        fault = Fault(phase, step, dice.choice(list(NAMES)), delay=dice.uniform(0.0, 0.05), pause=0.1)
        run = victims.train(path, "--resume", "auto", fault=fault)
        assert -9 in run.codes, run.stderr[-3000:]
        check_whole(directory)
        done += 1
    last = victims.train(path, "--resume", "auto")
    assert last.returncode == 0, last.stderr[-3000:]
    check_same(directory, whole)
    assert done >= kills, "the seed gives fewer kills than the test is for"
    note("chain", f"{steps} steps, {done} kills", 0.0, "metrics, evaluations and weights equal to the bit")
