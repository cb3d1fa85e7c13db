"""IPO: identity preference optimization (Azar et al., arXiv:2310.12036, eq. 17).

    h = (l_w - r_w) - (l_l - r_l),    loss = (h - 1 / (2 tau))^2

No beta stands inside h. The paper and the DPO authors' code take summed log-probs; TRL (which says that the authors
confirmed it), HALOs and so TPO's baseline take means over each response's tokens. The mean is the default here.
"""

import math
from dataclasses import dataclass

from mrpo_ds.errors import require
from mrpo_ds.losses._parts import mean_logps, pair
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of IPO."""

    tau: float = 0.1
    """Regularisation, > 0 (others call it beta): the margin is pulled to 1 / (2 tau), in nats (per token)."""
    length_norm: bool = True
    """Means over the tokens of a response, each model's own count; false: sums."""

    def __post_init__(self) -> None:
        require(0 < self.tau < math.inf, "loss.tau", self.tau, "> 0")


def needs(config: Config) -> Needs:
    """Pairs and RefM1."""
    return Needs(views=("pair",), references=1)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One IPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1.
        config: see Config.

    Returns:
        losses [B]; rewards [B, 2] = tau * (l - r^1), means if length_norm; no stats.
    """
    only_first = without_references(logps, 1)
    rows = safe_rows(only_first)
    policy, reference = rows.policy, rows.reference[0]
    if config.length_norm:
        policy = mean_logps(rows)
        reference = reference / only_first.reference_lengths[0].to(reference.dtype).clamp(min=1)
    logratios = policy - reference  # [B, 2]
    chosen, rejected = pair(logratios)
    losses = (chosen - rejected - 1 / (2 * config.tau)).square()
    return LossOutput(
        losses=losses.where(rows.valid, 0.0),
        rewards=config.tau * logratios.detach(),
        valid=rows.valid,
    )
