"""A loss with its options, applied to the batches of a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrpo_ds.config.schema import Config
from mrpo_ds.data.micro import MicroBatch, PolicyBatch
from mrpo_ds.distributed.collectives import sum_over_ranks
from mrpo_ds.losses import LossFunction, load
from mrpo_ds.losses import needs as needs_of
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.types import LossOutput, Needs, ResponseLogps, SequenceBatch


@dataclass(frozen=True)
class ScoredBatch:
    """A global batch, what the references say about it, and the rows of its baseline."""

    batch: PolicyBatch
    reference: ReferenceAnswer
    mismatched: "ScoredBatch | None" = None
    """The same prompts with the responses of others, for objectives whose baseline is mismatched."""

    def logps(self, micro: MicroBatch, rows: Tensor) -> ResponseLogps:
        """The record of one micro-batch from its rows' [N] log-probs."""
        return self.batch.logps(micro, rows, self.reference.logps, self.reference.lengths)


@dataclass(frozen=True)
class Counts:
    """The denominators of a step's loss, over the whole global batch: exact under any packing, accumulation or tail."""

    prompts: int
    """Valid prompts, at least 1."""
    tokens: float
    """Tokens of the token-mean part, at least 1."""
    broken: list[int]
    """Prompts of the global batch that a NaN or infinity of a reference makes unusable, when that may not be."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, and the names under which its references are logged."""

    loss: LossFunction
    options: object
    needs: Needs
    reference_names: list[str]

    @classmethod
    def from_config(cls, config: Config) -> "Objective":
        """The objective that a run asks for."""
        _, loss = load(config.loss.name)
        needs = needs_of(config.loss.name, config.loss.options)
        return cls(loss, config.loss.options, needs, [reference.name for reference in config.references])

    def apply(
        self, scored: ScoredBatch, micro: MicroBatch, rows: Tensor, baseline: Tensor | None
    ) -> tuple[ResponseLogps, LossOutput]:
        """The loss of one micro-batch from its rows' [N] log-probs."""
        logps = replace(scored.logps(micro, rows), baseline=baseline)
        return logps, self.loss(logps, self.options)

    def counts(self, scored: ScoredBatch) -> Counts:
        """The denominators of a step, which do not depend on the policy. One transfer from the device."""
        logps = scored.batch.without_policy(scored.reference.logps, scored.reference.lengths)
        output = self.loss(replace(logps, baseline=torch.zeros_like(logps.policy[0])), self.options)
        tokens = output.valid.new_zeros((), dtype=torch.float64)
        if output.per_token is not None:
            tokens = output.per_token.tokens.double().sum()
        broken = _is_broken(logps) & ~output.valid & (not self.needs.drops_nonfinite)
        if scored.mismatched is not None:  # its only reference is the first one, and its rows have no other say
            others = scored.mismatched
            rows = others.batch.without_policy(others.reference.logps, others.reference.lengths)
            broken = broken | _is_broken(without_references(rows, 1))
        prompts, num_tokens, *flags = torch.cat([torch.stack([output.valid.double().sum(), tokens]), broken]).tolist()
        indices = [index for index, flag in enumerate(flags) if flag]
        return Counts(max(1, int(prompts)), max(1.0, num_tokens), indices)

    def baseline(self, score: Callable[[SequenceBatch], Tensor], scored: ScoredBatch) -> Tensor | None:
        """ResponseLogps.baseline of a step: [R], the same on every rank, which all must call this; None if not needed.

        Args:
            score: [N, S] sequences -> [N] log-probs of the policy, without gradient.
            scored: the step's batch.
        """
        if self.needs.baseline == "none":
            return None
        rows = scored if self.needs.baseline == "batch" else scored.mismatched
        assert rows is not None, "the mismatched rows of this batch were not scored"
        sums = torch.zeros(2, rows.batch.present.shape[1], dtype=torch.float64, device=rows.batch.present.device)
        for micro in rows.batch.micros:
            logps = rows.logps(micro, score(micro.sequences))
            safe = safe_rows(without_references(logps, 1), fewest=1)
            used = safe.present & micro.counted.unsqueeze(-1)
            sums[0] += (safe.policy - safe.reference[0]).where(used, 0.0).sum(0)
            sums[1] += used.sum(0)
        sums = sum_over_ranks(sums)
        means = (sums[0] / sums[1].clamp(min=1)).float()
        return means.where(means.isfinite(), torch.nan)  # a clamp would make -infinity a number, and hide it

    def total(self, output: LossOutput, micro: MicroBatch, counts: Counts) -> Tensor:
        """What a micro-batch adds to the loss of the step. Scalar, with gradient."""
        total = (output.losses * micro.counted).sum() / counts.prompts
        part = output.per_token
        if part is not None:
            total = total + part.weight * (part.losses * micro.counted).sum() / counts.tokens
        return total


def _is_broken(logps: ResponseLogps) -> Tensor:
    """[B] whether a reference said NaN or infinity about a response of a prompt."""
    return (~logps.reference.isfinite() & logps.present).any(-1).any(0)
