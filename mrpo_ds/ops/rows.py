"""Which rows and references of a batch can be used, and numbers that are safe to compute with everywhere else."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrpo_ds.types import ResponseLogps


@dataclass(frozen=True)
class SafeRows:
    """A ResponseLogps without a NaN or an infinity of the references: what cannot be used has a stand-in and a mask.

    The stand-ins come before any arithmetic. A where() on the result alone would still give 0 * NaN = NaN in backward.
    """

    policy: Tensor
    """[B, R] nats, float32 at least, with gradient; 0 where not present."""
    reference: Tensor
    """[K, B, R] nats, detached; 0 where not present, RefM1's number for a reference that is not usable."""
    usable: Tensor
    """[K, B] bool; False where a reference is left out of a valid row. RefM1 is always usable."""
    lengths: Tensor
    """[B, R] the policy's scored tokens, in the dtype of policy; 1 where not present, so that it can be divided by."""
    present: Tensor
    """[B, R] bool; False for padding and in rows that are not valid."""
    valid: Tensor
    """[B] bool; see LossOutput.valid."""


def without_references(logps: ResponseLogps, keep: int = 0) -> ResponseLogps:
    """The batch with its first references only: for losses that the others, broken ones included, do not concern."""
    return replace(logps, reference=logps.reference[:keep], reference_lengths=logps.reference_lengths[:keep])


def safe_rows(logps: ResponseLogps, mask_references: bool = False, fewest: int = 2) -> SafeRows:
    """Find the rows that can be used.

    A row is valid when at least `fewest` responses are present and each present one has a scored token and finite
    reference log-probs. The policy's own log-probs have no say: were they not finite, the run must stop, not skip the
    row.

    Args:
        logps: a batch; absent responses and broken rows may hold anything.
        mask_references: leave a reference k >= 2 that is not finite out of the row instead of dropping the row.
            RefM1 is the centre of every formula and always drops it.
        fewest: responses that a row must have.
    """
    dtype = torch.promote_types(logps.policy.dtype, torch.float32)
    reference = logps.reference.detach().to(dtype)
    absent = ~logps.present
    scored = reference.isfinite() & (logps.reference_lengths > 0)  # [K, B, R]
    usable = (scored | absent).all(-1)  # [K, B]
    required = usable[:1] if mask_references else usable
    valid = required.all(0) & ((logps.lengths > 0) | absent).all(-1) & (logps.present.sum(-1) >= fewest)
    present = logps.present & valid.unsqueeze(-1)
    first = reference[:1].where(present, 0.0)  # [1, B, R], or [0, B, R] without references
    return SafeRows(
        policy=logps.policy.to(dtype).where(present, 0.0),
        reference=reference.where(usable.unsqueeze(-1) & present, first),
        lengths=logps.lengths.to(dtype).where(present, 1.0),
        usable=usable | ~valid,  # a dropped row holds stand-ins only, and they are harmless
        present=present,
        valid=valid,
    )
