"""The deepspeed launcher over two hosts: policy on one, reference on the other; then the cable is pulled out."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
import pytest

from tests.hosts_support import TwoHosts, two_hosts
from tests.support import base_config, mrpo_ds, read_metrics, without_clock, write_config

STEPS = 60
SILENCE = 8.0
"""topology.timeout_seconds."""
SLACK = 8.0
"""On top of it until the lost role is named: a beat, and this machine's two cores."""
START_SECONDS = 400.0
"""Until the first steps are done: on a machine with other work, imports take minutes."""
SLOTS = (2, 1)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


def settings(root: Path) -> dict[str, Any]:
    values = base_config(root, references=1)
    values["topology"] |= {"policy": 2, "timeout_seconds": SILENCE}
    values["train"] |= {"max_steps": STEPS, "epochs": STEPS}
    values["checkpoint"] = {"every_steps": 20}
    values["evaluate"] = {"every_steps": 20}
    return values


def wait_for(run: Popen[bytes], output: Path, text: str, seconds: float) -> str:
    """What has been said as soon as the text is among it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = output.read_text(encoding="utf-8", errors="replace")
        if text in said:
            return said
        assert run.poll() is None, f"ended with {run.returncode} without {text!r}:\n{said[-6000:]}"
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} within {seconds:g} s:\n{output.read_text()[-6000:]}")


def wait_for_steps(run: Popen[bytes], output: Path, metrics: Path, steps: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < steps:
        assert run.poll() is None and time.monotonic() < deadline, output.read_text()[-6000:]
        time.sleep(0.02)


def test_a_cable_that_is_pulled_out_names_the_lost_role_and_a_rerun_resumes(hosts: TwoHosts, tmp_path: Path) -> None:
    values = settings(tmp_path)
    directory = tmp_path / "run"
    config = str(write_config(tmp_path / "run.yaml", {**values, "output_dir": str(directory)}))
    output = tmp_path / "first.out"
    run = hosts.deepspeed(SLOTS, output, "train", config)
    wait_for_steps(run, output, directory / "metrics.jsonl", 5)
    hosts.plug("down")
    pulled = time.monotonic()
    said = wait_for(run, output, "is stuck or cut off", SILENCE + SLACK)
    named = time.monotonic() - pulled
    assert "node 0 (left): policy ranks 0-1; node 1 (right): ref/ref1 rank 2" in said
    code = run.wait(120)
    said = output.read_text(encoding="utf-8", errors="replace")
    assert "ref/ref1 rank 0 (global rank 2, host right) is stuck or cut off: no sign of life for" in said
    assert SILENCE - 2 < named < SILENCE + SLACK
    assert "The policy saves what it has" in said and "Traceback" not in said
    assert code != 0, "75 of the ranks, or 255 of the ssh that was cut off"
    steps = [row["step"] for row in read_metrics(directory)]
    assert 5 <= len(steps) < STEPS and steps == list(range(1, len(steps) + 1))
    assert (directory / "checkpoints" / f"step-{steps[-1]:08d}" / "state.json").exists(), "no step is lost"
    wait_until_only_sshd(hosts)

    hosts.plug("up")
    output = tmp_path / "second.out"
    run = hosts.deepspeed(SLOTS, output, "train", config, "--resume", "auto")
    assert run.wait(600) == 0, output.read_text()[-6000:]
    said = output.read_text(encoding="utf-8", errors="replace")
    assert f"resuming from {directory}/checkpoints/step-{steps[-1]:08d}" in said
    assert [row["step"] for row in read_metrics(directory)] == list(range(1, STEPS + 1))

    alone = tmp_path / "alone"
    config = str(write_config(tmp_path / "alone.yaml", {**values, "output_dir": str(alone)}))
    done = mrpo_ds("train", config, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert without_clock(read_metrics(directory, name)) == without_clock(read_metrics(alone, name)), name
    model = Path("model") / "model.safetensors"
    assert (directory / model).read_bytes() == (alone / model).read_bytes()


def wait_until_only_sshd(hosts: TwoHosts) -> None:
    """The rank behind the cut cable ends by itself, too."""
    deadline = time.monotonic() + SILENCE + 30
    while time.monotonic() < deadline:
        left = [name for host in hosts.hosts for name in names_of(host.processes()) if not name.startswith("sshd")]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"still there: {left}")


def names_of(processes: list[int]) -> list[str]:
    """Of those that are still there."""
    names = []
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(psutil.Process(pid).name())
    return names
