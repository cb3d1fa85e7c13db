"""How one reference scores a global batch, over however many ranks it has."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
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


Answered = Callable[[str, Batch, Scored], None]
"""Told the name of a reference, a batch, and what the reference says about it."""


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
        logps = by_prompt(self.score_prompts(encoded), encoded)
        tokens = sum(len(sequence.ids) for row in encoded for sequence in row)
        return Scored(logps, lengths_of(encoded, self.device), time.perf_counter() - started, tokens)

    def close(self) -> None:
        """See Scorer."""

    def score_prompts(self, prompts: Sequence[Sequence[Encoded]]) -> Tensor:
        """The summed log-probs of sequences that come in groups of one prompt, each group and all at least one.

        Every rank must call it, and gets the whole: [N] nats, float32, one prompt's after the other's.
        """
        layout = self.layout
        groups = prompts if layout.shared else [[sequence] for sequence in chain.from_iterable(prompts)]
        ends = list(accumulate(map(len, groups), initial=0))
        results = torch.zeros(ends[-1], device=self.device)
        units = [layout.units(group) for group in groups]
        forwards = layout.group(units, self.batch_tokens, None, self.size)
        for forward in forwards[self.rank :: self.size]:
            # Sharded parameters are gathered in step, so a rank without work computes something and throws it away.
            logps = self._forward([groups[index] for index in forward or [0]])
            if forward:
                results[[place for index in forward for place in range(ends[index], ends[index + 1])]] = logps
        results = sum_over_ranks(results)
        sequences = list(chain.from_iterable(groups))
        for index in results.isfinite().logical_not().nonzero().flatten().tolist():
            # A NaN spreads over its row of a forward (0 * NaN is NaN): alone, its innocent neighbours are finite.
            results[index] = self._forward([[sequences[index]]])[0]
        return results

    def _forward(self, groups: Sequence[Sequence[Encoded]]) -> Tensor:
        """[N] log-probs of the sequences of some groups in one forward, float32."""
        return self.forward(self.layout.collate(groups).to(self.device)).float()


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
