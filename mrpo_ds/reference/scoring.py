"""How one reference scores a global batch, over however many ranks it has."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """Tokens that were read for it, padding not counted."""
    stored: float = 0.0
    """Share of the responses whose log-prob was in the store."""


class Scorer(Protocol):
    """Answers one global batch after the other."""

    def score(self, batch: Batch) -> Scored:
        """Score every response of a global batch; every rank of the reference must call it and gets the whole."""

    def close(self) -> None:
        """Keep what is not yet kept; nothing is asked after it."""


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
        """See Scorer."""
        started = time.perf_counter()
        encoded = [self.encodings[batch.split][index] for index in batch.ids]
        sequences = [one for row in encoded for one in row]
        logps = by_prompt(self.score_sequences(sequences), encoded)
        tokens = sum(len(sequence.ids) for sequence in sequences)
        return Scored(logps, lengths_of(encoded, self.device), time.perf_counter() - started, tokens)

    def close(self) -> None:
        """See Scorer."""

    def score_sequences(self, sequences: Sequence[Encoded]) -> Tensor:
        """[N] summed log-probs, nats, float32, of at least one sequence; every rank must call it and gets the whole."""
        results = torch.zeros(len(sequences), device=self.device)
        groups = self.layout.group([[len(one.ids)] for one in sequences], self.batch_tokens, None, self.size)
        for group in groups[self.rank :: self.size]:
            # Sharded parameters are gathered in step, so a rank without work computes something and throws it away.
            logps = self._forward([sequences[index] for index in group or [0]])
            if group:
                results[torch.tensor(group)] = logps
        results = sum_over_ranks(results)
        for index in results.isfinite().logical_not().nonzero().flatten().tolist():
            # A NaN spreads over its row of a forward (0 * NaN is NaN): alone, its innocent neighbours are finite.
            results[index] = self._forward([sequences[index]])[0]
        return results

    def _forward(self, sequences: list[Encoded]) -> Tensor:
        """[N] log-probs of N sequences in one forward, float32."""
        return self.forward(self.layout.collate(sequences).to(self.device)).float()


def by_prompt(values: Tensor, encoded: Sequence[Sequence[Encoded]]) -> Tensor:
    """[N] values of the responses of B prompts, one prompt after the other -> [B, R], 0 where one is absent."""
    table = torch.zeros(len(encoded), max(map(len, encoded)), device=values.device)
    cells = [(b, r) for b, rows in enumerate(encoded) for r in range(len(rows))]
    b, r = (torch.tensor(index) for index in zip(*cells, strict=True))
    table[b, r] = values
    return table


def lengths_of(encoded: Sequence[Sequence[Encoded]], device: torch.device) -> Tensor:
    """[B, R] scored tokens of the responses of B prompts, 0 where one is absent."""
    return by_prompt(torch.tensor([float(one.num_scored) for row in encoded for one in row], device=device), encoded)
