"""Who attends to whom in rows of sequences, some of which share the tokens that they begin with.

Shapes as in mrpo_ds/types.py. A row is cut into segments: what several sequences begin with is one, and what each of
them adds is one, which attends to itself and to the segment that its sequence shares.

    tokens      p p p p a a a b b | q q c c        two sequences share p, one is alone
    own         0 0 0 0 1 1 1 2 2 | 3 3 3 3
    shared      0 0 0 0 0 0 0 0 0 | 3 3 3 3
    positions   0 1 2 3 4 5 6 4 5 | 0 1 2 3
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.ops.segments import Groups, cut

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers, as transformers names them."""
FORMS = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take masks like ours."""


@dataclass(frozen=True)
class MaskPlan:
    """The masks that a model's layers take."""

    form: str
    """One of FORMS: SDPA takes booleans, eager what is added to the scores, FlexAttention a block mask."""
    windows: dict[str, int | None]
    """Per kind of layer, how many positions a token sees, itself included; None for all before it."""

    def masks(self, segments: Tensor, positions: Tensor, dtype: torch.dtype) -> Any:
        """What the model takes as its attention_mask: a mask, or one per kind of layer where there are several.

        Args:
            segments: [M, 2, S] int: each token's own segment, and the one that its sequence shares.
            positions: [M, S] int: each token's place in its sequence.
            dtype: of the attention scores.
        """
        masks = {kind: self._mask(segments, positions, window, dtype) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, segments: Tensor, positions: Tensor, window: int | None, dtype: torch.dtype) -> Any:
        if self.form == "flex_attention":
            return _block_mask(segments, positions, window)
        mask = visible(segments, positions, window).unsqueeze(1)  # [M, 1, S, S], the same for every head
        if self.form == "eager":
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        if mask.device.type == "cpu":
            mask.groups = cut(segments, mask, window)  # type: ignore[attr-defined]
        return mask


def groups_of(mask: Tensor | None) -> Sequence[Groups] | None:
    """Per row, the groups of tokens that a mask of MaskPlan keeps apart, where attention should go by them: on CPUs."""
    return getattr(mask, "groups", None)


def plan_masks(config: Any) -> MaskPlan | str:
    """The plan of a transformers text configuration, or why its attention can take no masks of ours."""
    form = config._attn_implementation
    if form not in FORMS:
        return f"attention {form!r} takes no mask, only sequences one after the other; allowed: {', '.join(FORMS)}"
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if unknown := sorted(kinds - {FULL, SLIDING}):
        return f"it has layers of the kind {unknown[0]}"
    return MaskPlan(form, {kind: window if kind == SLIDING else None for kind in sorted(kinds)})


def visible(segments: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """[M, S, S] bool: whether the token of each row of the matrix attends to that of each column.

    Arguments as those of MaskPlan.masks; window as in MaskPlan.windows.
    """
    own, shared = segments.unbind(1)
    keys = own.unsqueeze(1)  # [M, 1, S]
    seen = (own.unsqueeze(2) == keys) | (shared.unsqueeze(2) == keys)
    seen = seen.tril()  # what is shared stands before what is added to it
    if window is not None:
        seen &= positions.unsqueeze(2) - positions.unsqueeze(1) < window
    return seen


def _block_mask(segments: Tensor, positions: Tensor, window: int | None) -> Any:
    """The same for FlexAttention, which leaves out blocks of the matrix in which no token sees another."""
    from torch.nn.attention.flex_attention import create_block_mask

    own, shared = segments.unbind(1)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = (own[row, query] == own[row, key]) | (shared[row, query] == own[row, key])
        before = before & (query >= key)
        return before if window is None else before & (positions[row, query] - positions[row, key] < window)

    rows, tokens = positions.shape
    # Compiled, it finds the blocks without the matrix; where nothing is compiled it holds all of it.
    compiled = positions.is_cuda
    return create_block_mask(sees, rows, None, tokens, tokens, device=positions.device, _compile=compiled)
