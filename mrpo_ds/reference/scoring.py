"""How one reference scores a global batch, over however many ranks it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.data.batching import collate, group_by_tokens
from mrpo_ds.data.plan import Batch, Splits, num_responses
from mrpo_ds.data.rendering import Encoded, Renderer
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
    """A frozen model with its own renderer. Its ranks split the rows of a batch and sum their shares."""

    name: str
    forward: Callable[[SequenceBatch], Tensor]
    """[N, S] sequences -> [N] summed log-probs, without gradient."""
    renderer: Renderer
    pad_id: int
    batch_tokens: int
    rank: int
    size: int
    device: torch.device

    def score(self, batch: Batch, splits: Splits) -> Scored:
        """Score every response of a global batch; every rank of the reference must call it and gets the whole."""
        started = time.perf_counter()
        examples = batch.examples(splits)
        rows = [(b, r) for b, example in enumerate(examples) for r in range(len(example.responses))]
        encoded = [self.renderer.encode(examples[b], r) for b, r in rows]
        results = torch.zeros(2, len(examples), num_responses(examples), device=self.device)
        for group in self._groups(encoded):
            sequences = collate([encoded[row] for row in group.rows], self.pad_id)
            logps = self.forward(sequences.to(self.device))
            if group.counts:
                b, r = (torch.tensor(index) for index in zip(*(rows[row] for row in group.rows), strict=True))
                results[0, b, r] = logps.float()
                results[1, b, r] = sequences.response_mask.sum(1).to(self.device).float()
        results = sum_over_ranks(results)
        tokens = sum(len(sequence.ids) for sequence in encoded)
        return Scored(results[0], results[1], time.perf_counter() - started, tokens)

    def _groups(self, encoded: list[Encoded]) -> list["_Group"]:
        """This rank's forwards. All ranks make equally many, because sharded parameters are gathered in step."""
        by_length = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row].ids), row))
        per_rank = []
        for rank in range(self.size):
            mine = by_length[rank :: self.size]
            groups = group_by_tokens([len(encoded[row].ids) for row in mine], self.batch_tokens, None)
            per_rank.append([_Group([mine[index] for index in group], True) for group in groups])
        most = max(len(groups) for groups in per_rank)
        filler = _Group([by_length[-1]], False)  # the shortest row, whose result is thrown away
        return per_rank[self.rank] + [filler] * (most - len(per_rank[self.rank]))


@dataclass(frozen=True)
class _Group:
    rows: list[int]
    counts: bool
