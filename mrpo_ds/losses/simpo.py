"""SimPO: length-averaged rewards and a margin, without any reference (Meng et al., arXiv:2405.14734, eq. 6).

    z = beta * (m_w - m_l) - gamma,    loss = -log sigmoid(z) + sft_weight * NLL(y_w)

m is the policy's mean log-prob per scored token, m = l / T, with T counted by the policy's own tokenizer; w is the
chosen and l the rejected response. The references have no say: those that are loaded are logged and nothing else,
broken ones included.

The margin is written in two ways in the field: the authors' code takes the ratio gamma / beta, others take gamma
itself. A ratio of 0.5 read as a gamma, or the reverse, trains without a word, so the two have different names here.
"""

import math
from dataclasses import dataclass

from mrpo_ds.errors import require
from mrpo_ds.losses._parts import compare, mean_logps, nll, pair, require_beta, require_not_negative
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps

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
    sft_weight: float = 0.0
    """Weight of the NLL of the chosen responses, a mean over the step's chosen tokens, >= 0. The paper has none."""

    def __post_init__(self) -> None:
        require_beta(self.beta)
        require_not_negative("sft_weight", self.sft_weight)
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


def needs(config: Config) -> Needs:
    """Pairs."""
    return Needs(views=("pair",))


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One SimPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and any K, also 0.
        config: see Config.

    Returns:
        losses [B]; rewards [B, 2] = beta * l / T, without the margin; no stats; per_token: the NLL, if it has a weight.
    """
    rows = safe_rows(without_references(logps))
    rewards = config.beta * mean_logps(rows)  # [B, 2]
    chosen, rejected = pair(rewards)
    _, per_token = nll(rows.policy[:, 0], rows.lengths[:, 0], rows.valid, config.sft_weight, "token_mean")
    return LossOutput(
        losses=compare(chosen - rejected - config.margin).where(rows.valid, 0.0),
        rewards=rewards.detach(),
        valid=rows.valid,
        per_token=per_token,
    )
