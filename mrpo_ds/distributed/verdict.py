"""Who is to blame when a run must end: a pure function of what global rank 0 knows about every process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrpo_ds.distributed.topology import Topology

SUSPECT_SECONDS = 5.0
"""When a collective broke, a peer that has been silent for this long is the one to name."""
PRIORITY = ("failed", "broken", "stopping")
"""An error of a process's own explains a broken collective, and both explain a launcher's signal to the others."""


@dataclass(frozen=True)
class Word:
    """What a process says about itself, as often as it changes and at every beat."""

    host: str
    phase: str = "start"
    step: int = 0
    status: str = "running"
    """running | failed (its own error) | broken (a collective or the bridge) | stopping (a signal) | done."""
    reason: str = ""
    """Why it is failed, broken or stopping."""
    exit_code: int | None = None
    """What the run should exit with for that reason; None: 75 when there is a checkpoint, 1 otherwise."""


@dataclass(frozen=True)
class Peer:
    """One process as global rank 0 knows it."""

    word: Word | None
    """The last it said; None before the first."""
    heard: float
    """When it said so, in seconds of this process's monotonic clock."""


@dataclass(frozen=True)
class Verdict:
    """The end of a run."""

    message: str
    culprit: int | None = None
    """Global rank of the process to blame, where there is one."""
    exit_code: int | None = None
    """As in Word."""


def judge_trouble(
    topology: Topology, peers: Mapping[int, Peer], troubles: Sequence[tuple[int, Word]], now: float
) -> Verdict:
    """The verdict about the words of trouble of some processes, in the order in which they came.

    Args:
        topology: The names of the ranks.
        peers: Every global rank, the one that judges too.
        troubles: At least one (global rank, its word), status failed, broken or stopping.
        now: In seconds of the clock of Peer.heard.
    """
    rank, word = min(troubles, key=lambda trouble: PRIORITY.index(trouble[1].status))
    if word.status == "stopping":
        return Verdict(_stopped(topology, peers, dict(troubles)), None, word.exit_code)
    failure = f"{describe(topology, rank, word)} failed {_where(word)}: {word.reason}"
    if word.status == "failed":
        return Verdict(failure, rank, word.exit_code)
    silent = [other for other in peers if other != rank and now - peers[other].heard > SUSPECT_SECONDS]
    if silent:
        culprit = min(silent, key=lambda other: peers[other].heard)
        verdict = judge_silence(topology, culprit, peers[culprit], now)
        return Verdict(f"{verdict.message}. Seen first by {describe(topology, rank, word)}: {word.reason}", culprit)
    others = "; ".join(
        f"{topology.role_of(other).name} is {_where(peer.word)}"
        for other, peer in peers.items()
        if other != rank and peer.word is not None and other == topology.role_of(other).first
    )
    return Verdict(f"{failure}. Meanwhile {others or 'nobody else is there'}.", rank, word.exit_code)


def judge_death(topology: Topology, rank: int, word: Word) -> Verdict:
    """A process whose connection closed before it had said that it was done."""
    return Verdict(f"{describe(topology, rank, word)} died: it is gone without a word, last seen {_where(word)}", rank)


def judge_silence(topology: Topology, rank: int, peer: Peer, now: float) -> Verdict:
    """A process that is connected, or never was, and has said nothing for too long."""
    seconds = f"{now - peer.heard:.0f} s"
    if peer.word is None:
        return Verdict(f"{describe(topology, rank, None)} never reported; waited {seconds}", rank)
    return Verdict(
        f"{describe(topology, rank, peer.word)} is stuck or cut off: no sign of life for {seconds}, "
        f"last seen {_where(peer.word)}",
        rank,
    )


def describe(topology: Topology, rank: int, word: Word | None) -> str:
    """'ref/gemma rank 0 (global rank 2, host node7)'."""
    role = topology.role_of(rank)
    host = f", host {word.host}" if word else ""
    return f"{role.name} rank {rank - role.first} (global rank {rank}{host})"


def _where(word: Word) -> str:
    return f"at step {word.step} in phase '{word.phase}'"


def _stopped(topology: Topology, peers: Mapping[int, Peer], stopping: Mapping[int, Word]) -> str:
    rank = min(stopping)
    who = "" if rank == 0 else f"{describe(topology, rank, stopping[rank])} was "
    message = f"{who}{stopping[rank].reason} {_where(stopping[rank])}"
    missing = [describe(topology, other, None) for other, peer in peers.items() if peer.word is None]
    return f"{message}; not there yet: {', '.join(missing)}" if missing else message
