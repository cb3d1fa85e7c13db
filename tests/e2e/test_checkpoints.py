"""Checkpoints of real runs: a disk that is full for one of them, files that were damaged, settings that changed."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Runs
from tests.support import base_config, command_environment, need, read_metrics, without_clock, write_config
from tests.warm import Warm


def settings(root: Path) -> dict[str, Any]:
    """Two policy ranks, a checkpoint every other step, the newest two kept."""
    values = base_config(root, references=1)
    values["topology"] |= {"policy": 2, "placement": "colocated"}
    values["train"] |= {"max_steps": 6}
    values["checkpoint"] = {"every_steps": 2, "keep": 2}
    return values


@pytest.fixture(scope="module")
def whole(warm_runs: Runs) -> Any:
    return warm_runs.train("whole", settings(warm_runs.root))


def bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def can_mount() -> bool:
    attempt = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return attempt.returncode == 0


def test_a_disk_without_room_for_a_second_checkpoint_costs_that_one_only(warm_runs: Runs, whole: Any) -> None:
    """The checkpoints of the same run on a disk of their own that holds one and a half of them."""
    need(shutil.which("unshare") is not None and can_mount(), "unshare, and leave to mount a tmpfs in a namespace")
    directory = warm_runs.root / "full-disk"
    config = write_config(warm_runs.root / "full-disk.yaml", {**settings(warm_runs.root), "output_dir": str(directory)})
    room = int(1.5 * bytes_below(whole.directory / "checkpoints" / "step-00000006"))
    train = f"{sys.executable} -m mrpo_ds train {config} --resume auto"  # auto: the directory is there already
    script = (
        f"mkdir -p {directory}/checkpoints && mount -t tmpfs -o size={room} tmpfs {directory}/checkpoints && {train}; "
        f"code=$?; ls -A {directory}/checkpoints > {directory}/listing; exit $code"
    )
    run = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], env=command_environment(), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert (directory / "listing").read_text().split() == ["step-00000002"], (
        "the first stays, nothing half-written does"
    )
    warnings = [line for line in run.stderr.splitlines() if "warning: the checkpoint" in line]
    assert ["step-00000004 cannot be written" in warnings[0], "step-00000006 cannot be written" in warnings[1]] == [
        True
    ] * 2
    assert len(warnings) == 2 and "Traceback" not in run.stderr
    assert without_clock(read_metrics(directory)) == without_clock(whole.metrics)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(warm_runs: Runs, whole: Any) -> None:
    directory = warm_runs.root / "damaged"
    shutil.copytree(whole.directory, directory)
    newest = directory / "checkpoints" / "step-00000006"
    shard = newest / "policy" / "rank-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run = warm_runs.train("damaged", settings(warm_runs.root), "--resume", "auto")
    assert f"{newest} is damaged: policy/{shard.name} has changed since it was written" in run.process.stderr
    assert f"resuming from {newest.with_name('step-00000004')}" in run.process.stderr
    assert without_clock(run.metrics) == without_clock(whole.metrics)


def test_a_changed_setting_is_named_before_anything_is_lost(warm_runs: Runs, warm: Warm, whole: Any) -> None:
    values = {**settings(warm_runs.root), "output_dir": str(whole.directory)}
    config = write_config(warm_runs.root / "other.yaml", values)
    run = warm.alone("train", str(config), "loss.beta=0.2", "--resume", "auto")
    assert run.returncode == 2, run.stderr[-3000:]
    assert "was written with other settings: loss.beta was 0.1, is 0.2. Resume as" in run.stderr
    assert "Traceback" not in run.stderr and len(read_metrics(whole.directory)) == 6
