"""The policy's side of a global batch: which rows this rank computes, in which forwards."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.encodings import SplitEncodings
from mrpo_ds.data.plan import Batch, Splits
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.types import Example, Needs, ResponseLogps, SequenceBatch, Work


@dataclass(frozen=True)
class MicroBatch:
    """One forward of one rank: b prompts with all their responses, N sequences."""

    sequences: SequenceBatch
    """The N sequences."""
    row_prompt: Tensor
    """[N] which of the b prompts a sequence belongs to."""
    row_response: Tensor
    """[N] which of its responses a sequence is; PROMPT for one that scores the prompt."""
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
    work: Work
    """What all ranks together compute for it, filler left out."""
    shared: float
    """Share of the tokens of its sequences that are not computed again, since they stand in a shared prompt."""
    padding: float
    """Share of the token places that all ranks compute for nothing: padding and filler."""
    prompt_lengths: Tensor | None
    """[B] scored tokens of the prompts, or None if they are not scored."""
    draws: Tensor
    """[B] see ResponseLogps."""
    alone: Callable[[int], MicroBatch]
    """The forward of one prompt of the global batch by itself."""

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
    encodings: SplitEncodings
    layout: Layout
    limits: OptimizationConfig
    needs: Needs
    rank: int
    size: int
    device: torch.device
    alike: int = 4
    """A step's forwards are the same for every number of ranks that divides this."""

    def build(self, batch: Batch) -> PolicyBatch:
        """Every rank of the policy gets equally many micro-batches, the rest filled with uncounted ones."""
        examples = batch.examples(self.splits)
        encoded = [self.encodings[batch.split][index] for index in batch.ids]
        numbered = [self._sequences(rows) for rows in encoded]
        sequences = [[sequence for _, sequence in rows] for rows in numbered]
        units = [self.layout.units(rows) for rows in sequences]
        groups = self._groups(units)
        filler = [0]
        mine = [group or filler for group in groups[self.rank :: self.size]]
        micros = [self._micro(numbered, group, group is not filler) for group in mine]
        width = max(map(len, encoded))
        work = _work(self.layout, sequences)
        computed = [[unit for prompt in group or filler for unit in units[prompt]] for group in groups]
        prompt_lengths = [float(rows[0].prompt_length - 1) for rows in encoded]  # nothing predicts the first token
        return PolicyBatch(
            examples=examples,
            micros=micros,
            lengths=self._table([[float(row.num_scored) for row in rows] for rows in encoded], width, 0.0),
            present=self._table([[1.0] * len(rows) for rows in encoded], width, 0.0).bool(),
            scores=self._table([list(one.scores or ()) for one in examples], width, math.nan, torch.float64),
            tokens=sum(len(row.ids) for rows in encoded for row in rows),
            work=work,
            shared=1 - work.tokens / sum(len(one.ids) for rows in sequences for one in rows),
            padding=1 - work.tokens / sum(map(self.layout.places, computed)),
            prompt_lengths=torch.tensor(prompt_lengths, device=self.device) if self.needs.prompt else None,
            draws=torch.tensor([self._draw(batch, index) for index in batch.ids], device=self.device),
            alone=lambda prompt: self._micro(numbered, [prompt], True),
        )

    def _sequences(self, rows: list[Encoded]) -> "list[_Numbered]":
        """What is computed of one prompt: (response, sequence), or (PROMPT, itself) where it is scored."""
        sequences = [(r, row) for r, row in enumerate(rows) if r not in self.needs.unused]
        return [*sequences, (PROMPT, _prompt_alone(rows[0]))] if self.needs.prompt else sequences

    def _groups(self, units: list[list[int]]) -> list[list[int]]:
        """The forwards of all ranks. Rounds in which every rank would have only filler are left out."""
        limits = self.limits
        multiple = math.lcm(self.size, self.alike)
        groups = self.layout.group(units, limits.micro_batch_tokens, limits.micro_batch_size, multiple)
        rounds = -(-sum(map(bool, groups)) // self.size)
        return groups[: rounds * self.size]

    def _micro(self, numbered: "list[list[_Numbered]]", prompts: list[int], counted: bool) -> MicroBatch:
        rows = [(b, r) for b, prompt in enumerate(prompts) for r, _ in numbered[prompt]]
        groups = [[sequence for _, sequence in numbered[prompt]] for prompt in prompts]
        return MicroBatch(
            sequences=self.layout.collate(groups).to(self.device),
            row_prompt=torch.tensor([b for b, _ in rows], device=self.device),
            row_response=torch.tensor([r for _, r in rows], device=self.device),
            prompts=torch.tensor(prompts, device=self.device),
            counted=torch.full((len(prompts),), counted, device=self.device),
        )

    def _draw(self, batch: Batch, index: int) -> float:
        key = f"{self.limits.seed}|{batch.split}|{batch.step}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=3).digest(), "big") / 2**24  # exact in float32

    def _table(self, rows: list[list[float]], width: int, absent: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of different lengths -> [B, width]."""
        return torch.tensor([row + [absent] * (width - len(row)) for row in rows], dtype=dtype, device=self.device)


PROMPT = -1
"""Number of the sequence that scores the prompt; its log-prob stands last in the table."""
_Numbered = tuple[int, Encoded]


def _work(layout: Layout, sequences: Sequence[Sequence[Encoded]]) -> Work:
    spans = tuple(span for rows in sequences for span in layout.spans(rows))
    return Work(spans, sum(sequence.num_scored for rows in sequences for sequence in rows))


def _prompt_alone(sequence: Encoded) -> Encoded:
    """The prompt as a sequence of its own, of which all tokens but the first are scored."""
    return Encoded(sequence.ids[: sequence.prompt_length], 1)
