"""Real processes for distributed tests: every rank of a small topology, a hard time limit, own children only."""

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Role, Topology

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
# A server that has imported torch once and forks a process a rank: 0.1 s instead of 3 s (with deepspeed 10), and no
# threads of pytest's.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.distributed.preloaded"])

Body = Callable[..., Any]
"""body(topology, launch, *arguments) is what a rank does; a function of a test module, so that it can be sent."""


@dataclass
class Outcome:
    """What became of one rank."""

    exit_code: int
    """Negative: killed by that signal."""
    result: Any
    """What the body returned, or None."""
    output: str
    """Its stdout and stderr, with the traceback when it raised."""
    ended: float
    """Seconds after the start of the ranks."""


def make_topology(policy: int, **references: int) -> Topology:
    """The policy on ranks 0-1 and ref/a on rank 2, for (2, a=1)."""
    roles = [Role("policy", 0, policy)]
    for name, size in references.items():
        roles.append(Role(f"ref/{name}", roles[-1].first + roles[-1].size, size))
    return Topology(tuple(roles))


class Ranks:
    """The running ranks of a topology."""

    def __init__(self, body: Body, topology: Topology, *arguments: Any, absent: tuple[int, ...] = ()) -> None:
        from tests.support import free_port  # imports transformers, which the ranks can do without

        port = free_port()
        self._directory = tempfile.TemporaryDirectory()
        self._ends: dict[int, Connection] = {}
        self._processes = {}
        for rank in range(topology.world_size):
            if rank in absent:
                continue
            launch = Launch(rank, topology.world_size, rank, "127.0.0.1", port, None)
            mine, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_rank, args=(theirs, str(self._file(rank)), body, topology, launch, *arguments), daemon=True
            )
            process.start()
            theirs.close()
            self._ends[rank], self._processes[rank] = mine, process
        self.started = time.monotonic()  # not sooner: the first one waits for all that the server imports

    def send_signal(self, number: signal.Signals, *ranks: int) -> float:
        """Signal some ranks; returns when that was, in the seconds of Outcome.ended."""
        for rank in ranks:
            os.kill(self._processes[rank].pid, number)
        return time.monotonic() - self.started

    def wait_for(self, text: str, *ranks: int, timeout: float = 30) -> None:
        """Wait until each of the ranks has printed a text."""
        deadline = time.monotonic() + timeout
        while not all(text in self.output(rank) for rank in ranks):
            assert time.monotonic() < deadline, f"no {text!r} within {timeout} s: {self._outputs()}"
            time.sleep(0.02)

    def finish(self, timeout: float = 40, leave_behind: tuple[int, ...] = ()) -> dict[int, Outcome]:
        """Wait for all ranks but leave_behind, kill what is left, say what became of each. Fails past the timeout."""
        deadline = self.started + timeout
        waiting = set(self._processes) - set(leave_behind)
        results: dict[int, Any] = {}
        ended: dict[int, float] = {}
        while waiting and time.monotonic() < deadline:
            for rank in list(waiting):
                if self._ends[rank].poll():
                    results[rank] = _received(self._ends[rank], results.get(rank))
                if not self._processes[rank].is_alive():
                    ended[rank] = time.monotonic() - self.started
                    waiting.remove(rank)
            time.sleep(0.01)
        for process in self._processes.values():
            process.kill()
            process.join()
        outputs = self._outputs()
        self._directory.cleanup()
        assert not waiting, f"ranks {sorted(waiting)} did not end within {timeout} s: {outputs}"
        return {
            rank: Outcome(process.exitcode, results.get(rank), outputs[rank], ended.get(rank, timeout))
            for rank, process in self._processes.items()
        }

    def _file(self, rank: int) -> Path:
        return Path(self._directory.name) / f"rank{rank}.txt"

    def output(self, rank: int) -> str:
        """What a rank has printed so far."""
        return self._file(rank).read_text(encoding="utf-8", errors="replace") if self._file(rank).exists() else ""

    def _outputs(self) -> dict[int, str]:
        return {rank: self.output(rank) for rank in self._processes}


def run_ranks(body: Body, topology: Topology, *arguments: Any, timeout: float = 40) -> list[Any]:
    """Run every rank to its end and return their results by rank; a failure shows the traceback of every rank's."""
    outcomes = Ranks(body, topology, *arguments).finish(timeout)
    failed = {rank: outcome for rank, outcome in outcomes.items() if outcome.exit_code}
    text = "\n".join(f"rank {rank} exited with {one.exit_code}:\n{one.output}" for rank, one in failed.items())
    assert not failed, text
    return [outcomes[rank].result for rank in sorted(outcomes)]


def everyone_left(topology: Topology, store: dist.Store, rank: int) -> None:
    """Rank 0 hosts the store: it waits for the others. In a run the bridge sees to that."""
    store.set(f"left/{rank}", "")
    if rank == 0:
        store.wait([f"left/{other}" for other in range(topology.world_size)])


def say(text: str) -> None:
    """Print one line, whole, for Ranks.wait_for."""
    os.write(1, f"{text}\n".encode())


def _received(end: Connection, default: Any) -> Any:
    try:
        return end.recv()
    except EOFError:
        return default


def _rank(results: Connection, file: str, body: Body, topology: Topology, launch: Launch, *arguments: Any) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    try:
        results.send(body(topology, launch, *arguments))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
