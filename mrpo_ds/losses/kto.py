"""KTO: Kahneman-Tversky optimization from single labelled responses (Ethayarajh et al., arXiv:2402.01306, eq. 8).

    rho = l - r,    desirable:   lam_d * (1 - sigmoid(beta * (rho - z0)))
                    undesirable: lam_u * (1 - sigmoid(beta * (z0 - rho)))

z0 >= 0 stands for the KL divergence from RefM1: the mean of log pi / pi^1 over the step's prompts, each with responses
of another prompt, clamped at 0 and without gradient. It is a mean over the whole optimizer step, so a micro-batch of 1
and an odd last batch are as good as any. It is not multiplied by beta.

A single response is desirable if its score is > 0. Of a pair, the first is, the second is not, and the pair's loss is
the mean of the two. For balance choose lam_d * n_d / (lam_u * n_u) between 1 and 4/3, n being how many there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.errors import require_choice
from mrpo_ds.losses._parts import require_beta, require_not_negative
from mrpo_ds.ops.rows import SafeRows, safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of KTO."""

    beta: float = 0.1
    """Strength of the pull towards the reference, per nat, > 0."""
    lam_d: float = 1.0
    """Weight of desirable responses, >= 0."""
    lam_u: float = 1.0
    """Weight of undesirable responses, >= 0."""
    kl: str = "mismatched"
    """mismatched: the paper's z0. pair: as TRL 0.8.1's kto_pair, the mean over the step's rejected responses for the
    chosen ones and the other way round; pairs only."""

    def __post_init__(self) -> None:
        require_beta(self.beta)
        require_not_negative("lam_d", self.lam_d)
        require_not_negative("lam_u", self.lam_u)
        require_choice("loss.kl", self.kl, ("mismatched", "pair"))


def needs(config: Config) -> Needs:
    """RefM1; single labelled responses or pairs; the step's mean log-ratios before the step."""
    if config.kl == "pair":
        return Needs(views=("pair",), references=1, baseline="batch")
    return Needs(views=("unpaired", "pair"), references=1, baseline="mismatched")


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One KTO loss per prompt, in float32 at least.

    Args:
        logps: a batch with R = 1 or 2, K >= 1, a baseline, and scores for prompts with one response.
        config: see Config.

    Returns:
        losses [B], of a pair the mean of its two; rewards [B, R] = beta * (l - r^1). stats [B]: kl, the mean of z0.
    """
    assert logps.baseline is not None, "kto needs the mean log-ratios of the step"
    rows = safe_rows(without_references(logps, 1), fewest=1)
    labelled = (rows.present.sum(-1) > 1) | _scores(logps, rows)[:, 0].isfinite()
    valid = rows.valid & labelled
    desirable = desirable_responses(rows, _scores(logps, rows))
    logratios = rows.policy - rows.reference[0]  # [B, R] nats
    baseline = _baseline(logps.baseline.to(logratios.dtype), config)  # [R]
    sign = torch.ones_like(logratios).masked_fill(~desirable, -1.0)
    weight = torch.full_like(logratios, config.lam_u).masked_fill(desirable, config.lam_d)
    each = weight * torch.sigmoid(-sign * config.beta * (logratios - baseline))  # 1 - sigmoid(x) = sigmoid(-x)
    count = rows.present.sum(-1).clamp(min=1)
    return LossOutput(
        losses=(each.where(rows.present, 0.0).sum(-1) / count).where(valid, 0.0),
        rewards=(config.beta * logratios.detach()).where(valid.unsqueeze(-1), 0.0),
        valid=valid,
        stats={"kl": baseline.mean().expand(len(valid)).where(valid, 0.0)},
    )


def desirable_responses(rows: SafeRows, scores: Tensor) -> Tensor:
    """[B, R] bool: the first of several, or a single one whose score [B, R] is > 0."""
    first = torch.zeros_like(rows.present).index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), True)
    return torch.where(rows.present.sum(-1, keepdim=True) > 1, first, scores > 0)


def _scores(logps: ResponseLogps, rows: SafeRows) -> Tensor:
    return torch.full_like(rows.lengths, torch.nan) if logps.scores is None else logps.scores


def _baseline(means: Tensor, config: Config) -> Tensor:
    """[R] z0 for each column, nats, from the mean log-ratios of the columns."""
    if config.kl == "pair":
        return means.flip(0).clamp(min=0)
    return means.mean().clamp(min=0).expand(len(means))
