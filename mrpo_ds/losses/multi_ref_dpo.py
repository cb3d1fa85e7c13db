"""Multi-DPO, MRPO's baseline: a weighted sum of K DPO losses (Le et al., AAAI-25, arXiv:2405.16388, eq. 11).

    loss = sum_k a_k * -log sigmoid(h_k),    h_k = beta * [(l_w - r^k_w) - (l_l - r^k_l)]

r^k are MRPO's clipped references: without trust regions, the paper says, it does not converge. The paper speaks of
fixed weights tuned by hand and, elsewhere, of its adaptive ones (ARWC); fixed and equal is the default here.

Not to be confused with MDPO, which compares many responses under one reference: that is mdpo.
"""

from dataclasses import dataclass
from typing import Any

from mrpo_ds.losses._parts import compare, require_beta
from mrpo_ds.losses._virtual import TrustRegionOptions, trust_region
from mrpo_ds.ops.rows import safe_rows
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config(TrustRegionOptions):
    """Options of Multi-DPO."""

    beta: float = 0.1
    """Strength of the pull towards the references, per nat, > 0. Typical range 0.01 to 0.5."""
    weights: Any = "uniform"
    """uniform: 1 / K. arwc: per pair, by how far each reference tells the responses apart. Or K numbers >= 0, summing
    to 1, in the order of the references."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_beta(self.beta)


def needs(config: Config) -> Needs:
    """Pairs and any number of references; with one it is DPO."""
    return Needs(views=("pair",), references=1, exactly=config.exactly, drops_nonfinite=config.drops_nonfinite)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One Multi-DPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1.
        config: see Config; K must be what needs says.

    Returns:
        losses [B]; rewards [B, 2] = beta * (l - r^1), as in the paper; stats: those of TrustRegion.
    """
    rows = safe_rows(logps, mask_references=config.masks_references)
    region = trust_region(rows, config)
    logratios = rows.policy - rows.reference[0]  # [B, 2]
    against_each = config.beta * (logratios - region.clipped.offsets)  # [K, B, 2] beta * (l - clipped r^k)
    margins = against_each[..., 0] - against_each[..., 1]  # [K, B] h_k
    return LossOutput(
        losses=(region.weights * compare(margins)).sum(0).where(rows.valid, 0.0),
        rewards=(config.beta * logratios.detach()).where(rows.valid.unsqueeze(-1), 0.0),
        valid=rows.valid,
        stats=region.stats(rows),
    )
