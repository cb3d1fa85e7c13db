"""Logs and hang reports of real runs: two ranks of the policy and a served reference."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.live import NAMES, OTHER_POLICY, POLICY, REFERENCE, Fault, Victims, check_same, errors, settings
from tests.warm import Finished, Warm

STEPS = 12
RANKS = (POLICY, OTHER_POLICY, REFERENCE)


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Victims:
    return Victims(tmp_path_factory.mktemp("logs"), warm)


@pytest.fixture(scope="module")
def whole(victims: Victims) -> tuple[Path, Path, Finished]:
    """Configuration, directory and process of a run that nobody disturbed."""
    path, directory = victims.config("whole", settings(victims.root, steps=STEPS))
    run = victims.train(path)
    assert run.returncode == 0, run.stderr[-4000:]
    return path, directory, run


def log_of(directory: Path, rank: int) -> list[str]:
    """The messages in a rank's log, each of which says when it was and whose it is."""
    text = (directory / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8")
    start = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \| {NAMES[rank]} \(global rank {rank}\) \| "
    return [re.sub(start, "", line) for line in text.splitlines() if re.match(start, line)]


def console_lines(run: Finished) -> list[str]:
    return [line.split(" | ", 2)[2] for line in run.stderr.splitlines() if line.startswith("mrpo-ds | ")]


def test_each_rank_has_a_log_of_its_own_and_a_resumed_run_adds_to_it(
    victims: Victims, whole: tuple[Path, Path, Finished]
) -> None:
    path, directory, run = whole
    first = {rank: log_of(directory, rank) for rank in RANKS}
    for rank, lines in first.items():
        assert re.fullmatch(
            rf"--- {NAMES[rank]} \(global rank {rank}\) of 3, host \S+, process \d+ begins ---", lines[0]
        )
    assert [line for line in console_lines(run) if line not in first[POLICY]] == []
    for text in (f"training: {STEPS}/{STEPS} step (100%)", f"step {STEPS}: held-out accuracy"):
        assert sum(text in line for line in first[POLICY]) == 1
        assert run.stderr.count(text) == 1, "the others say it to their files"
    assert any(line.startswith("policy: ") and line.endswith("on 2 x cpu") for line in first[OTHER_POLICY])
    assert any(line.startswith("reference ref1: ") for line in first[REFERENCE])
    assert "reference ref1: " not in run.stderr
    assert victims.train(path, "--resume", "auto").returncode == 0
    for rank, before in first.items():
        lines = log_of(directory, rank)
        assert lines[: len(before)] == before
        assert lines[len(before)].endswith(f"goes on from {directory}/checkpoints/step-{STEPS:08d} ---")


def test_a_failing_rank_has_its_traceback_in_its_log_and_the_run_may_begin_again(victims: Victims) -> None:
    """The reference's weights end too early: what its check reads of them is whole."""
    config = settings(victims.root, steps=1, checkpoint={"every_steps": 0})
    broken = victims.root / "models" / "broken"
    shutil.copytree(config["references"][0]["path"], broken)
    config["references"][0]["path"] = str(broken)
    weights = broken / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1000])
    path, directory = victims.config("failing", config)
    run = victims.train(path)
    assert run.returncode != 0
    (message,) = errors(run.stderr)
    assert message.startswith(f"mrpo-ds: error: {NAMES[REFERENCE]} (global rank {REFERENCE}")
    log = log_of(directory, REFERENCE)
    assert any(line.startswith("Traceback (most recent call last)") for line in log)
    assert any("roles.py" in line and "_reference_scorer" in line for line in log)
    for rank in RANKS:  # everybody's file says why it ended
        assert message in log_of(directory, rank)
    assert not any("_reference_scorer" in line for line in log_of(directory, POLICY))
    weights.write_bytes(data)
    again = victims.train(path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert sum(line.endswith(" begins ---") for line in log_of(directory, REFERENCE)) == 2


def test_hang_reports_of_a_long_step_and_of_a_stopped_rank_change_no_number(
    victims: Victims, whole: tuple[Path, Path, Finished]
) -> None:
    config = settings(victims.root, steps=STEPS, topology={"timeout_seconds": 60})
    path, directory = victims.config("disturbed", config)
    notes = path.with_suffix(".notes")

    def pid(rank: int) -> int:
        return int((notes / str(rank)).read_text())

    def disturb() -> None:
        """The long step has been reported: stop a rank that later steps need, ask again, let it go on."""
        wait_until(lambda: said(directory, "stacks of 3 of 3 ranks are in"))
        os.kill(pid(REFERENCE), signal.SIGSTOP)
        time.sleep(2.5)  # sooner, it would be taken for the same report
        os.kill(pid(POLICY), signal.SIGUSR2)
        wait_until(lambda: said(directory, "no answer within"))
        os.kill(pid(REFERENCE), signal.SIGCONT)

    thread = threading.Thread(target=disturb)
    thread.start()
    run = victims.train(path, fault=Fault("train", 3, OTHER_POLICY, "SIGUSR2", pause=4.0))
    thread.join()
    assert run.returncode == 0, run.stderr[-4000:]
    whole_report, partial = [line for line in console_lines(run) if line.startswith("stacks of")]
    assert whole_report.endswith("-rank-N.txt") and whole_report in log_of(directory, POLICY)
    for rank in RANKS:
        text = Path(whole_report.split(" are in ")[1].replace("rank-N", f"rank-{rank}")).read_text()
        assert text.startswith(f"{NAMES[rank]} (global rank {rank}, host ") and "most recent call first" in text
        assert ("in phase 'train'" in text.splitlines()[0]) == (rank == POLICY) or rank == OTHER_POLICY
        if rank == POLICY:
            assert "inject.py" in text, "where the long step is"
    assert partial.startswith("stacks of 2 of 3 ranks are in ")
    assert f"no answer within 5 s from {NAMES[REFERENCE]} (global rank {REFERENCE}, host " in partial
    assert re.search(r" at step \d+ in phase '", partial)
    check_same(directory, whole[1])


def said(directory: Path, text: str) -> bool:
    return (directory / "logs" / "rank-0.log").exists() and any(text in line for line in log_of(directory, POLICY))


def wait_until(happened: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
