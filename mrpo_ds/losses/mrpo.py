"""MRPO: DPO against a virtual reference made of K references (Le et al., AAAI-25, arXiv:2405.16388, eq. 7-10, 20).

    h = beta * [(l_w - v_w) - (l_l - v_l)],    loss = -log sigmoid(h)

Per pair: weights a_k from the raw reference log-probs (ARWC, eq. 10); trust regions from the raw ones too (CTRO,
eq. 9); references k >= 2 clipped into them around RefM1 (eq. 8); v, their weighted harmonic mean (Prop. 1, eq. 20).
v depends on the references alone, so the gradient is DPO's: -+ beta * sigmoid(-h).

Unlike DPO, the loss is not ln 2 when the policy equals RefM1, and adding a constant to both log-probs of one reference
changes it: a stray token in one reference's template is not harmless here.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrpo_ds.errors import require, require_choice
from mrpo_ds.ops import virtual_reference as virtual
from mrpo_ds.ops.rows import SafeRows, safe_rows
from mrpo_ds.types import LossOutput, ResponseLogps

MIN_REFERENCES = 1
"""Fewest references it can work with; with one it is DPO."""
RESPONSES: int | None = 2
"""Responses per prompt: chosen, rejected."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MRPO."""

    beta: float = 0.1
    """Strength of the pull towards the virtual reference, per nat, > 0. Typical range 0.01 to 0.5."""
    virtual_ref: str = "harmonic"
    """harmonic: the paper's. geometric: the exact optimum of its eq. 6. arithmetic: its Mean-Ref baseline."""
    weights: Any = "arwc"
    """arwc: per pair, by how far each reference tells the responses apart. uniform: 1 / K. Or K numbers >= 0, summing
    to 1, in the order of the references."""
    arwc_assignment: str = "paper"
    """paper: a reference's own gap. code_swapped: the other one's, as the authors' code does; two references only."""
    ctro: str = "adaptive"
    """adaptive: eps per response, by how unlikely it is. fixed: eps_max for every response. none: no clipping."""
    eps_max: float = 0.1
    """Half-width of the trust region relative to |log-prob under RefM1|, >= 0. Adaptive shares it out (eps_norm)."""
    eps_norm: str = "sum"
    """Adaptive only. sum: the eps of a pair sum to eps_max, as in the paper. mean: they average to it."""
    nonfinite: str = "drop"
    """A reference k >= 2 with a NaN or infinity. drop: drop the pair. mask_ref: leave the reference out of the pair."""

    def __post_init__(self) -> None:
        require(0 < self.beta < math.inf, "loss.beta", self.beta, "> 0")
        require_choice("loss.virtual_ref", self.virtual_ref, ("harmonic", "geometric", "arithmetic"))
        named = self.weights in ("arwc", "uniform")
        allowed = "arwc | uniform | a list of numbers >= 0 that sum to 1"
        require(named or _is_distribution(self.weights), "loss.weights", self.weights, allowed)
        require_choice("loss.arwc_assignment", self.arwc_assignment, ("paper", "code_swapped"))
        ignored = self.arwc_assignment == "code_swapped" and self.weights != "arwc"
        require(not ignored, "loss.arwc_assignment", self.arwc_assignment, "paper, unless loss.weights is arwc")
        require_choice("loss.ctro", self.ctro, ("adaptive", "fixed", "none"))
        require(0 <= self.eps_max < math.inf, "loss.eps_max", self.eps_max, ">= 0")
        require_choice("loss.eps_norm", self.eps_norm, ("sum", "mean"))
        require_choice("loss.nonfinite", self.nonfinite, ("drop", "mask_ref"))


def check_references(config: Config, num_references: int) -> None:
    """Refuse a number of references K that this configuration cannot work with.

    Raises:
        ConfigError: K is 0, or is not the length of loss.weights, or is not 2 where the authors' code is imitated.
    """
    key = "the number of references"
    require(num_references >= MIN_REFERENCES, key, num_references, ">= 1 for loss.name=mrpo")
    if not isinstance(config.weights, str):
        fits = len(config.weights) == num_references
        require(fits, "loss.weights", config.weights, f"{num_references} numbers, one per reference")
    if config.arwc_assignment == "code_swapped":
        require(num_references == 2, key, num_references, "2 for loss.arwc_assignment=code_swapped")


def loss(logps: ResponseLogps, config: Config) -> LossOutput:
    """One MRPO loss per pair, in float32 at least.

    Args:
        logps: a batch with R = 2 and K >= 1.
        config: see Config; check_references must have passed for K.

    Returns:
        losses [B]; rewards [B, 2] = beta * (l - v). stats, 0 for rows that are not valid: weight, clip_low,
        clip_high and clip_fraction [K, B] (a_k, and the fraction of the pair's responses held by the lower, the upper
        or either bound); vref/logps/chosen,
        vref/logps/rejected (v, nats) and vref/offset (mean of v - r^1 over the pair, nats) [B]; and with clipping
        ctro/eps_chosen and ctro/eps_rejected [B].
    """
    rows = safe_rows(logps, mask_references=config.nonfinite == "mask_ref")
    weights = _weights(rows, config)  # [K, B]
    eps = _eps(rows, config)  # [B, 2] or None
    clipped = virtual.clip_references(rows.reference, eps)
    offset = virtual.mix(clipped.offsets, weights, config.virtual_ref)  # [B, 2] v - r^1
    logratios = rows.policy - rows.reference[0] - offset  # [B, 2] l - v; the two large numbers meet first
    chosen, rejected = logratios.unbind(-1)
    margin = config.beta * (chosen - rejected)  # [B] h
    return LossOutput(
        losses=(-F.logsigmoid(margin)).where(rows.valid, 0.0),
        rewards=(config.beta * logratios.detach()).where(rows.valid.unsqueeze(-1), 0.0),
        valid=rows.valid,
        stats=_stats(rows, weights, eps, clipped, offset),
    )


def _is_distribution(weights: Any) -> bool:
    numbers = isinstance(weights, (list, tuple)) and all(isinstance(w, (int, float)) for w in weights)
    return numbers and all(w >= 0 for w in weights) and abs(sum(weights) - 1) <= 1e-6


def _weights(rows: SafeRows, config: Config) -> Tensor:
    """[K, B] a_k, from the log-probs before clipping."""
    dtype = rows.reference.dtype
    if config.weights == "uniform":
        return virtual.uniform_weights(rows.usable, dtype)
    if config.weights != "arwc":
        return virtual.fixed_weights(config.weights, rows.usable, dtype)
    if config.arwc_assignment == "code_swapped":
        return virtual.swapped_arwc_weights(rows.reference, rows.present, rows.usable)
    return virtual.arwc_weights(rows.reference, rows.present, rows.usable)


def _eps(rows: SafeRows, config: Config) -> Tensor | None:
    """[B, 2] half-widths of the trust regions, from the log-probs before clipping, or None for no clipping."""
    if config.ctro == "none":
        return None
    if config.ctro == "fixed":
        return torch.full_like(rows.reference[0], config.eps_max)
    return virtual.ctro_eps(rows.reference, rows.present, rows.usable, config.eps_max, config.eps_norm)


def _stats(
    rows: SafeRows, weights: Tensor, eps: Tensor | None, clipped: virtual.ClippedReferences, offset: Tensor
) -> dict[str, Tensor]:
    """What the paper's three mechanisms did to each pair; see loss."""
    logps = rows.reference[0] + offset  # [B, 2] v
    stats = {
        "weight": weights,
        "clip_low": clipped.low.to(offset.dtype).mean(-1),
        "clip_high": clipped.high.to(offset.dtype).mean(-1),
        "clip_fraction": (clipped.low | clipped.high).to(offset.dtype).mean(-1),
        "vref/logps/chosen": logps[:, 0],
        "vref/logps/rejected": logps[:, 1],
        "vref/offset": offset.mean(-1),
    }
    if eps is not None:
        stats |= {"ctro/eps_chosen": eps[:, 0], "ctro/eps_rejected": eps[:, 1]}
    return {name: value.where(rows.valid, 0.0) for name, value in stats.items()}
