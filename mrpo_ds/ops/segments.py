"""Attention piece by piece, for kernels that compute the whole square of a row whatever its mask says.

Shapes as in mrpo_ds/types.py; H heads of width W. With groups of P tokens of a prompt and Q of its responses, a row has
the square of all its tokens as pairs, of which few are attended to. Here a prompt's queries meet its own keys, and the
responses' queries the keys of their group: P^2 / 2 + Q (P + Q) pairs a group. docs/performance.md says what that gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Tokens of a group that attend together to the group's first tokens up to their own last."""

    start: int
    """Where in the group the first of them is."""
    end: int
    mask: Tensor | None
    """[end - start, end] bool: who sees whom; None: each sees all before it, and start is 0."""


Groups = Sequence[Sequence[Piece]]
"""The groups of a row from left to right, each of the pieces that cover it."""


def cut(segments: Tensor, mask: Tensor, window: int | None) -> Sequence[Groups]:
    """The groups of each row: sequences that share what they begin with, or one that is alone.

    Args:
        segments: [M, 2, S] int: each token's own segment, and the one that its sequence shares.
        mask: [M, 1, S, S] bool: who attends to whom (ops.attention.visible).
        window: how many positions a token sees, itself included; None for all before it.
    """
    rows = zip(segments.tolist(), mask, strict=True)
    return [_cut_row(own, shared, square, window) for (own, shared), (square,) in rows]


def _cut_row(own: list[int], shared: list[int], mask: Tensor, window: int | None) -> Groups:
    groups = []
    first = 0
    for segment, tokens in groupby(shared):
        length = sum(1 for _ in tokens)
        inside = own[first : first + length]
        square = mask[first : first + length, first : first + length]
        # What all share, or the only sequence there is, is one run of tokens that see all before them.
        run = length if len(set(inside)) == 1 else inside.count(segment)
        narrow = window is not None and window < run
        pieces = [Piece(0, run, square[:run, :run] if narrow else None)] if run else []
        if run < length:
            pieces.append(Piece(run, length, square[run:]))
        groups.append(pieces)
        first += length
    return groups


def attend(query: Tensor, key: Tensor, value: Tensor, rows: Sequence[Groups], scale: float | None) -> Tensor:
    """[M, H, S, W] what scaled dot-product attention gives with the mask that rows were cut from.

    query is [M, H, S, W]; key and value are [M, heads of keys, S, W], each head of which serves H / heads of keys.
    """
    per_head = query.shape[1] // key.shape[1]
    if per_head > 1:
        key, value = key.repeat_interleave(per_head, 1), value.repeat_interleave(per_head, 1)
    found = [
        _attend_row(q, k, v, groups, scale)
        for q, k, v, groups in zip(*(torch.split(one, 1) for one in (query, key, value)), rows, strict=True)
    ]
    return torch.cat(found)


def _attend_row(query: Tensor, key: Tensor, value: Tensor, groups: Groups, scale: float | None) -> Tensor:
    # Split, not sliced: the backward of a slice fills a whole row with zeros, that of a split puts its parts together.
    lengths = [pieces[-1].end for pieces in groups]
    found = []
    for q, k, v, pieces in zip(*(torch.split(one, lengths, 2) for one in (query, key, value)), groups, strict=True):
        for piece in pieces:
            here = (q[:, :, piece.start : piece.end], k[:, :, : piece.end], v[:, :, : piece.end])
            alone = piece.mask is None
            found.append(F.scaled_dot_product_attention(*here, attn_mask=piece.mask, is_causal=alone, scale=scale))
    return torch.cat(found, dim=2)
