"""How one reference scores a global batch, over however many ranks it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.data.batching import Layout
from mrpo_ds.data.encodings import SplitEncodings
from mrpo_ds.data.plan import Batch
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.distributed.collectives import sum_over_ranks
from mrpo_ds.types import SequenceBatch


@dataclass(frozen=True)
class Scored:
    """One reference's answer about one global batch."""

    logps: Tensor
    """[B, R] summed log-probs, nats, float32."""
    lengths: Tensor
    """[B, R] scored tokens."""
    seconds: float
    tokens: int


@dataclass(frozen=True)
class ReferenceScorer:
    """A frozen model with its own token ids. Its ranks split the sequences of a batch and sum their shares."""

    name: str
    forward: Callable[[SequenceBatch], Tensor]
    """N sequences -> [N] summed log-probs, without gradient."""
    encodings: SplitEncodings
    layout: Layout
    batch_tokens: int
    rank: int
    size: int
    device: torch.device

    def score(self, batch: Batch) -> Scored:
        """Score every response of a global batch; every rank of the reference must call it and gets the whole."""
        started = time.perf_counter()
        encoded = [self.encodings[batch.split][index] for index in batch.ids]
        cells = [(b, r) for b, rows in enumerate(encoded) for r in range(len(rows))]
        sequences = [encoded[b][r] for b, r in cells]
        results = torch.zeros(2, len(encoded), max(map(len, encoded)), device=self.device)
        groups = self.layout.group([[len(one.ids)] for one in sequences], self.batch_tokens, None, self.size)
        for group in groups[self.rank :: self.size]:
            # Sharded parameters are gathered in step, so a rank without work computes something and throws it away.
            logps = self._forward([sequences[index] for index in group or [0]])
            if group:
                b, r = (torch.tensor(index) for index in zip(*(cells[index] for index in group), strict=True))
                results[0, b, r] = logps
                scored = [float(sequences[index].num_scored) for index in group]
                results[1, b, r] = torch.tensor(scored, device=self.device)
        results = sum_over_ranks(results)
        if not results.isfinite().all():
            for cell, sequence in zip(cells, sequences, strict=True):
                # A NaN spreads over its row of a forward (0 * NaN is NaN): alone, its innocent neighbours are finite.
                if not results[0][cell].isfinite():
                    results[0][cell] = self._forward([sequence])[0]
        tokens = sum(len(sequence.ids) for sequence in sequences)
        return Scored(results[0], results[1], time.perf_counter() - started, tokens)

    def _forward(self, sequences: list[Encoded]) -> Tensor:
        """[N] log-probs of N sequences in one forward, float32."""
        return self.forward(self.layout.collate(sequences).to(self.device)).float()
