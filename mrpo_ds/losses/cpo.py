"""CPO: contrastive preference optimization, without any reference (Xu et al., arXiv:2401.08417, eq. 5).

    loss = -log sigmoid(beta * (l_w - l_l)) + alpha * NLL(y_w)

l are the policy's summed log-probs. The paper's NLL is -l_w; TRL, with which its results are usually compared, takes
the mean over the tokens of all chosen responses. The token mean is the default here, over the whole optimizer step.
"""

from dataclasses import dataclass

from mrpo_ds.errors import require_choice
from mrpo_ds.losses._parts import (
    NLL_REDUCTIONS,
    compare,
    nll,
    pair,
    require_beta,
    require_comparison,
    require_not_negative,
)
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of CPO."""

    beta: float = 0.1
    """Scale of the summed log-probs, per nat, > 0."""
    alpha: float = 1.0
    """Weight of the NLL of the chosen response, >= 0."""
    nll_reduction: str = "token_mean"
    """token_mean: over the step's chosen tokens. sum: per response, the paper's. seq_mean: per response, its mean."""
    comparison: str = "sigmoid"
    """sigmoid: the paper's. hinge: max(0, 1 - h)."""
    label_smoothing: float = 0.0
    """Probability that a pair is the wrong way round, 0 <= value < 0.5. Sigmoid only."""

    def __post_init__(self) -> None:
        require_beta(self.beta)
        require_not_negative("alpha", self.alpha)
        require_choice("loss.nll_reduction", self.nll_reduction, NLL_REDUCTIONS)
        require_comparison(self.comparison, self.label_smoothing, ("sigmoid", "hinge"))


def needs(config: Config) -> Needs:
    """Pairs."""
    return Needs(views=("pair",))


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One CPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and any K, also 0.
        config: see Config.

    Returns:
        losses [B]; rewards [B, 2] = beta * l; no stats; per_token: the NLL, if it is a token mean.
    """
    rows = safe_rows(without_references(logps))
    chosen, rejected = pair(config.beta * rows.policy)
    preference = compare(chosen - rejected, config.comparison, config.label_smoothing)
    own, per_token = nll(rows.policy[:, 0], rows.lengths[:, 0], rows.valid, config.alpha, config.nll_reduction)
    return LossOutput(
        losses=(preference + own).where(rows.valid, 0.0),
        rewards=config.beta * rows.policy.detach(),
        valid=rows.valid,
        per_token=per_token,
    )
