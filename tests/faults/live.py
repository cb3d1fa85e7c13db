"""Runs that are broken on purpose, what must hold afterwards, and the figures for the table of docs/reliability.md."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from mrpo_ds.checkpoint import find_damage, list_checkpoints
from tests.faults.inject import VARIABLE
from tests.support import ROOT, base_config, command_environment, free_port, read_metrics, without_clock, write_config
from tests.warm import Finished, Warm

POLICY, OTHER_POLICY, REFERENCE = range(3)
"""Global ranks of the runs here: two of the policy, one reference."""
NAMES = {POLICY: "policy rank 0", OTHER_POLICY: "policy rank 1", REFERENCE: "ref/ref1 rank 0"}
SILENCE = 6.0
"""topology.timeout_seconds: a process that says nothing for so long is given up."""
FIGURES = "MRPO_DS_TEST_FIGURES"
"""A file to which every fault adds a line of JSON."""


@dataclass(frozen=True)
class Fault:
    """What happens, when global rank 0 is where, to whom."""

    phase: str
    step: int
    victim: int | str
    signal: str = "SIGKILL"
    delay: float = 0.0
    pause: float = 0.0
    again: float = 0.0
    """After so many seconds the same signal once more, unless 0."""


def settings(root: Path, steps: int = 12, **changes: dict[str, Any]) -> dict[str, Any]:
    """Two policy ranks and a served reference; a checkpoint every 2 steps, an evaluation every 3."""
    config = base_config(root, references=1)
    config["topology"] |= {"policy": 2, "timeout_seconds": SILENCE}
    config["train"] |= {"max_steps": steps, "epochs": steps}
    config["checkpoint"] = {"every_steps": 2, "keep": 2}
    config["evaluate"] |= {"every_steps": 3}
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values}
    return config


class Victims:
    """Runs below one directory, broken and resumed, and the uninterrupted one that they must equal."""

    def __init__(self, root: Path, warm: Warm) -> None:
        self.root = root
        self._warm = warm

    def config(self, name: str, config: dict[str, Any]) -> tuple[Path, Path]:
        """The configuration file of a run of that name, and its directory."""
        directory = self.root / name
        return write_config(self.root / f"{name}.yaml", {**config, "output_dir": str(directory)}), directory

    def train(self, path: Path, *arguments: str, fault: Fault | None = None) -> Finished:
        """Run to the end, with imports already done; of the ranks alone, as under srun."""
        if fault is None:
            return self._warm("train", str(path), *arguments)
        with watched(path, fault) as environment:
            return self._warm("train", str(path), *arguments, **environment)

    def launch(self, launcher: str, path: Path, fault: Fault) -> subprocess.CompletedProcess[str]:
        """Run under a real launcher (deepspeed, torchrun) and wait until all of its processes are gone."""
        port = str(free_port())
        commands = {
            "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "3", "--master_addr", "127.0.0.1"]
            + ["--master_port", port, "--log_level", "error", "--module", "tests.faults.inject"],
            "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", port]
            + ["-m", "tests.faults.inject"],
        }
        with watched(path, fault) as environment:
            command = [sys.executable, *commands[launcher], "train", str(path)]
            output = path.with_suffix(".out")
            with output.open("wb") as console:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=command_environment(**environment),
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                code = process.wait(timeout=240)
                wait_until_gone(path)
            return subprocess.CompletedProcess(command, code, "", output.read_text(encoding="utf-8", errors="replace"))


@contextmanager
def watched(path: Path, fault: Fault) -> Iterator[dict[str, str]]:
    """The environment of a run with a fault; what it leaves behind afterwards is found."""
    notes = path.with_suffix(".notes")
    notes.mkdir(exist_ok=True)
    for old in notes.iterdir():
        old.unlink()
    shared_memory = set(os.listdir("/dev/shm"))
    yield {VARIABLE: json.dumps({"directory": str(notes), **asdict(fault)})}
    assert (notes / "fired").exists(), "the run ended before its fault"
    left = [pid for pid in _ranks(notes) if _runs(pid)]
    assert not left, f"left behind: {left}"
    memory = {name for name in set(os.listdir("/dev/shm")) - shared_memory if not name.startswith("sem.")}
    assert not memory, f"left in /dev/shm: {memory}"


def _runs(pid: int) -> bool:
    """Whether a process is there; a zombie that nobody reaps is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def seconds_to_end(path: Path, run: Finished | None = None) -> float:
    """Seconds from the fault to the end of the last rank, or to now."""
    fired = float((path.with_suffix(".notes") / "fired").read_text())
    return (max(run.ended) if run else time.time()) - fired


def wait_until_gone(path: Path, timeout: float = 90) -> None:
    """Wait until no rank of a run is there: those whose launcher was killed end by themselves."""
    deadline = time.monotonic() + timeout
    while left := [pid for pid in _ranks(path.with_suffix(".notes")) if _runs(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                psutil.Process(pid).kill()
            raise AssertionError(f"left behind: {left}")
        time.sleep(0.1)


def _ranks(notes: Path) -> list[int]:
    return [int(file.read_text()) for file in notes.iterdir() if file.name.isdecimal()]


def errors(output: str) -> list[str]:
    """What a run said to its user at its end."""
    return [line for line in output.splitlines() if line.startswith("mrpo-ds: error: ")]


def check_whole(directory: Path) -> None:
    """No checkpoint that is listed is damaged."""
    for checkpoint in list_checkpoints(directory / "checkpoints"):
        assert not find_damage(checkpoint)


def check_same(directory: Path, whole: Path) -> None:
    """Metrics and evaluations equal those of the uninterrupted run to the bit, and so do the final weights."""
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert without_clock(read_metrics(directory, name)) == without_clock(read_metrics(whole, name)), name
    weights = "model/model.safetensors"
    assert (directory / weights).read_bytes() == (whole / weights).read_bytes(), "the trained models differ"


def resume_and_compare(victims: Victims, path: Path, directory: Path, whole: Path) -> None:
    """Go on from what the broken run left: the result is that of the run that nothing happened to."""
    check_whole(directory)
    resumed = victims.train(path, "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    check_same(directory, whole)
    shutil.rmtree(directory)


def note(row: str, what: str, seconds: float, outcome: str) -> None:
    """Add a line to the figures, if they are wanted."""
    if FIGURES in os.environ:
        with Path(os.environ[FIGURES]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "what": what, "seconds": round(seconds, 1), "outcome": outcome}) + "\n")
