"""Files that are cut, changed or gone, and disks without room: what is whole is used, and the damage is named."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.live import Victims, check_same, check_whole, errors, note, settings
from tests.support import command_environment, free_port, need, read_metrics, write_config


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def tear(path: Path) -> None:
    """As after a power cut: the length is right, the end is zeros."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "bytes instead of"),
    "torn": (tear, "has changed since it was written (SHA-256)"),
    "flipped": (flip, "has changed since it was written (SHA-256)"),
    "deleted": (Path.unlink, "No such file or directory"),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(one, marks=pytest.mark.all_faults if one == "torn" else []) for one in DAMAGES]
)
def test_a_damaged_shard(victims: Victims, whole: Path, damage: str) -> None:
    """The newest checkpoint is damaged: it is named, and the one before it is used."""
    path, directory = victims.config(f"damage-{damage}", settings(victims.root))
    shutil.copytree(whole, directory)
    newest = directory / "checkpoints" / "step-00000012"
    shard = max((newest / "policy").iterdir())
    action, said = DAMAGES[damage]
    action(shard)
    run = victims.train(path, "--resume", "auto")
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"{newest} is damaged: policy/{shard.name}" in run.stderr and said in run.stderr
    assert f"resuming from {newest.with_name('step-00000010')}" in run.stderr
    check_same(directory, whole)
    note("damage", f"a shard is {damage}", 0.0, "named; the checkpoint before it is used")


def run_on_a_disk(victims: Victims, name: str, room: int, options: str = "", **changes: dict[str, object]):
    """One rank whose run directory is a file system of its own, of so many bytes. Its listing is left beside it."""
    need(shutil.which("unshare") is not None and can_mount(), "unshare, and leave to mount a tmpfs in a namespace")
    config = settings(victims.root, steps=8, **changes)
    config["topology"] = {"policy": 1, "placement": "colocated"}
    config["evaluate"] |= {"every_steps": 0}
    directory = victims.root / name
    directory.mkdir()
    kept = victims.root / f"{name}-kept"
    path = write_config(victims.root / f"{name}.yaml", {**config, "output_dir": str(directory)})
    script = (
        f"mount -t tmpfs -o size={room}{options} tmpfs {directory} && {sys.executable} -m mrpo_ds train {path} "
        f"--resume auto; code=$?; cp -r {directory} {kept}; exit $code"
    )
    launcher = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    run = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env=command_environment(**launcher),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in run.stderr
    return run, kept


def can_mount() -> bool:
    attempt = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return attempt.returncode == 0


def test_a_disk_that_is_full_for_metrics(victims: Victims) -> None:
    """Room for a log and a few rows: training goes on with one warning, and the rows are counted."""
    run, kept = run_on_a_disk(victims, "full-metrics", 20480, checkpoint={"every_steps": 0})
    assert run.stderr.count("warning: metrics.jsonl cannot be written") == 1
    assert "training goes on, rows are lost" in run.stderr and "training: 8/8 step" in run.stderr
    assert 0 < len(read_metrics(kept)) < 8
    assert run.returncode == 1
    (message,) = errors(run.stderr)
    assert "model" in message and "No space left on device" in message
    note("disk full", "at metrics", 0.0, "one warning, training goes on")


def test_a_disk_that_is_full_for_the_export(victims: Victims, whole: Path) -> None:
    """Room for one checkpoint and not for the model: what was trained is kept, and the run can go on later."""
    newest = whole / "checkpoints" / "step-00000012"
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    run, kept = run_on_a_disk(victims, "full-export", size + 60000, checkpoint={"every_steps": 8, "keep": 1})
    assert run.returncode == 75
    (message,) = errors(run.stderr)
    assert "No space left on device" in message
    check_whole(kept)
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step-00000008"]
    assert not (kept / "model").exists() or not list((kept / "model").glob("*.safetensors"))
    note("disk full", "at export", 0.0, "exit 75, the last checkpoint stays")


def test_a_run_directory_that_may_not_be_written(victims: Victims) -> None:
    run, _ = run_on_a_disk(victims, "read-only", 1 << 20, options=",ro")
    assert run.returncode == 2
    (message,) = errors(run.stderr)
    assert "Read-only file system" in message or "cannot be written" in message
