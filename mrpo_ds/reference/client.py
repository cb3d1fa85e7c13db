"""The seam between the trainer and the references: three hosts, one interface, the same numbers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mrpo_ds.data.plan import Batch


@dataclass(frozen=True)
class ReferenceAnswer:
    """What K references say about one global batch."""

    logps: Tensor
    """[K, B, R] summed log-probs, nats, float32; absent responses are 0."""
    lengths: Tensor
    """[K, B, R] scored tokens under each reference's own tokenizer."""
    wait_seconds: float
    """How long the policy waited for this answer."""
    score_seconds: list[float]
    """[K] how long each reference computed."""
    tokens: list[float]
    """[K] tokens that each reference read, padding not counted."""
    idle_seconds: list[float]
    """[K] how long each reference then waited for the policy to take the answer before this one."""
    stored: list[float]
    """[K] share of the responses whose log-prob each reference found in its store."""
    memory_gib: list[float]
    """[K] peak memory of each reference's first rank, as mrpo_ds/memory.py measures it."""


class ReferenceClient(Protocol):
    """Answers global batches in the order in which they are asked for."""

    def stream(self, batches: Iterable[Batch]) -> Iterator[ReferenceAnswer]:
        """Yield one answer per batch. Every policy rank must draw every answer, and gets the same one."""

    def close(self) -> None:
        """Keep what is not yet kept; nothing is asked after it."""
