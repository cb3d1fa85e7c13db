"""Signals to ranks and to launchers: the policy finishes its step, saves it, and all exit with 75; then it goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mrpo_ds.checkpoint import list_checkpoints
from tests.faults.live import (
    NAMES,
    OTHER_POLICY,
    POLICY,
    REFERENCE,
    Fault,
    Victims,
    check_whole,
    errors,
    note,
    resume_and_compare,
    seconds_to_end,
    settings,
)
from tests.slurm_support import two_node_slurm
from tests.support import ROOT, command_environment, free_port, read_metrics
from tests.warm import Finished

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
CASES = [
    (number, rank, moment)
    for number in SIGNALS
    for rank in (POLICY, OTHER_POLICY, REFERENCE)
    for moment in ("load", "train", "checkpoint", "evaluate", "export")
    if (rank, moment) != (REFERENCE, "export")  # it has left by then
]
ALWAYS = {
    ("SIGTERM", POLICY, "train"),
    ("SIGINT", OTHER_POLICY, "evaluate"),
    ("SIGUSR1", REFERENCE, "checkpoint"),
    ("SIGTERM", OTHER_POLICY, "load"),
    ("SIGTERM", POLICY, "export"),
}
STEPS = {"load": 0, "train": 5, "checkpoint": 6, "evaluate": 6, "export": 12}
SECONDS = 10.0


@pytest.mark.parametrize(
    ("number", "rank", "moment"),
    [pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.all_faults) for case in CASES],
)
def test_a_signal_to_a_rank(victims: Victims, whole: Path, number: str, rank: int, moment: str) -> None:
    path, directory = victims.config(f"{number}-{rank}-{moment}", settings(victims.root))
    run = victims.train(
        path, fault=Fault(moment, STEPS[moment], rank, number, pause=3.0 if moment == "export" else 0.5)
    )
    assert set(run.codes[:2] if moment == "export" else run.codes) == {75}, run.stderr[-3000:]
    (message,) = errors(run.stderr)
    assert f"stopped by {number}" in message and "Traceback" not in run.stderr
    seconds = seconds_to_end(path, run)
    assert seconds < SECONDS
    if moment == "load":
        assert not list_checkpoints(directory / "checkpoints")
    elif moment == "export":  # the resumed run has nothing to do but that
        assert list_checkpoints(directory / "checkpoints")[-1].name == "step-00000012"
    else:
        newest = list_checkpoints(directory / "checkpoints")[-1]
        assert f"step {int(newest.name.removeprefix('step-'))} is saved, run again with --resume auto" in message
    note("signal", f"{number} to {'policy' if rank < 2 else 'reference'} rank {rank}, {moment}", seconds, "exit 75")
    resume_and_compare(victims, path, directory, whole)


LAUNCHERS = [
    (launcher, process, number)
    for launcher, process in (("deepspeed", "launcher"), ("deepspeed", "runner"), ("torchrun", "launcher"))
    for number in SIGNALS
]


@pytest.mark.all_faults
@pytest.mark.parametrize(("launcher", "process", "number"), LAUNCHERS)
def test_a_signal_to_a_launcher_of_others(
    victims: Victims, whole: Path, launcher: str, process: str, number: str
) -> None:
    """What the launcher makes of it is its own: it passes it on, dies of it, or both. The ranks stop in order."""
    path, directory = victims.config(f"{launcher}-{process}-{number}", settings(victims.root))
    run = victims.launch(launcher, path, Fault("train", 5, process, number, pause=3.0))
    assert run.returncode or (launcher, process) == ("deepspeed", "launcher"), "its runner says 0 all the same"
    (message,) = errors(run.stderr)
    assert "is saved, run again with --resume auto" in message
    note("signal", f"{number} to {launcher}'s {process}", seconds_to_end(path), f"launcher's exit {run.returncode}")
    resume_and_compare(victims, path, directory, whole)


@contextmanager
def command_in_training(path: Path, directory: Path) -> Iterator[psutil.Popen]:
    """`mrpo-ds train` outside of a launcher, which starts one, some steps into its training."""
    with path.with_suffix(".out").open("wb") as console:
        command = [sys.executable, "-m", "mrpo_ds", "train", str(path)]
        process = psutil.Popen(command, cwd=ROOT, env=command_environment(), stdout=console, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        metrics = directory / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
            assert process.poll() is None and time.monotonic() < deadline, console_of(path)[-3000:]
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()


def console_of(path: Path) -> str:
    return path.with_suffix(".out").read_text(encoding="utf-8", errors="replace")


def check_last_step_is_saved(directory: Path, message: str) -> None:
    last = read_metrics(directory)[-1]["step"]
    assert f"step {last} is saved, run again with --resume auto" in message
    assert list_checkpoints(directory / "checkpoints")[-1].name == f"step-{last:08d}"
    check_whole(directory)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(one, marks=[] if one == "SIGTERM" else pytest.mark.all_faults)
        for one in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    ],
)
def test_a_signal_to_the_command_itself(victims: Victims, number: str) -> None:
    """It passes the signal to the run in the way that loses nothing."""
    path, directory = victims.config(f"command-{number}", settings(victims.root, steps=3000))
    with command_in_training(path, directory) as process:
        told = time.monotonic()
        process.send_signal(getattr(signal, number))
        assert process.wait(timeout=60) == 75
    (message,) = errors(console_of(path))
    check_last_step_is_saved(directory, message)
    note("signal", f"{number} to mrpo-ds train", time.monotonic() - told, "exit 75")


@pytest.mark.parametrize("victim", ["reference", pytest.param("command", marks=pytest.mark.all_faults)])
def test_a_process_killed_under_the_command(victims: Victims, victim: str) -> None:
    """Nobody outlives the command for long, nor does the policy leave before it has saved its step."""
    path, directory = victims.config(f"command-kill-{victim}", settings(victims.root, steps=3000))
    with command_in_training(path, directory) as process:
        below = process.children(recursive=True)
        reference = next(one for one in below if one.environ().get("RANK") == str(REFERENCE))
        told = time.monotonic()
        (reference if victim == "reference" else process).kill()
        assert process.wait(timeout=60) == (75 if victim == "reference" else -9)
        gone, left = psutil.wait_procs(below, timeout=0 if victim == "reference" else 30)
        assert not left
    (message,) = errors(console_of(path))
    expected = {
        "reference": f"{NAMES[REFERENCE]} (global rank {REFERENCE},",
        "command": f"the launcher (process {process.pid}) is gone",
    }
    assert expected[victim] in message
    check_last_step_is_saved(directory, message)
    note("kill -9", f"{victim} under mrpo-ds train", time.monotonic() - told, "step saved, nobody left")


def test_a_second_signal_ends_the_run_at_once(victims: Victims) -> None:
    """The first asks to stop after the step, which takes longer than the user likes to wait."""
    path, directory = victims.config("twice", settings(victims.root))
    fault = Fault("train", 5, POLICY, "SIGINT", pause=60.0, again=4.0)
    run = victims.train(path, fault=fault)
    (message,) = errors(run.stderr)
    assert "stopped by SIGINT (the second signal) at step 5 in phase 'train'" in message
    assert set(run.codes) == {75}, "a checkpoint is there"
    check_whole(directory)
    assert seconds_to_end(path, run) < 4.0 + SECONDS


def within_budget(victims: Victims, name: str, seconds: float) -> Finished:
    path, directory = victims.config(name, settings(victims.root, steps=3000, train={"max_seconds": seconds}))
    started = time.time()
    run = victims.train(path)
    assert max(run.ended) - started < seconds
    check_whole(directory)
    return run


def test_a_run_stops_before_its_time_is_over(victims: Victims) -> None:
    run = within_budget(victims, "budget", 16.0)
    assert set(run.codes) == {75}
    (message,) = errors(run.stderr)
    assert "stopped by train.max_seconds: " in message and "is saved, run again with --resume auto" in message


@pytest.mark.all_faults
def test_the_end_of_a_slurm_job_is_a_budget(victims: Victims) -> None:
    """A real Slurm says when the job ends. That every test run asks one is in tests/e2e/test_slurm.py."""
    path, directory = victims.config("slurm", settings(victims.root, steps=30000))
    script = (
        f"export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}\n"
        f"srun --ntasks=3 {sys.executable} -m mrpo_ds train {path}\n"
    )
    with two_node_slurm(victims.root / "slurm-daemons") as slurm:
        code, output = slurm.batch(script, "--nodes=2", "--ntasks=3", "--time=1")
    assert code == 75, output[-3000:]
    (message,) = errors(output)
    assert "stopped by the end of the Slurm job: " in message
    check_last_step_is_saved(directory, message)
    note("wall clock", "the end of a Slurm job of a minute", 0.0, "exit 75 before it")


@pytest.mark.all_faults
def test_what_could_not_be_restored_is_not_saved(victims: Victims) -> None:
    """A sharding that checkpoints do not know is allowed without them; then a signal stops the run without one."""
    sharding = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    sharding["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "ratio": 0.5}
    file = victims.root / "ratio.json"
    file.write_text(json.dumps(sharding))
    config = settings(victims.root, checkpoint={"every_steps": 0}) | {"deepspeed": str(file)}
    path, directory = victims.config("not-restorable", config)
    run = victims.train(path, fault=Fault("train", 5, POLICY, "SIGTERM", pause=0.5))
    assert set(run.codes) == {75}, run.stderr[-3000:]
    (message,) = errors(run.stderr)
    assert "no step is saved, since what this ds_config makes cannot be restored" in message
    assert not list_checkpoints(directory / "checkpoints")
