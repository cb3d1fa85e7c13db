"""Which rows can be used, and the stand-ins for what cannot."""

import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.ops.rows import safe_rows, without_references
from mrpo_ds.types import ResponseLogps


def whole_batch(rows=1, references=2, responses=2):
    """B rows of K references and R responses in which everything can be used."""
    shape = (references, rows, responses)
    numbers = -torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return ResponseLogps(
        policy=torch.full((rows, responses), -5.0, dtype=torch.float64, requires_grad=True),
        lengths=torch.full((rows, responses), 3),
        reference=numbers.reshape(shape),
        reference_lengths=torch.full(shape, 4),
        present=torch.ones(rows, responses, dtype=torch.bool),
    )


def with_reference(logps, place, value):
    reference = logps.reference.clone()
    reference[place] = value
    return replace(logps, reference=reference)


def test_a_whole_batch_passes_as_it_is():
    logps = whole_batch(rows=3)
    rows = safe_rows(logps)
    assert rows.valid.tolist() == [True] * 3 and rows.usable.all() and rows.present.all()
    assert torch.equal(rows.policy, logps.policy) and torch.equal(rows.reference, logps.reference)
    assert rows.lengths.tolist() == [[3.0, 3.0]] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reference, masked_is_valid", [(0, False), (1, True)])
def test_a_reference_that_is_not_finite_drops_the_row_or_is_masked(reference, masked_is_valid, value):
    logps = with_reference(whole_batch(), (reference, 0, 1), value)
    assert safe_rows(logps).valid.tolist() == [False]
    rows = safe_rows(logps, mask_references=True)
    assert rows.valid.tolist() == [masked_is_valid]
    if masked_is_valid:
        assert rows.usable.tolist() == [[True], [False]]
        assert torch.equal(rows.reference[1], rows.reference[0])  # RefM1's numbers stand in, for both responses


def test_a_reference_that_scored_no_token_is_like_one_that_is_not_finite():
    logps = whole_batch()
    lengths = logps.reference_lengths.clone()
    lengths[1, 0, 0] = 0
    logps = replace(logps, reference_lengths=lengths)
    assert safe_rows(logps).valid.tolist() == [False]
    assert safe_rows(logps, mask_references=True).usable.tolist() == [[True], [False]]


def test_a_response_without_a_token_or_a_partner_drops_the_row():
    logps = whole_batch(rows=3)
    logps = replace(
        logps,
        lengths=torch.tensor([[3, 3], [0, 3], [3, 3]]),
        present=torch.tensor([[True, True], [True, True], [True, False]]),
    )
    assert safe_rows(logps).valid.tolist() == [True, False, False]


@pytest.mark.parametrize("fewest, valid", [(1, [False, True, True, True]), (3, [False, False, False, True])])
def test_a_row_needs_as_many_responses_as_the_loss_says(fewest, valid):
    present = torch.arange(3) < torch.arange(4).unsqueeze(-1)  # 0 to 3 of them
    logps = replace(whole_batch(rows=4, responses=3), present=present)
    assert safe_rows(logps, fewest=fewest).valid.tolist() == valid


def test_what_an_absent_response_holds_does_not_matter():
    logps = with_reference(whole_batch(responses=3), (slice(None), 0, 2), math.nan)
    logps = replace(
        logps,
        policy=torch.tensor([[-5.0, -5.0, math.nan]]),
        lengths=torch.tensor([[3, 3, 0]]),
        present=torch.tensor([[True, True, False]]),
    )
    rows = safe_rows(logps)
    assert rows.valid.tolist() == [True]
    assert rows.policy.tolist() == [[-5.0, -5.0, 0.0]]
    assert rows.reference[:, 0, 2].tolist() == [0.0, 0.0]
    assert rows.lengths.tolist() == [[3.0, 3.0, 1.0]]  # so that it can be divided by


def test_the_policy_has_no_say():
    logps = replace(whole_batch(), policy=torch.full((1, 2), math.nan))
    rows = safe_rows(logps)
    assert rows.valid.tolist() == [True] and rows.policy.isnan().all()


def test_a_dropped_row_holds_only_stand_ins_and_gets_a_zero_gradient():
    logps = with_reference(whole_batch(), (0, 0, 0), math.nan)
    logps = replace(logps, policy=torch.full((1, 2), math.nan, requires_grad=True))
    rows = safe_rows(logps)
    assert not rows.policy.any() and not rows.reference.any() and not rows.present.any() and rows.usable.all()
    rows.policy.exp().sum().backward()
    assert logps.policy.grad.tolist() == [[0.0, 0.0]]


def test_references_that_do_not_concern_a_loss_are_taken_away_with_their_lengths():
    logps = with_reference(whole_batch(references=3), (2, 0, 0), math.nan)
    for keep in (0, 1, 2):
        kept = without_references(logps, keep)
        assert torch.equal(kept.reference, logps.reference[:keep]) and len(kept.reference_lengths) == keep
        assert safe_rows(kept).valid.tolist() == [True]
    assert safe_rows(logps).valid.tolist() == [False]


@pytest.mark.parametrize("mask_references", [False, True])
def test_no_references_at_all(mask_references):
    rows = safe_rows(whole_batch(references=0), mask_references)
    assert rows.valid.tolist() == [True] and rows.reference.shape == (0, 1, 2)


@pytest.mark.parametrize("dtype, computed", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_numbers_are_float32_at_least_and_references_are_detached(dtype, computed):
    logps = whole_batch()
    logps = replace(logps, policy=logps.policy.to(dtype), reference=logps.reference.to(dtype).requires_grad_())
    rows = safe_rows(logps)
    assert rows.policy.dtype == rows.reference.dtype == rows.lengths.dtype == computed
    assert rows.policy.requires_grad and not rows.reference.requires_grad
