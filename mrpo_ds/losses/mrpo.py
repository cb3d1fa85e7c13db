"""MRPO: DPO against a virtual reference made of K references (Le et al., AAAI-25, arXiv:2405.16388, eq. 7-10, 20).

    h = beta * [(l_w - v_w) - (l_l - v_l)],    loss = -log sigmoid(h)

Per pair: weights a_k from the raw reference log-probs (ARWC, eq. 10); trust regions from the raw ones too (CTRO,
eq. 9); references k >= 2 clipped into them around RefM1 (eq. 8); v, their weighted harmonic mean (Prop. 1, eq. 20).
v depends on the references alone, so the gradient is DPO's: -+ beta * sigmoid(-h).

Unlike DPO, the loss is not ln 2 when the policy equals RefM1, and adding a constant to both log-probs of one reference
changes it: a stray token in one reference's template is not harmless here.
"""

from dataclasses import dataclass

from mrpo_ds.losses._parts import compare, pair, require_beta
from mrpo_ds.losses._virtual import VirtualReferenceOptions, virtual_logps
from mrpo_ds.ops.rows import safe_rows
from mrpo_ds.types import LossOutput, Needs, ResponseLogps


@dataclass(frozen=True, kw_only=True)
class Config(VirtualReferenceOptions):
    """Options of MRPO."""

    beta: float = 0.1
    """Strength of the pull towards the virtual reference, per nat, > 0. Typical range 0.01 to 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_beta(self.beta)


def needs(config: Config) -> Needs:
    """Pairs and any number of references; with one it is DPO."""
    return Needs(views=("pair",), references=1, exactly=config.exactly, drops_nonfinite=config.drops_nonfinite)


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One MRPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1.
        config: see Config; K must be what needs says.

    Returns:
        losses [B]; rewards [B, 2] = beta * (l - v); stats: those of virtual_logps.
    """
    rows = safe_rows(logps, mask_references=config.masks_references)
    offset, stats = virtual_logps(rows, config)
    logratios = rows.policy - rows.reference[0] - offset  # [B, 2] l - v; the two large numbers meet first
    chosen, rejected = pair(config.beta * logratios)
    return LossOutput(
        losses=compare(chosen - rejected).where(rows.valid, 0.0),
        rewards=(config.beta * logratios.detach()).where(rows.valid.unsqueeze(-1), 0.0),
        valid=rows.valid,
        stats=stats,
    )
