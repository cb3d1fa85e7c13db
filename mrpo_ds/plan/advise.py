"""Which ranks and which placement: pure functions of predicted seconds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Seconds = Callable[[int], float]
"""Ranks of a role -> its seconds of a step."""


@dataclass(frozen=True)
class Split:
    """Ranks per role, served."""

    policy: int
    references: tuple[int, ...]
    seconds: float
    """Of the slowest role's step."""


@dataclass(frozen=True)
class Placement:
    """One way to have the references, over a whole run."""

    name: str
    """served | colocated | stored."""
    once: float
    """Seconds before the first step: filling the store."""
    step: float
    """Seconds of a step."""
    steps: int

    @property
    def total(self) -> float:
        """Seconds of the run."""
        return self.once + self.steps * self.step


def best_split(devices: int, batch_size: int, policy: Seconds, references: Sequence[Seconds]) -> Split | None:
    """The ranks per role that make the slowest role fastest; None when there are fewer devices than roles.

    A role that does not fit into the memory of so many ranks takes infinitely long; where one always does, None too.

    The policy's ranks divide the batch. Among equals the one with fewer ranks wins. References are given ranks one by
    one, each time the slowest of them.
    """
    best: Split | None = None
    for ranks in range(1, devices - len(references) + 1):
        if batch_size % ranks:
            continue
        split = _with_policy(ranks, devices, policy, references)
        if best is None or (split.seconds, _size(split)) < (best.seconds, _size(best)):
            best = split
    return best if best is not None and math.isfinite(best.seconds) else None


def _with_policy(ranks: int, devices: int, policy: Seconds, references: Sequence[Seconds]) -> Split:
    own = policy(ranks)
    counts = [1] * len(references)
    times = [seconds(1) for seconds in references]
    for _ in range(devices - ranks - len(references)):
        if not times or max(times) <= own:  # more ranks would only wait
            break
        slowest = times.index(max(times))
        counts[slowest] += 1
        times[slowest] = references[slowest](counts[slowest])
    return Split(ranks, tuple(counts), max([own, *times]))


def _size(split: Split) -> int:
    return split.policy + sum(split.references)


def cheapest(placements: Sequence[Placement]) -> Placement:
    """The one with the shortest run; the first of equals."""
    return min(placements, key=lambda placement: placement.total)


def why(best: Placement, placements: Sequence[Placement], passes: float) -> str:
    """One sentence on why it is the cheapest, with the numbers that decide.

    passes: how often the run sees its rows.
    """
    others = [one for one in placements if one.name != best.name]
    compared = ", ".join(f"{one.name} {in_words(one.total)}" for one in others)
    seen = f"the run sees its rows {passes:.3g} time{'' if passes == 1 else 's'}"
    if best.name == "stored":
        reason = f"the references run once ({in_words(best.once)}) and are read afterwards, while {seen}"
    elif best.name == "served":
        reason = f"the references score the next steps on ranks of their own while the policy trains, and {seen}"
    else:
        reason = f"a step of all ranks together takes {best.step:.3g} s, and {seen}"
    return f"{best.name} takes {in_words(best.total)} ({compared}): {reason}."


def in_words(seconds: float) -> str:
    """Three digits, or all of the whole seconds."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
