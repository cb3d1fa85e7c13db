"""Stacks on demand between real processes: of all ranks, of one that holds the interpreter's lock, and who is mute."""

import re
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

from mrpo_ds.distributed.hang_report import ANSWER_SECONDS
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from tests.distributed.harness import Ranks, make_topology, say
from tests.distributed.test_heartbeat import enter, sleep_in_c

TOPOLOGY = make_topology(2, a=1)
ALL = (0, 1, 2)


def work(topology: Topology, launch: Launch, directory: Path, holds: int | None) -> None:
    """Work for ever, in C code; one rank may hold the interpreter's lock there."""
    heartbeat = enter(topology, launch, 60, directory)
    heartbeat.phase("train", 5)
    time.sleep(0.5)
    say("going")
    if launch.rank == holds:
        hold_the_lock()
    sleep_in_c()


def hold_the_lock() -> None:
    deque(repeat(None, 10**12), maxlen=0)  # one call of C code, which no signal cuts short


@contextmanager
def working(directory: Path, holds: int | None = None) -> Iterator[Ranks]:
    ranks = Ranks(work, TOPOLOGY, directory, holds)
    ranks.wait_for("going", *ALL)
    if holds is not None:
        time.sleep(0.5)  # it holds it now
    yield ranks
    ranks.finish(timeout=0, leave_behind=ALL)


def reports(directory: Path) -> dict[str, dict[int, str]]:
    """Time of a report -> rank -> its stacks."""
    found: dict[str, dict[int, str]] = {}
    for path in sorted((directory / "logs").glob("stacks-*")):
        _, day, clock, _, rank = path.stem.split("-")
        found.setdefault(f"{day}-{clock}", {})[int(rank)] = path.read_text()
    return found


def test_a_signal_to_one_rank_shows_where_all_are(tmp_path: Path) -> None:
    with working(tmp_path) as ranks:
        ranks.send_signal(signal.SIGUSR2, 2)
        ranks.wait_for(f"stacks of 3 of 3 ranks are in {tmp_path}/logs/stacks-", 0)
        ranks.wait_for("-rank-N.txt\n", 0)
        (stacks,) = reports(tmp_path).values()
        assert sorted(stacks) == [0, 1, 2]
        for rank, name in enumerate(("policy rank 0", "policy rank 1", "ref/a rank 0")):
            first, *rest = stacks[rank].splitlines()
            assert first == f"{name} (global rank {rank}, host {socket.gethostname()}) at step 5 in phase 'train'"
            assert any("in sleep_in_c" in line for line in rest) and any("heartbeat.py" in line for line in rest)


def test_one_report_for_all_who_ask_at_once_and_another_later(tmp_path: Path) -> None:
    with working(tmp_path) as ranks:
        ranks.send_signal(signal.SIGUSR2, *ALL)
        ranks.wait_for("stacks of 3 of 3", 0)
        time.sleep(3)
        assert len(reports(tmp_path)) == 1
        ranks.send_signal(signal.SIGUSR2, 1)
        deadline = time.monotonic() + 10
        while [sorted(one) for one in reports(tmp_path).values()] != [[0, 1, 2], [0, 1, 2]]:
            assert time.monotonic() < deadline, reports(tmp_path)
            time.sleep(0.1)


def test_a_rank_that_holds_the_interpreters_lock_is_shown_by_its_neighbour(tmp_path: Path) -> None:
    with working(tmp_path, holds=1) as ranks:
        ranks.send_signal(signal.SIGUSR2, 2)
        ranks.wait_for("stacks of 3 of 3 ranks are in", 0)
        (stacks,) = reports(tmp_path).values()
        assert "in hold_the_lock" in stacks[1] and "shown by global rank 0 in its place" in stacks[1]
        assert "in sleep_in_c" in stacks[0] and "in sleep_in_c" in stacks[2]


def test_a_stopped_rank_is_named_and_answers_when_it_goes_on(tmp_path: Path) -> None:
    with working(tmp_path) as ranks:
        ranks.send_signal(signal.SIGSTOP, 1)
        ranks.send_signal(signal.SIGUSR2, 2)
        ranks.wait_for(
            f"no answer within {ANSWER_SECONDS:.0f} s from policy rank 1 (global rank 1, host {socket.gethostname()}) "
            "at step 5 in phase 'train'",
            0,
        )
        assert "stacks of 2 of 3 ranks are in" in ranks.output(0)
        (stacks,) = reports(tmp_path).values()
        assert sorted(stacks) == [0, 2]
        ranks.send_signal(signal.SIGCONT, 1)
        deadline = time.monotonic() + 10
        while 1 not in reports(tmp_path).popitem()[1]:
            assert time.monotonic() < deadline, (reports(tmp_path), ranks.output(0), ranks.output(1))
            time.sleep(0.1)
        time.sleep(1.5)
        assert len(reports(tmp_path)) == 1, "what comes late starts no other report"


def test_a_stopped_rank_0_is_named_by_the_rank_that_was_asked(tmp_path: Path) -> None:
    with working(tmp_path) as ranks:
        ranks.send_signal(signal.SIGSTOP, 0)
        ranks.send_signal(signal.SIGUSR2, 2)
        ranks.wait_for("the stacks of this rank alone are in", 2)
        assert re.search(r"no answer within 5 s from policy rank 0 .* at step 5 in phase 'train'", ranks.output(2))
        ((stacks,),) = (one.values() for one in reports(tmp_path).values())
        assert stacks.startswith("ref/a rank 0 (global rank 2")
        assert "in sleep_in_c" in stacks


def test_a_report_that_cannot_be_written_is_shown(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()  # a file where the folder should be
    with working(tmp_path) as ranks:
        ranks.send_signal(signal.SIGUSR2, 2)
        for rank in ALL:
            ranks.wait_for("cannot be written (", rank)
            ranks.wait_for("in sleep_in_c", rank)
