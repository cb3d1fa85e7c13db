"""Our launcher: whatever its ranks do, it ends, with their exit code and without leaving anything behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, command_environment

LAUNCHER = """
import json, sys
from mrpo_ds import session
session.GRACE_SECONDS, session.END_SECONDS = 1.0, 3.0
print(json.dumps(session.run_ranks([sys.executable, "-c", sys.argv[1]], {"PATH": ""}, 3)))
"""


def start(tmp_path: Path, **bodies: str) -> "subprocess.Popen[str]":
    """Ranks that note their process ids and then run the body of that name, or of others."""
    noting = f"""
        import os, signal, subprocess, sys, time
        from pathlib import Path
        rank = os.environ["RANK"]
        place = Path({str(tmp_path)!r})
        def note(name, value):
            (place / ".part").with_suffix("." + name).write_text(str(value))
            (place / ".part").with_suffix("." + name).rename(place / name)
        note(f"rank{{rank}}", os.getpid())
        while len(list(place.glob("rank*"))) < 3:
            time.sleep(0.01)
        exec({bodies!r}.get("rank" + rank, {bodies.get("others", "")!r}))
    """
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, textwrap.dedent(noting)],
        cwd=ROOT,
        env=command_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", tmp_path: Path) -> tuple[int, bool]:
    """What run_ranks returned; no process of any rank is there any more."""
    output, _ = process.communicate(timeout=30)
    for note in tmp_path.iterdir():
        pid = int(note.read_text())
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, note.name
    code, told = json.loads(output)
    return code, told


def wait_for(tmp_path: Path, *names: str) -> None:
    deadline = time.monotonic() + 20
    while not all((tmp_path / name).exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)


FOR_EVER = "time.sleep(600)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note('deaf' + rank, os.getpid()); time.sleep(600)"


@pytest.mark.parametrize(
    ("bodies", "code"),
    [
        ({}, 0),
        ({"rank1": "sys.exit(75)", "rank2": "sys.exit(1)"}, 75),
        ({"rank0": "sys.exit(2)", "others": "sys.exit(1)"}, 2),
        ({"rank2": "os.kill(os.getpid(), signal.SIGKILL)"}, -signal.SIGKILL),
    ],
)
def test_the_exit_code_is_that_of_the_first_rank_that_failed(tmp_path: Path, bodies: dict[str, str], code: int) -> None:
    assert finish(start(tmp_path, **bodies), tmp_path) == (code, False)


def test_a_rank_that_fails_before_the_others_know_it_ends_the_run(tmp_path: Path) -> None:
    """Rank 0 may save what it has, and is asked; without it all the others end, and are killed if they do not."""
    saving = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); " + FOR_EVER
    first = tmp_path / "first"
    first.mkdir()
    assert finish(start(first, rank0=saving, rank1="sys.exit(1)", rank2=DEAF), first) == (75, False)


def test_what_a_rank_has_started_does_not_outlive_the_run(tmp_path: Path) -> None:
    child = f"note('child', subprocess.Popen([sys.executable, '-c', 'import time; {FOR_EVER}']).pid)"
    assert finish(start(tmp_path, rank1=child), tmp_path) == (0, False)
    assert (tmp_path / "child").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_first_signal_is_for_rank_0_the_second_for_all(tmp_path: Path, number: signal.Signals) -> None:
    listen = "[signal.signal(n, lambda n, _: note(f'got{rank}-{n}', os.getpid())) for n in (2, 10, 15)]; "
    process = start(tmp_path, rank0=listen + "note('ready', os.getpid()); " + 15 * "time.sleep(0.2); ", others=FOR_EVER)
    wait_for(tmp_path, "ready")
    os.kill(process.pid, number)
    wait_for(tmp_path, f"got0-{15 if number == signal.SIGHUP else int(number)}")
    time.sleep(0.3)
    others = [psutil.Process(int((tmp_path / f"rank{rank}").read_text())) for rank in (1, 2)]
    assert all(other.is_running() for other in others)
    os.kill(process.pid, number)
    assert finish(process, tmp_path) == (-signal.SIGTERM, True)


def test_a_wish_for_stacks_goes_to_all_who_are_ready_for_it_and_ends_nobody(tmp_path: Path) -> None:
    ready = (
        "signal.signal(signal.SIGUSR2, lambda *_: note('got' + rank, os.getpid())); note('ready' + rank, os.getpid()); "
    )
    process = start(tmp_path, rank0=ready + "time.sleep(2)", rank1="time.sleep(2)", rank2=ready + "time.sleep(2)")
    wait_for(tmp_path, "ready0", "rank1", "ready2")
    os.kill(process.pid, signal.SIGUSR2)
    wait_for(tmp_path, "got0", "got2")
    assert finish(process, tmp_path) == (0, False)
