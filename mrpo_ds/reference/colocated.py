"""References that answer on the policy's ranks: models (for one GPU or a laptop), or what is stored of them."""

import time
from collections.abc import Iterable, Iterator

import torch

from mrpo_ds.data.encodings import SplitEncodings, shape_of
from mrpo_ds.data.plan import Batch
from mrpo_ds.memory import peak_memory_gib
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.reference.scoring import Scorer


class ColocatedReferences:
    """Scores each batch in line, when it is asked for. K may be 0: the answers are then empty."""

    def __init__(self, references: list[Scorer], encodings: SplitEncodings, device: torch.device) -> None:
        """Encodings are any model's: they say how many responses a prompt has."""
        self._references = references
        self._encodings = encodings
        self._device = device

    def stream(self, batches: Iterable[Batch]) -> Iterator[ReferenceAnswer]:
        """See ReferenceClient."""
        for batch in batches:
            started = time.perf_counter()
            scored = [reference.score(batch) for reference in self._references]
            empty = torch.zeros(0, *shape_of(batch, self._encodings), device=self._device)
            yield ReferenceAnswer(
                logps=torch.stack([one.logps for one in scored]) if scored else empty,
                lengths=torch.stack([one.lengths for one in scored]) if scored else empty,
                wait_seconds=time.perf_counter() - started,
                score_seconds=[one.seconds for one in scored],
                tokens=[float(one.tokens) for one in scored],
                idle_seconds=[0.0] * len(scored),
                stored=[one.stored for one in scored],
                memory_gib=[peak_memory_gib()] * len(scored),
            )

    def close(self) -> None:
        """See ReferenceClient."""
        for reference in self._references:
            reference.close()
