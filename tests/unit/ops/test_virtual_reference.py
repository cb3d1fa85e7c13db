"""Weights, trust regions and mixing: hand-made numbers and the properties of the MRPO paper's formulas.

Examples A and B are those of tests/unit/losses/test_mrpo.py; the P-numbers, of test_properties_references.py there.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.ops.virtual_reference import (
    arwc_weights,
    clip_references,
    ctro_eps,
    fixed_weights,
    mix,
    swapped_arwc_weights,
    uniform_weights,
)

A = [[-55.1, -60.2], [-48.9, -71.4]]
B = [[-210.5, -188.25], [-405.75, -311.5], [-150.0, -260.0]]
KINDS = ("harmonic", "geometric", "arithmetic")
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def one_row(references):
    """[K][R] numbers -> reference [K, 1, R], present [1, R], usable [K, 1]; None is an absent response."""
    table = [[math.nan if number is None else number for number in row] for row in references]
    reference = torch.tensor(table, dtype=torch.float64).unsqueeze(1)
    present = ~reference.isnan().all(0)
    return reference.where(present, 0.0), present, torch.ones(reference.shape[:2], dtype=torch.bool)


def close(tensor, wanted, tolerance=1e-9):
    torch.testing.assert_close(tensor, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=tolerance)


@st.composite
def rows(draw, min_references=1):
    """One row of 1 to 4 references and 2 to 4 responses, log-probs of -500 to -0.5 nats."""
    size = draw(st.integers(2, 4))
    numbers = st.lists(st.floats(-500.0, -0.5), min_size=size, max_size=size)
    return one_row(draw(st.lists(numbers, min_size=min_references, max_size=4)))


# Weights


@pytest.mark.parametrize(
    "references, weights",
    [
        (A, [0.1847826086956522, 0.8152173913043478]),
        (B, [0.09823399558498896, 0.4161147902869757, 0.4856512141280353]),
        ([[-30, -33], [-31, -32.5]], [2 / 3, 1 / 3]),
    ],
)
def test_arwc_golden(references, weights):
    close(arwc_weights(*one_row(references))[:, 0], weights)


def test_arwc_of_more_than_two_responses_takes_the_widest_gap_of_those_present():
    table = [[-10.0, -14.0, -11.0, None], [-20.0, -20.0, -32.0, None]]
    close(arwc_weights(*one_row(table))[:, 0], [4 / 16, 12 / 16])


def test_arwc_code_swapped_golden():
    close(swapped_arwc_weights(*one_row(A))[:, 0], [0.8152173617674869, 1 - 0.8152173617674869])
    close(swapped_arwc_weights(*one_row([[-30, -33], [-31, -32.5]]))[:, 0], [0.3333332592592757, 0.6666667407407243])
    close(swapped_arwc_weights(*one_row([[-3, -3], [-4, -4]]))[:, 0], [0.0, 1.0])  # the authors' 0 / 1e-6


@given(rows(), st.floats(1e-3, 1e3))
@PROPERTY
def test_p9_weights_are_a_distribution_that_scaling_all_gaps_leaves_unchanged(row, factor):
    reference, present, usable = row
    weights = arwc_weights(reference, present, usable)
    assert (weights >= 0).all()
    close(weights.sum(0), [1.0], 1e-12)
    torch.testing.assert_close(arwc_weights(reference * factor, present, usable), weights, rtol=1e-9, atol=1e-10)


def test_p15_gaps_of_zero_give_uniform_weights():
    close(arwc_weights(*one_row([[-3, -3], [-4, -4], [-5, -5]]))[:, 0], [1 / 3] * 3, 1e-15)


def test_one_reference_has_a_weight_of_exactly_one():
    for gap in (0.0, 1e-300, 0.3, 400.0):
        assert arwc_weights(*one_row([[-500.0, -500.0 + gap]])).tolist() == [[1.0]]


def test_a_reference_that_is_not_usable_gets_nothing_and_the_others_share_it():
    reference, present, usable = one_row([[-10, -11], [-20, -50], [-30, -33]])
    usable[1] = False
    close(arwc_weights(reference, present, usable)[:, 0], [0.25, 0, 0.75], 1e-15)
    close(uniform_weights(usable, torch.float64)[:, 0], [0.5, 0, 0.5], 1e-15)
    close(fixed_weights([0.2, 0.5, 0.3], usable, torch.float64)[:, 0], [0.4, 0, 0.6], 1e-15)
    close(fixed_weights([0, 1, 0], usable, torch.float64)[:, 0], [0.5, 0, 0.5], 1e-15)  # nothing left to share
    close(swapped_arwc_weights(reference[:2], present, usable[:2])[:, 0], [1.0, 0.0], 1e-15)


# Trust regions


@pytest.mark.parametrize(
    "references, eps",
    [
        (A, [0.04414261460101868, 0.05585738539898132]),
        (B, [0.05021297509829620, 0.04978702490170380]),
        ([[-30, -33], [-31, -32.5]], [0.04822134387351779, 0.05177865612648221]),
    ],
)
def test_adaptive_eps_golden(references, eps):
    close(ctro_eps(*one_row(references), 0.1, "sum")[0], eps)
    close(ctro_eps(*one_row(references), 0.1, "mean")[0], [2 * number for number in eps])


@given(rows(), st.floats(0.0, 2.0), st.sampled_from(["sum", "mean"]))
@PROPERTY
def test_p8_adaptive_eps_are_shares_of_eps_max(row, eps_max, norm):
    eps = ctro_eps(*row, eps_max, norm)
    assert (eps >= 0).all()
    total = eps.sum() if norm == "sum" else eps.mean()
    assert float(total) == pytest.approx(eps_max, abs=1e-12)


def test_adaptive_eps_leaves_out_absent_responses_and_references_that_are_not_usable():
    reference, present, usable = one_row([[-10, -30, None], [-500, -1, None]])
    usable[1] = False
    close(ctro_eps(reference, present, usable, 0.1, "sum")[0], [0.025, 0.075, 0.0])
    close(ctro_eps(reference, present, usable, 0.1, "mean")[0], [0.05, 0.15, 0.0])


def test_adaptive_eps_of_one_response_or_of_certain_ones_is_no_division_by_zero():
    close(ctro_eps(*one_row([[-10, None], [-20, None]]), 0.1, "sum")[0], [0.1, 0.0])
    close(ctro_eps(*one_row([[0.0, 0.0], [0.0, 0.0]]), 0.1, "sum")[0], [0.05, 0.05])
    assert ctro_eps(*one_row([[None, None]]), 0.1, "sum").tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "eps, given_logp, clipped",
    [
        (0.1, -400, -110),
        (0.1, -90.5, -90.5),
        (0.1, -20, -90),
        (1.5, -400, -250),
        (1.5, -20, -20),
        (0.0, -400, -100),
        (0.0, -20, -100),
    ],
)
def test_clip_spot_checks(eps, given_logp, clipped):
    reference, _, _ = one_row([[-100], [given_logp]])
    result = clip_references(reference, torch.tensor([[eps]], dtype=torch.float64))
    close(-100 + result.offsets[1], [[clipped]], 1e-12)
    assert result.low[1].item() == (clipped > given_logp) and result.high[1].item() == (clipped < given_logp)
    assert not result.offsets[0].any() and not result.low[0].any() and not result.high[0].any()


@pytest.mark.parametrize(
    "references, eps, clipped",
    [
        (A, None, [[-55.1, -60.2], [-52.66774193548387, -63.56261460101868]]),
        (A, 0.1, [[-55.1, -60.2], [-49.59, -66.22]]),
        (B, None, [B[0], [-221.0698312581913, -197.6224074377457], [-199.9301687418087, -197.6224074377457]]),
        (B, 0.1, [B[0], [-231.55, -207.075], [-189.45, -207.075]]),
    ],
)
def test_clipped_references_golden(references, eps, clipped):
    """An eps of None stands for the adaptive one, 0.1 at most."""
    row = one_row(references)
    widths = ctro_eps(*row, 0.1, "sum") if eps is None else torch.full_like(row[0][0], eps)
    close((row[0][0] + clip_references(row[0], widths).offsets)[:, 0], clipped)


def test_a_certain_response_and_a_rounding_above_zero_do_not_turn_the_region_inside_out():
    reference, _, _ = one_row([[0.0, 1e-9], [-7.0, -7.0]])
    offsets = clip_references(reference, torch.full((1, 2), 0.1, dtype=torch.float64)).offsets
    close(offsets[1], [[0.0, -1e-10]], 1e-15)
    assert clip_references(reference, None).offsets[1].tolist() == [[-7.0, -7.0 - 1e-9]]


@given(rows(), st.floats(0.0, 0.5))
@PROPERTY
def test_p7_the_virtual_reference_stays_inside_the_trust_region(row, eps_max):
    reference, present, usable = row
    eps = ctro_eps(reference, present, usable, eps_max, "sum")
    clipped = clip_references(reference, eps)
    for kind in KINDS:
        offset = mix(clipped.offsets, arwc_weights(*row), kind)
        assert (offset.abs() <= eps * reference[0].abs() * (1 + 1e-12) + 1e-13).all()


# Mixing


def toy_policies():
    """Two distributions over three responses as offsets from the first [2, 1, 3], log of the first [1, 3], weights."""
    reference, _, _ = one_row([[math.log(p) for p in row] for row in ([0.5, 0.3, 0.2], [0.1, 0.6, 0.3])])
    return clip_references(reference, None).offsets, reference[0], torch.tensor([[0.4], [0.6]], dtype=torch.float64)


@pytest.mark.parametrize(
    "kind, probabilities",
    [
        ("harmonic", [0.147058823529, 0.428571428571, 0.25]),
        ("geometric", [0.190365393872, 0.454714969953, 0.255084900125]),
        ("arithmetic", [0.26, 0.48, 0.26]),
    ],
)
def test_mixtures_of_two_toy_policies(kind, probabilities):
    offsets, first, weights = toy_policies()
    close((first + mix(offsets, weights, kind)).exp()[0], probabilities, 1e-12)


@given(rows(), st.data())
@PROPERTY
def test_p6_min_harmonic_geometric_arithmetic_max(row, data):
    reference, _, usable = row
    size = len(reference)
    raw = data.draw(st.lists(st.floats(1e-6, 1.0), min_size=size, max_size=size))
    weights = fixed_weights(raw, usable, torch.float64)
    offsets = clip_references(reference, None).offsets
    ladder = [offsets.amin(0), *(mix(offsets, weights, kind) for kind in KINDS), offsets.amax(0)]
    for lower, upper in zip(ladder, ladder[1:], strict=False):
        assert (lower <= upper + 1e-10).all()
    assert (ladder[1] <= (offsets - weights.log().unsqueeze(-1)).amin(0) + 1e-10).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_drops_the_reference_exactly(kind):
    reference, _, usable = one_row(B)
    without, _, fewer = one_row([B[0], B[2]])
    three = mix(clip_references(reference, None).offsets, fixed_weights([0.3, 0, 0.7], usable, torch.float64), kind)
    two = mix(clip_references(without, None).offsets, fixed_weights([0.3, 0.7], fewer, torch.float64), kind)
    assert torch.equal(three, two)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_reference_is_its_own_mixture_exactly(kind, dtype):
    offset = mix(torch.zeros(1, 1, 2, dtype=dtype), torch.ones(1, 1, dtype=dtype), kind)
    assert offset.dtype == dtype and not offset.any()


def test_an_unknown_mixture_is_an_error():
    with pytest.raises(ValueError, match="'median'"):
        mix(torch.zeros(1, 1, 2), torch.ones(1, 1), "median")
