"""Attention segment by segment, for kernels that compute the whole square of a row whatever its mask says.

Shapes as in mrpo_ds/types.py; H heads of width W. With a prompt of P tokens and R responses of L, a row has (P + R L)^2
pairs of tokens, of which P^2 / 2 + R (P L + L^2 / 2) are attended to: here a segment's queries meet the keys of its own
segment and of the one that it shares, and no others. docs/performance.md says what that gains on CPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens of a row that lie together and see the same."""

    length: int
    """L."""
    shared: int | None
    """Which of the row's segments they see besides their own, or None."""
    mask: Tensor | None
    """[L, keys] bool: who sees whom among the shared segment's tokens and then its own; None: all before it."""


Rows = Sequence[Sequence[Segment]]
"""Per row, its segments from left to right."""


def cut(segments: Tensor, mask: Tensor, window: int | None) -> Rows:
    """The segments of rows.

    Args:
        segments: [M, 2, S] int: each token's own segment, and the one that its sequence shares.
        mask: [M, 1, S, S] bool: who attends to whom (ops.attention.visible).
        window: how many positions a token sees, itself included; None for all before it.
    """
    return [
        _cut_row(own, shared, square, window) for (own, shared), (square,) in zip(segments.tolist(), mask, strict=True)
    ]


def _cut_row(own: list[int], shared: list[int], mask: Tensor, window: int | None) -> list[Segment]:
    places: dict[int, tuple[int, slice]] = {}
    """Segment -> its number in the row, and its tokens."""
    found = []
    start = 0
    for number, (segment, tokens) in enumerate(groupby(own)):
        end = start + sum(1 for _ in tokens)
        other = places.get(shared[start])
        places[segment] = (number, slice(start, end))
        if other is not None:
            keys = torch.cat([mask[start:end, other[1]], mask[start:end, start:end]], dim=-1)
            found.append(Segment(end - start, other[0], keys))
        else:
            narrow = window is not None and window < end - start
            found.append(Segment(end - start, None, mask[start:end, start:end] if narrow else None))
        start = end
    return found


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float | None) -> Tensor:
    """[M, H, S, W] what scaled dot-product attention gives with the mask that rows were cut from.

    query is [M, H, S, W]; key and value are [M, heads of keys, S, W], each head of which serves H / heads of keys.
    """
    return torch.stack(
        [
            _attend_row(q, k, v, segments, scale)
            for q, k, v, segments in zip(query.unbind(), key.unbind(), value.unbind(), rows, strict=True)
        ]
    )


def _attend_row(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float | None) -> Tensor:
    # Split, not sliced: the backward of a slice fills a whole row with zeros, that of a split puts its parts together.
    lengths = [segment.length for segment in segments]
    queries, keys, values = (tensor.split(lengths, dim=1) for tensor in (query, key, value))
    found = []
    for number, segment in enumerate(segments):
        k, v = keys[number], values[number]
        if segment.shared is not None:
            k, v = (torch.cat([parts[segment.shared], own], dim=1) for parts, own in ((keys, k), (values, v)))
        found.append(_kernel(queries[number], k, v, segment.mask, scale))
    return torch.cat(found, dim=1)


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """[H, L, W] attention of [H, L, W] queries to [heads, keys, W] keys and values."""
    groups = query.shape[0] // key.shape[0]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    q, k, v = (tensor.unsqueeze(0) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale).squeeze(0)
