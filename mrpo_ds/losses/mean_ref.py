"""Mean-Ref, MRPO's baseline: DPO against the mean of the references (Le et al., arXiv:2405.16388, table 1 and blog).

    v = log sum_k a_k pi^k,    loss = -log sigmoid(beta * [(l_w - v_w) - (l_l - v_l)])

The mean is over the probabilities of whole responses; "geometric" averages the log-probs instead. The paper does not
say whether its references are clipped here: they are by default, as everywhere else in it, with equal weights.
"""

from dataclasses import dataclass
from typing import Any

from mrpo_ds.errors import require_choice
from mrpo_ds.losses import mrpo
from mrpo_ds.losses.mrpo import needs
from mrpo_ds.types import LossOutput, ResponseLogps

__all__ = ["Config", "loss", "needs"]


@dataclass(frozen=True, kw_only=True)
class Config(mrpo.Config):
    """Options of Mean-Ref: MRPO's, with other defaults."""

    virtual_ref: str = "arithmetic"
    """arithmetic: the mean of the probabilities. geometric: of the log-probs."""
    weights: Any = "uniform"
    """uniform: 1 / K. arwc: as in MRPO. Or K numbers >= 0, summing to 1, in the order of the references."""

    def __post_init__(self) -> None:
        require_choice("loss.virtual_ref", self.virtual_ref, ("arithmetic", "geometric"))
        super().__post_init__()


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One Mean-Ref loss per pair, in float32 at least; arguments and results as of MRPO.

    Its rewards are against v, as MRPO's are; the paper may have logged them against RefM1, which stats
    rewards_ref1/margins [B] holds.
    """
    output = mrpo.loss(logps, config)
    against_first = config.beta * (logps.policy.detach().to(output.losses.dtype) - logps.reference[0])
    margins = (against_first[:, 0] - against_first[:, 1]).where(output.valid, 0.0)
    return LossOutput(
        losses=output.losses,
        rewards=output.rewards,
        valid=output.valid,
        stats=output.stats | {"rewards_ref1/margins": margins},
    )
