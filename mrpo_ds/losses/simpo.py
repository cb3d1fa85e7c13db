"""SimPO: length-averaged rewards and a margin, without any reference (Meng et al., arXiv:2405.14734, eq. 6).

    z = beta * (m_w - m_l) - gamma,    loss = -log sigmoid(z)

m is the policy's mean log-prob per scored token, m = l / T, with T counted by the policy's own tokenizer; w is the
chosen and l the rejected response. The references have no say: those that are loaded are logged and nothing else,
broken ones included.

The margin is written in two ways in the field: the authors' code takes the ratio gamma / beta, others take gamma
itself. A ratio of 0.5 read as a gamma, or the reverse, trains without a word, so the two have different names here.
"""

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F

from mrpo_ds.errors import require
from mrpo_ds.ops.rows import safe_rows
from mrpo_ds.types import LossOutput, ResponseLogps

MIN_REFERENCES = 0
"""Fewest references it can work with."""
RESPONSES: int | None = 2
"""Responses per prompt: chosen, rejected."""
DEFAULT_RATIO = 0.5
"""gamma / beta when neither gamma_beta_ratio nor gamma is given."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SimPO."""

    beta: float = 2.0
    """Scale of the mean log-probs, per nat and token, > 0. Typical range 2 to 10: means are small, sums are not."""
    gamma_beta_ratio: float | None = None
    """Margin divided by beta, nats per token, >= 0; typical range 0.1 to 0.8. null: 0.5, unless gamma is given."""
    gamma: float | None = None
    """Margin itself, >= 0. Give this or gamma_beta_ratio, not both."""

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "loss.beta", self.beta, "> 0")
        for key in ("gamma_beta_ratio", "gamma"):
            value = getattr(self, key)
            require(value is None or 0 <= value < math.inf, f"loss.{key}", value, ">= 0, or null")
        both = self.gamma_beta_ratio is not None and self.gamma is not None
        allowed = f"null while loss.gamma_beta_ratio is {self.gamma_beta_ratio}"
        require(not both, "loss.gamma", self.gamma, allowed, "They set the same margin: give one of them.")

    @property
    def margin(self) -> float:
        """The margin gamma that is subtracted."""
        if self.gamma is not None:
            return self.gamma
        return self.beta * (DEFAULT_RATIO if self.gamma_beta_ratio is None else self.gamma_beta_ratio)


def check_references(config: Config, num_references: int) -> None:
    """Refuse a number of references that this loss cannot work with: there is none."""


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One SimPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and any K, also 0.
        config: beta and the margin.

    Returns:
        losses [B]; rewards [B, 2] = beta * l / T, without the margin; no stats.
    """
    without = replace(logps, reference=logps.reference[:0], reference_lengths=logps.reference_lengths[:0])
    rows = safe_rows(without)
    tokens = logps.lengths.to(rows.policy.dtype).clamp(min=1)  # [B, 2]; rows with a 0 are not valid
    rewards = config.beta * rows.policy / tokens  # [B, 2]
    chosen, rejected = rewards.unbind(-1)
    return LossOutput(
        losses=(-F.logsigmoid(chosen - rejected - config.margin)).where(rows.valid, 0.0),
        rewards=rewards.detach(),
        valid=rows.valid,
    )
