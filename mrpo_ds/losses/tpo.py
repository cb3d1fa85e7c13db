"""TPO: triple preference optimization, without any reference model (Saeidi et al., arXiv:2405.16681, eq. 8-10).

    loss = -log sigmoid(z) + alpha * NLL(y_gold)
    tpo      z = beta * (l_w - l_l)               summed log-probs
    tpo_l    z = beta * (m_w - m_l) - gamma       means over the tokens, from the authors' code

A triple is (gold, chosen, rejected): the gold response is what the paper calls the reference. Its eq. 9 sums the NLL;
the authors' code, which made the paper's results, takes the mean over the tokens of all gold responses of a batch. The
two differ by a factor of hundreds. The token mean is the default here, over the whole optimizer step.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from mrpo_ds.errors import require, require_choice
from mrpo_ds.losses._parts import (
    NLL_REDUCTIONS,
    compare,
    mean_logps,
    nll,
    require_beta,
    require_comparison,
    require_not_negative,
)
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps

GOLD, CHOSEN, REJECTED = range(3)
"""Columns of a triple."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of TPO."""

    variant: str = "tpo"
    """tpo: summed log-probs, the paper. tpo_l: means over the tokens and a margin, the authors' code."""
    beta: float = 0.1
    """Scale of the log-probs, > 0. For tpo_l take 2 to 10: means are small, sums are not."""
    gamma: float = 0.0
    """Margin of tpo_l, >= 0. The authors' runs use 0.5 to 10."""
    alpha: float = 1.0
    """Weight of the gold response's NLL, >= 0. 0: the policy never computes it."""
    nll_reduction: str = "token_mean"
    """token_mean: over the step's gold tokens. sum: per response, the paper's eq. 9. seq_mean: per response, its
    mean."""
    comparison: str = "sigmoid"
    """sigmoid: the paper's. hinge: max(0, 1 - z). ipo: (m_w - m_l - 1 / (2 beta))^2, without gamma."""
    label_smoothing: float = 0.0
    """Probability that chosen and rejected are the wrong way round, 0 <= value < 0.5. Sigmoid only."""

    def __post_init__(self) -> None:
        require_choice("loss.variant", self.variant, ("tpo", "tpo_l"))
        require_beta(self.beta)
        require_not_negative("gamma", self.gamma)
        has_margin = self.variant == "tpo_l" and self.comparison != "ipo"
        require(self.gamma == 0 or has_margin, "loss.gamma", self.gamma, "0, unless loss.variant is tpo_l, without ipo")
        require(0 <= self.alpha < math.inf, "loss.alpha", self.alpha, ">= 0")
        require_choice("loss.nll_reduction", self.nll_reduction, NLL_REDUCTIONS)
        require_comparison(self.comparison, self.label_smoothing, ("sigmoid", "hinge", "ipo"))


def needs(config: Config) -> Needs:
    """Triples; the gold response is not scored when its weight is 0."""
    return Needs(views=("triple",), chosen=CHOSEN, unused=() if config.alpha else (GOLD,))


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One TPO loss per triple, in float32 at least.

    Args:
        logps: a batch with R = 3 (gold, chosen, rejected) and any K, also 0.
        config: see Config.

    Returns:
        losses [B]; rewards [B, 3] = beta * l, or beta * m for tpo_l and ipo; stats [B]: logps/gold, nats;
        per_token: the NLL, if it is a token mean.
    """
    rows = safe_rows(without_references(logps), fewest=3)
    averaged = config.variant == "tpo_l" or config.comparison == "ipo"
    values = mean_logps(rows) if averaged else rows.policy  # [B, 3]
    own, per_token = nll(rows.policy[:, GOLD], rows.lengths[:, GOLD], rows.valid, config.alpha, config.nll_reduction)
    return LossOutput(
        losses=(_preference(values[:, CHOSEN] - values[:, REJECTED], config) + own).where(rows.valid, 0.0),
        rewards=config.beta * values.detach(),
        valid=rows.valid,
        stats={"logps/gold": rows.policy[:, GOLD].detach()} if config.alpha else {},
        per_token=per_token,
    )


def _preference(difference: Tensor, config: Config) -> Tensor:
    """[B] what the difference of the log-probs of chosen and rejected costs."""
    if config.comparison == "ipo":
        return (difference - 1 / (2 * config.beta)).square()
    return compare(config.beta * difference - config.gamma, config.comparison, config.label_smoothing)
