"""DPO: direct preference optimization against one reference (Rafailov et al., arXiv:2305.18290, eq. 7).

    h = beta * [(l_w - r_w) - (l_l - r_l)],    loss = -log sigmoid(h)

l and r are summed log-probs of the policy and of RefM1, w the chosen and l the rejected response. This is the
single-reference baseline: with K references loaded it uses the first and ignores the others, broken ones included.
"""

import math
from dataclasses import dataclass, replace

import torch.nn.functional as F

from mrpo_ds.errors import require
from mrpo_ds.ops.rows import safe_rows
from mrpo_ds.types import LossOutput, ResponseLogps

MIN_REFERENCES = 1
"""Fewest references it can work with."""
RESPONSES: int | None = 2
"""Responses per prompt: chosen, rejected."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference, per nat, > 0. Typical range 0.01 to 0.5."""
    label_smoothing: float = 0.0
    """Probability that the two responses of a pair are the wrong way round, 0 <= value < 0.5 (cDPO)."""

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "loss.beta", self.beta, "> 0")
        require(0 <= self.label_smoothing < 0.5, "loss.label_smoothing", self.label_smoothing, "0 <= value < 0.5")


def check_references(config: Config, num_references: int) -> None:
    """Refuse a number of references that this loss cannot work with.

    Raises:
        ConfigError: there is no reference.
    """
    require(num_references >= MIN_REFERENCES, "the number of references", num_references, ">= 1 for loss.name=dpo")


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One DPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1.
        config: beta and label smoothing.

    Returns:
        losses [B]; rewards [B, 2] = beta * (l - r^1); no stats.
    """
    only_first = replace(logps, reference=logps.reference[:1], reference_lengths=logps.reference_lengths[:1])
    rows = safe_rows(only_first)
    logratios = rows.policy - rows.reference[0]  # [B, 2] nats
    chosen, rejected = logratios.unbind(-1)
    margin = config.beta * (chosen - rejected)  # [B] h
    smoothing = config.label_smoothing
    losses = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
    return LossOutput(
        losses=losses.where(rows.valid, 0.0),
        rewards=config.beta * logratios.detach(),
        valid=rows.valid,
    )
