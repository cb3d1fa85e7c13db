"""K reference log-probs -> one virtual reference v: weights, clipping and mixing.

Source: "Multi-Reference Preference Optimization" (MRPO), AAAI-25, arXiv:2405.16388; equation numbers are its.

Shapes as in mrpo_ds/types.py. Every function works in the dtype it is given and expects finite numbers everywhere
(ops/rows.py provides them). reference is [K, B, R] in nats, RefM1 first; present [B, R] and usable [K, B] are the masks
of SafeRows. Log-probs of whole responses are hundreds of nats and the references differ by tens, so everything after
the weights is computed on offsets from RefM1 (log pi^k - log pi^1): no exp() of a sum of log-probs is ever formed, and
K = 1, identical references and eps = 0 give DPO exactly instead of nearly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

AUTHORS_EPSILON = 1e-6  # nats; in the denominator of the authors' code


class ClippedReferences(NamedTuple):
    """References inside the trust region, as offsets from RefM1."""

    offsets: Tensor
    """[K, B, R] clipped log pi^k - log pi^1, nats; row 0 is 0."""
    low: Tensor
    """[K, B, R] bool, True where the lower bound replaced the reference's own number."""
    high: Tensor
    """[K, B, R] bool, True where the upper bound did."""


def fixed_weights(values: Sequence[float], usable: Tensor, dtype: torch.dtype) -> Tensor:
    """The same K weights for every row, shared out again among the usable references of a row.

    Args:
        values: K numbers >= 0; only their ratios count.
        usable: [K, B] bool.
        dtype: of the result.

    Returns:
        [K, B] weights, >= 0, summing to 1 over K.
    """
    raw = torch.tensor(values, dtype=dtype, device=usable.device)
    return _normalise(raw.unsqueeze(-1).expand(usable.shape), usable)


def uniform_weights(usable: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / K each, or 1 / (usable references of the row). Shapes as in fixed_weights."""
    return fixed_weights([1.0] * usable.shape[0], usable, dtype)


def arwc_weights(reference: Tensor, present: Tensor, usable: Tensor) -> Tensor:
    """Adaptive reference weighting (eq. 10): proportional to how far a reference tells the responses apart.

    The gap |r_chosen - r_rejected| of the paper is taken as max - min over the present responses, which is the same
    number for a pair and defines it for more. When all gaps are 0 the paper's 0 / 0 becomes uniform weights.

    Args:
        reference: [K, B, R] log-probs before clipping, nats.
        present: [B, R] bool.
        usable: [K, B] bool.

    Returns:
        [K, B] weights, >= 0, summing to 1 over K.
    """
    return _normalise(_gaps(reference, present), usable)


def swapped_arwc_weights(reference: Tensor, present: Tensor, usable: Tensor) -> Tensor:
    """What the authors' code does with two references: each gets the share of the other's gap.

    Only to reproduce their runs (github.com/thaihungle/MRPO, commit 4171095). It keeps their + 1e-6 in the denominator,
    and so their result for two gaps of 0: all weight on the second reference. Shapes as in arwc_weights, with K = 2.
    """
    first, second = _gaps(reference, present)  # [B] each
    share = second / (first + second + AUTHORS_EPSILON)
    return _normalise(torch.stack((share, 1.0 - share)), usable)


def ctro_eps(reference: Tensor, present: Tensor, usable: Tensor, eps_max: float, eps_norm: str) -> Tensor:
    """Adaptive half-widths of the trust region (eq. 9): the less likely a response, the wider its region.

    Args:
        reference: [K, B, R] log-probs before clipping, nats.
        present: [B, R] bool.
        usable: [K, B] bool.
        eps_max: >= 0, relative to |log pi^1|.
        eps_norm: "sum": the eps of a row's n responses sum to eps_max (the paper). "mean": their mean is eps_max.

    Returns:
        [B, R] eps, >= 0; 0 for absent responses. A row of zero log-probs gets equal shares.
    """
    size = reference.where(usable.unsqueeze(-1) & present, 0.0).sum(0).abs()  # [B, R] s(y)
    total = size.sum(-1, keepdim=True)  # [B, 1]
    count = present.sum(-1, keepdim=True).clamp(min=1).to(size.dtype)  # [B, 1] n
    equal = present.to(size.dtype) / count
    share = torch.where(total > 0, size / total.where(total > 0, 1.0), equal)
    return eps_max * share * (count if eps_norm == "mean" else 1.0)


def clip_references(reference: Tensor, eps: Tensor | None) -> ClippedReferences:
    """Clipped trust regions around RefM1 (CTRO, eq. 8).

    The paper's bounds (1 + eps) * r^1 and (1 - eps) * r^1 are r^1 -+ eps * |r^1|, since a log-prob is <= 0. In that
    form the lower bound cannot rise above the upper one when rounding leaves r^1 a hair above 0.

    Args:
        reference: [K, B, R] log-probs, nats.
        eps: [B, R] half-widths, >= 0, relative to |r^1|; None clips nothing.

    Returns:
        Offsets from RefM1 and where a bound holds. RefM1 itself never moves.
    """
    offsets = reference - reference[0]
    if eps is None:
        nowhere = torch.zeros_like(offsets, dtype=torch.bool)
        return ClippedReferences(offsets, nowhere, nowhere)
    band = eps * reference[0].abs()  # [B, R]
    return ClippedReferences(offsets.clamp(-band, band), offsets < -band, offsets > band)


def mix(offsets: Tensor, weights: Tensor, kind: str) -> Tensor:
    """The virtual reference of K references, as its offset u from RefM1: v = r^1 + u.

    harmonic    v = -log sum_k a_k / pi^k    Proposition 1 (eq. 20) and the paper's method
    geometric   v = sum_k a_k log pi^k       the exact optimum of eq. 6, arXiv:2502.01203
    arithmetic  v = log sum_k a_k pi^k       "Mean-Ref", the paper's baseline
    always min_k <= harmonic <= geometric <= arithmetic <= max_k of the log pi^k with a_k > 0.

    Args:
        offsets: [K, B, R] log pi^k - log pi^1 after clipping, nats, finite.
        weights: [K, B] a_k >= 0, summing to 1 over K. A weight of 0 leaves the reference out exactly.
        kind: harmonic | geometric | arithmetic.

    Returns:
        [B, R] u in nats.

    Raises:
        ValueError: there is no such kind.
    """
    weights = weights.unsqueeze(-1)  # [K, B, 1]
    if kind == "geometric":
        return (weights * offsets).sum(0)
    log_weights = weights.log()  # -inf for a weight of 0, and exp(-inf) drops its term from the sum
    if kind == "harmonic":
        return -torch.logsumexp(log_weights - offsets, dim=0)
    if kind == "arithmetic":
        return torch.logsumexp(log_weights + offsets, dim=0)
    raise ValueError(f"no virtual reference of kind {kind!r}")


def _gaps(reference: Tensor, present: Tensor) -> Tensor:
    """[K, B] max - min over the present responses; 0 where there is none."""
    highest = reference.masked_fill(~present, -math.inf).amax(-1)
    lowest = reference.masked_fill(~present, math.inf).amin(-1)
    return (highest - lowest).where(present.any(-1), 0.0)


def _normalise(raw: Tensor, usable: Tensor) -> Tensor:
    """[K, B] raw weights >= 0 -> shares of the usable references; equal shares where all of those are 0.

    The zero is taken out by where() and not by adding a small number: K = 1 must give a weight of exactly 1.
    """
    raw = raw.where(usable, 0.0)
    total = raw.sum(0)  # [B]
    equal = usable.to(raw.dtype) / usable.sum(0).clamp(min=1)
    return torch.where(total > 0, raw / total.where(total > 0, 1.0), equal)
