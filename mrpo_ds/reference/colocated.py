"""References that live on the policy's ranks: for one GPU or a laptop."""

import time
from collections.abc import Iterator

import torch

from mrpo_ds.data.plan import Batch, Splits, num_responses
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.reference.scoring import ReferenceScorer


class ColocatedReferences:
    """Scores each batch in line, when it is asked for. K may be 0: the answers are then empty."""

    def __init__(self, references: list[ReferenceScorer], splits: Splits, device: torch.device) -> None:
        self._references = references
        self._splits = splits
        self._device = device

    def stream(self, batches: list[Batch]) -> Iterator[ReferenceAnswer]:
        """See ReferenceClient."""
        for batch in batches:
            started = time.perf_counter()
            scored = [reference.score(batch, self._splits) for reference in self._references]
            examples = batch.examples(self._splits)
            empty = torch.zeros(0, len(examples), num_responses(examples), device=self._device)
            yield ReferenceAnswer(
                logps=torch.stack([one.logps for one in scored]) if scored else empty,
                lengths=torch.stack([one.lengths for one in scored]) if scored else empty,
                wait_seconds=time.perf_counter() - started,
                score_seconds=[one.seconds for one in scored],
                tokens=[float(one.tokens) for one in scored],
                idle_seconds=[0.0] * len(scored),
            )
