"""Attention by segments against SDPA with the whole mask."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.ops.attention import FULL, SLIDING, MaskPlan, groups_of
from mrpo_ds.ops.segments import attend

UNITS = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(0, 9), min_size=1, max_size=4)).filter(
        lambda unit: sum(unit[1])
    ),
    min_size=1,
    max_size=4,
)
"""(tokens of the prompt, tokens of each response) of what lies in a row."""


def row_of(units):
    """(segments [2, S], positions [S]) of a row, as data.batching lays it."""
    own, shared, positions, first = [], [], [], 0
    for prompt, responses in units:
        own += [first] * prompt
        positions += range(prompt)
        for number, count in enumerate(responses, start=1):
            own += [first + number] * count
            positions += range(prompt, prompt + count)
        shared += [first] * (prompt + sum(responses))
        first += 1 + len(responses)
    return torch.tensor([own, shared]), torch.tensor(positions)


def mask_of(units, window):
    segments, positions = row_of(units)
    kind = SLIDING if window else FULL
    plan = MaskPlan("sdpa", {kind: window})
    return plan.masks(segments.unsqueeze(0), positions.unsqueeze(0), torch.float32)


@settings(max_examples=60, deadline=None)
@given(UNITS, st.sampled_from([None, 1, 3, 7, 100]), st.sampled_from([1, 2, 4]), st.sampled_from([None, 0.3]))
def test_values_and_gradients_are_those_of_the_whole_square(units, window, heads_of_keys, scale):
    mask = mask_of(units, window)
    generator = torch.Generator().manual_seed(0)
    tokens = mask.shape[-1]
    states = [
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, heads_of_keys, heads_of_keys)
    ]
    weight = torch.randn(1, 4, tokens, 8, generator=generator, dtype=torch.float64)
    ours = attend(*states, groups_of(mask), scale)
    theirs = F.scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), states),
        torch.autograd.grad((theirs * weight).sum(), states),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_responses_meet_their_group_and_a_sequence_alone_needs_no_mask():
    ((first, second),) = groups_of(mask_of([(5, [3, 2]), (0, [4])], None))
    assert [(piece.start, piece.end) for piece in first] == [(0, 5), (5, 10)]
    assert [(piece.start, piece.end) for piece in second] == [(0, 4)]
    assert first[0].mask is None and first[1].mask.shape == (5, 10) and second[0].mask is None


def test_other_attentions_keep_the_whole_mask():
    segments, positions = row_of([(5, [3, 2])])
    masks = MaskPlan("eager", {FULL: None}).masks(segments.unsqueeze(0), positions.unsqueeze(0), torch.float32)
    assert groups_of(masks) is None
    assert groups_of(None) is None
