"""What the heartbeat asks of the training loop of global rank 0: to stop after this step, with a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """Why a run shall stop although the policy itself is well."""

    reason: str
    """'stopped by SIGTERM', or who was lost."""


class Orders:
    """Between two threads of global rank 0. Elsewhere it stays empty: the loop's ranks are told by collectives.

    Reading and writing one attribute is atomic in Python, so there is no lock, which a signal could find taken.
    """

    def __init__(self) -> None:
        self.open = False
        """Whether a loop looks for orders: before it there is nothing to save, and the run can end at once."""
        self.stop: Stop | None = None
        """The first order that was given."""

    def take(self) -> None:
        """The loop begins: from now on it looks after every step and in every wait."""
        self.open = True

    def give(self, reason: str) -> None:
        """Ask the loop to stop. The first reason counts."""
        self.stop = self.stop or Stop(reason)
