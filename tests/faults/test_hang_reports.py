"""SIGUSR2 under every launcher: which way it reaches the ranks, and that the run goes on (docs/reliability.md)."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.live import REFERENCE, Fault, Victims, check_same, settings
from tests.faults.test_signals import command_in_training, console_of
from tests.slurm_support import two_node_slurm
from tests.support import free_port

pytestmark = pytest.mark.all_faults


def check_report(directory: Path, console: str, reports: int = 1) -> None:
    """Every rank's stacks are there, and one line of the console says where."""
    assert console.count("stacks of 3 of 3 ranks are in ") == reports, console[-3000:]
    for rank in range(3):
        files = sorted((directory / "logs").glob(f"stacks-*-rank-{rank}.txt"))
        assert len(files) == reports
        assert all("most recent call first" in path.read_text() for path in files)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_signal_to_a_rank_of_another_launcher(victims: Victims, whole: Path, launcher: str) -> None:
    path, directory = victims.config(f"{launcher}-stacks", settings(victims.root))
    run = victims.launch(launcher, path, Fault("train", 5, REFERENCE, "SIGUSR2", pause=4.0))
    assert run.returncode == 0, run.stderr[-3000:]
    check_report(directory, run.stderr)
    check_same(directory, whole)


def test_a_signal_to_the_command(victims: Victims) -> None:
    path, directory = victims.config("command-stacks", settings(victims.root, steps=3000))
    with command_in_training(path, directory) as process:
        process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 20
        while "stacks of" not in console_of(path):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    check_report(directory, console_of(path))


def test_a_signal_through_slurm(victims: Victims) -> None:
    """scancel signals every task on both nodes; the batch script does not get it."""
    path, directory = victims.config("slurm-stacks", settings(victims.root, steps=3000))
    script = (
        f"export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}\n"
        f"srun --ntasks=3 {sys.executable} -m mrpo_ds train {path} &\n"
        f"until grep -q '\"step\": 3' {directory}/metrics.jsonl 2>/dev/null; do sleep 0.2; done\n"
        "scancel --signal=USR2 $SLURM_JOB_ID\n"
        f"until [ $(ls {directory}/logs | grep -c ^stacks-) = 3 ]; do sleep 0.2; done\n"
        "sleep 2\n"
        "scancel --signal=TERM $SLURM_JOB_ID\n"
        "wait $!\n"
    )
    with two_node_slurm(victims.root / "slurm-daemons-stacks") as slurm:
        code, output = slurm.batch(script, "--nodes=2", "--ntasks=3", "--time=5")
    assert code == 75, output[-3000:]
    check_report(directory, output)
