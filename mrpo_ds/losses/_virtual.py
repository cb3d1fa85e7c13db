"""The virtual reference of K references as MRPO's family of objectives uses it: its options, and v for a batch.

Source: MRPO (Le et al., AAAI-25, arXiv:2405.16388, eq. 7-10, 20); the arithmetic is in
    mrpo_ds/ops/virtual_reference.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.errors import require, require_choice
from mrpo_ds.ops import virtual_reference as virtual
from mrpo_ds.ops.rows import SafeRows


@dataclass(frozen=True, kw_only=True)
class TrustRegionOptions:
    """How the references are clipped and weighted: the options that MRPO, Multi-DPO and their relatives share."""

    weights: Any = "arwc"
    """arwc: per prompt, by how far each reference tells the responses apart. uniform: 1 / K. Or K numbers >= 0, summing
    to 1, in the order of the references."""
    arwc_assignment: str = "paper"
    """paper: a reference's own gap. code_swapped: the other one's, as the authors' code does; two references only."""
    ctro: str = "adaptive"
    """adaptive: eps per response, by how unlikely it is. fixed: eps_max for every response. none: no clipping."""
    eps_max: float = 0.1
    """Half-width of the trust region relative to |log-prob under RefM1|, >= 0. Adaptive shares it out (eps_norm)."""
    eps_norm: str = "sum"
    """Adaptive only. sum: the eps of a prompt's responses sum to eps_max, the paper's. mean: they average to it."""
    nonfinite: str = "stop"
    """A reference with a NaN or infinity. stop: the run (train.max_skipped_steps). drop: drop the row, counted.
    mask_ref: leave a reference k >= 2 out of the row; RefM1 drops it."""

    def __post_init__(self) -> None:
        named = self.weights in ("arwc", "uniform")
        allowed = "arwc | uniform | a list of numbers >= 0 that sum to 1"
        require(named or _is_distribution(self.weights), "loss.weights", self.weights, allowed)
        require_choice("loss.arwc_assignment", self.arwc_assignment, ("paper", "code_swapped"))
        ignored = self.arwc_assignment == "code_swapped" and self.weights != "arwc"
        require(not ignored, "loss.arwc_assignment", self.arwc_assignment, "paper, unless loss.weights is arwc")
        require_choice("loss.ctro", self.ctro, ("adaptive", "fixed", "none"))
        require(0 <= self.eps_max < math.inf, "loss.eps_max", self.eps_max, ">= 0")
        require_choice("loss.eps_norm", self.eps_norm, ("sum", "mean"))
        require_choice("loss.nonfinite", self.nonfinite, ("stop", "drop", "mask_ref"))

    @property
    def exactly(self) -> tuple[int, str] | None:
        """The only number of references that fits these options, and why; for Needs."""
        if not isinstance(self.weights, str):
            return len(self.weights), f"loss.weights={list(self.weights)}"
        return (2, "loss.arwc_assignment=code_swapped") if self.arwc_assignment == "code_swapped" else None

    @property
    def masks_references(self) -> bool:
        """For safe_rows."""
        return self.nonfinite == "mask_ref"

    @property
    def drops_nonfinite(self) -> bool:
        """For Needs."""
        return self.nonfinite != "stop"


@dataclass(frozen=True, kw_only=True)
class VirtualReferenceOptions(TrustRegionOptions):
    """The options of an objective against one virtual reference."""

    virtual_ref: str = "harmonic"
    """harmonic: the paper's. geometric: the exact optimum of its eq. 6. arithmetic: its Mean-Ref baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("loss.virtual_ref", self.virtual_ref, ("harmonic", "geometric", "arithmetic"))


@dataclass(frozen=True)
class TrustRegion:
    """Weighted and clipped references of a batch."""

    weights: Tensor
    """[K, B] a_k, from the log-probs before clipping."""
    eps: Tensor | None
    """[B, R] half-widths, or None without clipping."""
    clipped: virtual.ClippedReferences

    def stats(self, rows: SafeRows) -> dict[str, Tensor]:
        """What the mechanisms did to each prompt, 0 where it is not valid.

        weight, clip_low, clip_high and clip_fraction [K, B]: a_k, and the fraction of the prompt's responses held by
        the lower, the upper or either bound. With clipping ctro/eps_chosen and ctro/eps_rejected [B]: first and last
        response.
        """
        low, high = self.clipped.low, self.clipped.high
        stats = {
            "weight": self.weights,
            "clip_low": share(low, rows.present),
            "clip_high": share(high, rows.present),
            "clip_fraction": share(low | high, rows.present),
        }
        if self.eps is not None:
            first, last = ends(self.eps, rows.present)
            stats |= {"ctro/eps_chosen": first, "ctro/eps_rejected": last}
        return {name: value.where(rows.valid, 0.0) for name, value in stats.items()}


def trust_region(rows: SafeRows, options: TrustRegionOptions) -> TrustRegion:
    """Weights (eq. 10) and half-widths (eq. 9) from the raw references, then the references clipped (eq. 8)."""
    eps = _eps(rows, options)
    return TrustRegion(_weights(rows, options), eps, virtual.clip_references(rows.reference, eps))


def virtual_logps(rows: SafeRows, options: VirtualReferenceOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """The virtual reference of a batch, as what it adds to RefM1.

    Returns:
        [B, R] v - r^1 in nats, and stats: those of TrustRegion, and [B] vref/logps/chosen, vref/logps/rejected (v of
        the first and the last response, nats) and vref/offset (mean of v - r^1 over the responses).
    """
    region = trust_region(rows, options)
    offset = virtual.mix(region.clipped.offsets, region.weights, options.virtual_ref)
    chosen, rejected = ends(rows.reference[0] + offset, rows.present)
    stats = {
        "vref/logps/chosen": chosen,
        "vref/logps/rejected": rejected,
        "vref/offset": offset.where(rows.present, 0.0).sum(-1) / rows.present.sum(-1).clamp(min=1),
    }
    stats = {name: value.where(rows.valid, 0.0) for name, value in stats.items()}
    return offset, region.stats(rows) | stats


def share(flags: Tensor, present: Tensor) -> Tensor:
    """[K, B, R] bool -> [K, B] fraction of the present responses for which a flag is True."""
    count = present.sum(-1).clamp(min=1)
    return (flags & present).sum(-1) / count


def ends(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """[B, R] -> the first and the last present column, [B] each. One without a score may be absent anywhere."""
    first = present.int().argmax(1, keepdim=True)
    last = present.shape[1] - 1 - present.flip(1).int().argmax(1, keepdim=True)
    return values.gather(1, first)[:, 0], values.gather(1, last)[:, 0]


def _is_distribution(weights: Any) -> bool:
    numbers = isinstance(weights, (list, tuple)) and all(type(w) in (int, float) for w in weights)
    return numbers and all(w >= 0 for w in weights) and abs(sum(weights) - 1) <= 1e-6


def _weights(rows: SafeRows, options: TrustRegionOptions) -> Tensor:
    dtype = rows.reference.dtype
    if options.weights == "uniform":
        return virtual.uniform_weights(rows.usable, dtype)
    if options.weights != "arwc":
        return virtual.fixed_weights(options.weights, rows.usable, dtype)
    if options.arwc_assignment == "code_swapped":
        return virtual.swapped_arwc_weights(rows.reference, rows.present, rows.usable)
    return virtual.arwc_weights(rows.reference, rows.present, rows.usable)


def _eps(rows: SafeRows, options: TrustRegionOptions) -> Tensor | None:
    if options.ctro == "none":
        return None
    if options.ctro == "fixed":
        return torch.full_like(rows.reference[0], options.eps_max)
    return virtual.ctro_eps(rows.reference, rows.present, rows.usable, options.eps_max, options.eps_norm)
