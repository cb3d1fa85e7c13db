"""The policy's side of a global batch: which rows this rank computes, in which forwards."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.batching import collate, group_by_tokens
from mrpo_ds.data.plan import Batch, Splits, num_responses
from mrpo_ds.data.rendering import Encoded, Renderer
from mrpo_ds.types import Example, Needs, ResponseLogps, SequenceBatch


@dataclass(frozen=True)
class MicroBatch:
    """One forward of one rank: b prompts with all their responses, N rows."""

    sequences: SequenceBatch
    """[N, S] the rows."""
    row_prompt: Tensor
    """[N] which of the b prompts a row belongs to."""
    row_response: Tensor
    """[N] which of its responses a row is; R for a row that scores the prompt."""
    prompts: Tensor
    """[b] positions of the prompts in the global batch."""
    counted: Tensor
    """[b] bool; False for filler that only keeps ranks in step: zero weight, no metrics."""


@dataclass(frozen=True)
class PolicyBatch:
    """A global batch as one policy rank sees it."""

    examples: list[Example]
    micros: list[MicroBatch]
    lengths: Tensor
    """[B, R] scored tokens of every response of the global batch."""
    present: Tensor
    """[B, R] bool."""
    scores: Tensor
    """[B, R] float64, so that close scores stay apart; NaN where there is none."""
    tokens: int
    """Tokens of the global batch, padding not counted."""
    prompt_lengths: Tensor | None
    """[B] scored tokens of the prompts, or None if they are not scored."""
    draws: Tensor
    """[B] see ResponseLogps."""

    def logps(self, micro: MicroBatch, rows: Tensor, reference: Tensor, reference_lengths: Tensor) -> ResponseLogps:
        """The record a loss takes, for one micro-batch: rows [N] log-probs, reference [K, B, R]."""
        responses = self.present.shape[1]
        table = torch.zeros(len(micro.prompts), responses + 1, dtype=rows.dtype, device=rows.device)
        table = table.index_put((micro.row_prompt, micro.row_response), rows)
        return self._record(micro.prompts, table, reference, reference_lengths)

    def without_policy(self, reference: Tensor, reference_lengths: Tensor) -> ResponseLogps:
        """The whole global batch with the policy's log-probs left at 0: enough to know which rows are valid."""
        everyone = torch.arange(len(self.examples), device=self.lengths.device)
        table = torch.zeros(len(everyone), self.present.shape[1] + 1, device=self.lengths.device)
        return self._record(everyone, table, reference, reference_lengths)

    def _record(self, prompts: Tensor, table: Tensor, reference: Tensor, reference_lengths: Tensor) -> ResponseLogps:
        """The given prompts' part of everything; table [b, R + 1] has their log-probs, the prompt's own last."""
        return ResponseLogps(
            policy=table[:, :-1],
            lengths=self.lengths[prompts],
            reference=reference[:, prompts],
            reference_lengths=reference_lengths[:, prompts],
            present=self.present[prompts],
            scores=self.scores[prompts],
            prompt=None if self.prompt_lengths is None else table[:, -1],
            prompt_lengths=None if self.prompt_lengths is None else self.prompt_lengths[prompts],
            draws=self.draws[prompts],
        )


@dataclass(frozen=True)
class PolicyBatcher:
    """Turns global batches into this rank's forwards. A pure function of the batch, the rank and the sizes."""

    splits: Splits
    renderer: Renderer
    pad_id: int
    limits: OptimizationConfig
    needs: Needs
    rank: int
    size: int
    device: torch.device

    def build(self, batch: Batch) -> PolicyBatch:
        """Every rank of the policy gets equally many micro-batches, the rest filled with uncounted ones."""
        examples = batch.examples(self.splits)
        encoded = [[self.renderer.encode(one, r) for r in range(len(one.responses))] for one in examples]
        groups = [self._groups(encoded, rank) for rank in range(self.size)]
        fillers = max(len(group) for group in groups) - len(groups[self.rank])
        width = num_responses(examples)
        micros = [self._micro(encoded, group, width, True) for group in groups[self.rank]]
        micros += [self._micro(encoded, [0], width, False)] * fillers
        scored = [[float(len(row.ids) - row.prompt_length) for row in rows] for rows in encoded]
        prompt_lengths = [float(rows[0].prompt_length - 1) for rows in encoded]  # nothing predicts the first token
        return PolicyBatch(
            examples=examples,
            micros=micros,
            lengths=self._table(scored, width, 0.0),
            present=self._table([[1.0] * len(rows) for rows in encoded], width, 0.0).bool(),
            scores=self._table([list(one.scores or ()) for one in examples], width, math.nan, torch.float64),
            tokens=sum(len(row.ids) for rows in encoded for row in rows),
            prompt_lengths=torch.tensor(prompt_lengths, device=self.device) if self.needs.prompt else None,
            draws=torch.tensor([self._draw(batch, index) for index in batch.ids], device=self.device),
        )

    def _groups(self, encoded: list[list[Encoded]], rank: int) -> list[list[int]]:
        mine = list(range(rank, len(encoded), self.size))
        rows = max(len(row) for row in encoded) + self.needs.prompt
        longest = [rows * max(len(row.ids) for row in encoded[prompt]) for prompt in mine]
        groups = group_by_tokens(longest, self.limits.micro_batch_tokens, self.limits.micro_batch_size)
        return [[mine[index] for index in group] for group in groups]

    def _micro(self, encoded: list[list[Encoded]], prompts: list[int], width: int, counted: bool) -> MicroBatch:
        rows = [
            (b, r, encoded[prompt][r])
            for b, prompt in enumerate(prompts)
            for r in range(len(encoded[prompt]))
            if r not in self.needs.unused
        ]
        if self.needs.prompt:
            rows += [(b, width, _prompt_alone(encoded[prompt][0])) for b, prompt in enumerate(prompts)]
        sequences = collate([row for _, _, row in rows], self.pad_id)
        return MicroBatch(
            sequences=sequences.to(self.device),
            row_prompt=torch.tensor([b for b, _, _ in rows], device=self.device),
            row_response=torch.tensor([r for _, r, _ in rows], device=self.device),
            prompts=torch.tensor(prompts, device=self.device),
            counted=torch.full((len(prompts),), counted, device=self.device),
        )

    def _draw(self, batch: Batch, index: int) -> float:
        key = f"{self.limits.seed}|{batch.split}|{batch.step}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=3).digest(), "big") / 2**24  # exact in float32

    def _table(self, rows: list[list[float]], width: int, absent: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of different lengths -> [B, width]."""
        return torch.tensor([row + [absent] * (width - len(row)) for row in rows], dtype=dtype, device=self.device)


def _prompt_alone(sequence: Encoded) -> Encoded:
    """The prompt as a sequence of its own, of which all tokens but the first are scored."""
    return Encoded(sequence.ids[: sequence.prompt_length], 1)
