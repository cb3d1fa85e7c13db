"""Who is to blame when a run must end: a pure function of what global rank 0 knows about every process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mrpo_ds.distributed.topology import Topology

SUSPECT_SECONDS = 5.0
"""When a collective broke, a peer that has been silent for this long is the one to name."""
PRIORITY = ("failed", "broken", "stopping", "stopped")
"""An error of a process's own explains a broken collective, and both explain a launcher's signal to the others."""

DEADLINE_OF = {
    "load": "load",
    "preflight": "load",
    "score": "score",
    "wait": "score",  # for references: whoever is late among them is overdue before the one that waits
    "train": "train",
    "evaluate": "evaluate",
    "checkpoint": "checkpoint",
    "export": "export",
}
"""First word of a phase -> its key in topology.deadlines. Other phases wait for peers who have deadlines."""


@dataclass(frozen=True)
class Word:
    """What a process says about itself, as often as it changes and at every beat."""

    host: str
    phase: str = "start"
    step: int = 0
    status: str = "running"
    """running | failed (its own error) | broken (a collective or the bridge) | stopping (a signal, at once) | stopped
    (by the training loop, in order) | done."""
    reason: str = ""
    """Why it is failed, broken, stopping or stopped."""
    exit_code: int | None = None
    """What the run should exit with for that reason; None: 75 when there is a checkpoint, 1 otherwise."""
    stop: str = ""
    """'stopped by SIGTERM': this process was asked to stop, once; the training loop shall finish its step first."""
    order: str = ""
    """Of global rank 0: why the training loop has been asked to stop. Until it has, nobody leaves by himself."""
    tick: int = 0
    """Grows with every sign of progress of the process's main thread."""
    pid: int = 0
    asks: int = 0
    """How often this process was told by SIGUSR2 to have everybody's stacks written."""
    stacks: str = ""
    """The last hang report that this process has written its part of. Of global rank 0: the one that it wants."""
    help: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of global rank 0: rank -> which of its neighbours on the host, and their process ids, it shall signal."""
    helped: tuple[int, ...] = ()
    """The neighbours whose part of that report this process has written."""


@dataclass(frozen=True)
class Peer:
    """One process as global rank 0 knows it."""

    word: Word | None
    """The last it said; None before the first."""
    heard: float
    """When it said so, in seconds of this process's monotonic clock."""
    since: float = 0.0
    """When it last said something new about its progress."""


@dataclass(frozen=True)
class Verdict:
    """The end of a run."""

    message: str
    culprit: int | None = None
    """Global rank of the process to blame, where there is one."""
    exit_code: int | None = None
    """As in Word."""
    overdue: tuple[int, ...] = ()
    """Global ranks whose main threads make no progress: they show where they are."""


def hear(peer: Peer | None, word: Word, now: float) -> Peer:
    """A peer that has just said a word. A word that tells of no progress leaves since as it was."""
    same = peer is not None and peer.word is not None and peer.word.tick == word.tick
    return Peer(word, now, peer.since if peer is not None and same else now)


def judge_trouble(
    topology: Topology, peers: Mapping[int, Peer], troubles: Sequence[tuple[int, Word]], now: float
) -> Verdict:
    """The verdict about the words of trouble of some processes, in the order in which they came.

    Args:
        topology: The names of the ranks.
        peers: Every global rank, the one that judges too.
        troubles: At least one (global rank, its word), status as in PRIORITY.
        now: In seconds of the clock of Peer.heard.
    """
    rank, word = min(troubles, key=lambda trouble: PRIORITY.index(trouble[1].status))
    if word.status == "stopping":
        return Verdict(_stopped(topology, peers, dict(troubles)), None, word.exit_code)
    if word.status == "stopped":
        first = dict(troubles)[min(dict(troubles))]
        return Verdict(first.reason, None, first.exit_code)
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


def judge_overdue(
    topology: Topology, peers: Mapping[int, Peer], deadlines: Mapping[str, float], now: float
) -> Verdict | None:
    """The verdict about processes that beat, but whose main threads have been in one phase for too long, if any.

    Args:
        topology: The names of the ranks.
        peers: Every global rank.
        deadlines: Seconds by the kind of phase, as in DEADLINE_OF.
        now: In seconds of the clock of Peer.since.
    """
    overdue = {}
    for rank, peer in peers.items():
        kind = DEADLINE_OF.get(peer.word.phase.partition(" ")[0]) if peer.word else None
        if peer.word and peer.word.status == "running" and kind and now - peer.since > deadlines[kind]:
            overdue[rank] = kind
    if not overdue:
        return None
    first, kind = next(iter(overdue.items()))
    names = "; ".join(f"{describe(topology, rank, peers[rank].word)} {where_of(peers[rank])}" for rank in overdue)
    return Verdict(
        f"no progress for {now - peers[first].since:.0f} s (topology.deadlines.{kind}): {names}",
        first,
        overdue=tuple(overdue),
    )


def describe(topology: Topology, rank: int, word: Word | None) -> str:
    """'ref/gemma rank 0 (global rank 2, host node7)'."""
    role = topology.role_of(rank)
    host = f", host {word.host}" if word else ""
    return f"{role.name} rank {rank - role.first} (global rank {rank}{host})"


def _where(word: Word) -> str:
    return f"at step {word.step} in phase '{word.phase}'"


def where_of(peer: Peer) -> str:
    """'at step 5 in phase 'train'', by the last word of a peer."""
    return _where(peer.word) if peer.word else "has not reported"


def _stopped(topology: Topology, peers: Mapping[int, Peer], stopping: Mapping[int, Word]) -> str:
    rank = min(stopping)
    who = "" if rank == 0 else f"{describe(topology, rank, stopping[rank])} was "
    message = f"{who}{stopping[rank].reason} {_where(stopping[rank])}"
    missing = [describe(topology, other, None) for other, peer in peers.items() if peer.word is None]
    return f"{message}; not there yet: {', '.join(missing)}" if missing else message
