"""DPO: direct preference optimization against one reference (Rafailov et al., arXiv:2305.18290, eq. 7).

    h = beta * [(l_w - r_w) - (l_l - r_l)],    loss = -log sigmoid(h)

l and r are summed log-probs of the policy and of RefM1, w the chosen and l the rejected response. This is the
single-reference baseline: with K references loaded it uses the first and ignores the others, broken ones included.
"""

from dataclasses import dataclass

from mrpo_ds.losses._parts import compare, pair, require_beta, require_comparison
from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference, per nat, > 0. Typical range 0.01 to 0.5."""
    comparison: str = "sigmoid"
    """sigmoid: the paper's. hinge: max(0, 1 - h), as in SLiC."""
    label_smoothing: float = 0.0
    """Probability that the two responses of a pair are the wrong way round, 0 <= value < 0.5 (cDPO). Sigmoid only."""
    reference_free: bool = False
    """Take r = 0: no reference is needed, and those there are have no say."""

    def __post_init__(self) -> None:
        require_beta(self.beta)
        require_comparison(self.comparison, self.label_smoothing, ("sigmoid", "hinge"))


def needs(config: Config) -> Needs:
    """Pairs, and RefM1 unless reference_free."""
    return Needs(views=("pair",), references=0 if config.reference_free else 1)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One DPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1, or any K if reference_free.
        config: see Config.

    Returns:
        losses [B]; rewards [B, 2] = beta * (l - r^1); no stats.
    """
    rows = safe_rows(without_references(logps, 0 if config.reference_free else 1))
    logratios = rows.policy if config.reference_free else rows.policy - rows.reference[0]  # [B, 2] nats
    chosen, rejected = pair(config.beta * logratios)
    losses = compare(chosen - rejected, config.comparison, config.label_smoothing)
    return LossOutput(
        losses=losses.where(rows.valid, 0.0),
        rewards=config.beta * logratios.detach(),
        valid=rows.valid,
    )
