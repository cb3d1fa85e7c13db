"""The policy's side of a global batch: which rows this rank computes, in which forwards."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.batching import collate, group_by_tokens
from mrpo_ds.data.plan import Batch, Splits, num_responses
from mrpo_ds.data.rendering import Encoded, Renderer
from mrpo_ds.types import Example, ResponseLogps, SequenceBatch


@dataclass(frozen=True)
class MicroBatch:
    """One forward of one rank: b prompts with all their responses, N rows."""

    sequences: SequenceBatch
    """[N, S] the rows."""
    row_prompt: Tensor
    """[N] which of the b prompts a row belongs to."""
    row_response: Tensor
    """[N] which of its responses a row is."""
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
    scores: Tensor | None
    """[B, R] or None when some example has none."""
    tokens: int
    """Tokens of the global batch, padding not counted."""

    def logps(self, micro: MicroBatch, rows: Tensor, reference: Tensor, reference_lengths: Tensor) -> ResponseLogps:
        """The record a loss takes, for one micro-batch: rows [N] log-probs, reference [K, B, R]."""
        shape = (len(micro.prompts), self.present.shape[1])
        policy = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
        return ResponseLogps(
            policy=policy.index_put((micro.row_prompt, micro.row_response), rows),
            lengths=self.lengths[micro.prompts],
            reference=reference[:, micro.prompts],
            reference_lengths=reference_lengths[:, micro.prompts],
            present=self.present[micro.prompts],
            scores=None if self.scores is None else self.scores[micro.prompts],
        )

    def without_policy(self, reference: Tensor, reference_lengths: Tensor) -> ResponseLogps:
        """The whole global batch with the policy's log-probs left at 0: enough to know which rows are valid."""
        return ResponseLogps(
            policy=torch.zeros_like(self.lengths),
            lengths=self.lengths,
            reference=reference,
            reference_lengths=reference_lengths,
            present=self.present,
            scores=self.scores,
        )


@dataclass(frozen=True)
class PolicyBatcher:
    """Turns global batches into this rank's forwards. A pure function of the batch, the rank and the sizes."""

    splits: Splits
    renderer: Renderer
    pad_id: int
    limits: OptimizationConfig
    rank: int
    size: int
    device: torch.device

    def build(self, batch: Batch) -> PolicyBatch:
        """Every rank of the policy gets equally many micro-batches, the rest filled with uncounted ones."""
        examples = batch.examples(self.splits)
        encoded = [[self.renderer.encode(one, r) for r in range(len(one.responses))] for one in examples]
        groups = [self._groups(encoded, rank) for rank in range(self.size)]
        fillers = max(len(group) for group in groups) - len(groups[self.rank])
        micros = [self._micro(encoded, group, True) for group in groups[self.rank]]
        micros += [self._micro(encoded, [0], False)] * fillers
        responses = num_responses(examples)
        return PolicyBatch(
            examples=examples,
            micros=micros,
            lengths=self._table(
                [[float(len(row.ids) - row.prompt_length) for row in rows] for rows in encoded], responses
            ),
            present=self._table([[1.0] * len(rows) for rows in encoded], responses).bool(),
            scores=self._scores(examples, responses),
            tokens=sum(len(row.ids) for rows in encoded for row in rows),
        )

    def _groups(self, encoded: list[list[Encoded]], rank: int) -> list[list[int]]:
        mine = list(range(rank, len(encoded), self.size))
        rows = max(len(row) for row in encoded)
        longest = [rows * max(len(row.ids) for row in encoded[prompt]) for prompt in mine]
        groups = group_by_tokens(longest, self.limits.micro_batch_tokens, self.limits.micro_batch_size)
        return [[mine[index] for index in group] for group in groups]

    def _micro(self, encoded: list[list[Encoded]], prompts: list[int], counted: bool) -> MicroBatch:
        rows = [(b, r) for b, prompt in enumerate(prompts) for r in range(len(encoded[prompt]))]
        sequences = collate([encoded[prompts[b]][r] for b, r in rows], self.pad_id)
        return MicroBatch(
            sequences=sequences.to(self.device),
            row_prompt=torch.tensor([b for b, _ in rows], device=self.device),
            row_response=torch.tensor([r for _, r in rows], device=self.device),
            prompts=torch.tensor(prompts, device=self.device),
            counted=torch.full((len(prompts),), counted, device=self.device),
        )

    def _scores(self, examples: list[Example], responses: int) -> Tensor | None:
        if any(one.scores is None for one in examples):
            return None
        return self._table([list(one.scores or ()) for one in examples], responses)

    def _table(self, rows: list[list[float]], width: int) -> Tensor:
        """Rows of different lengths -> [B, width], 0 where absent."""
        return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], device=self.device)
