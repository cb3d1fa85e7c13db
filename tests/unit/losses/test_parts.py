"""The pieces that several objectives are made of."""

import math

import pytest
import torch

from mrpo_ds.losses._parts import CERTAIN, compare, log1mexp, nll
from mrpo_ds.losses._virtual import ends, share


def number(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "a, value",
    [
        (-0.5, -0.9327521295671886),
        (-math.log(2), -math.log(2)),
        (-1e-6, math.log(1e-6) - 5e-7),  # 1 - exp(a) = -a - a^2 / 2 - ...
        (-1e-300, math.log(1e-300)),
        (-40.0, -math.exp(-40)),
        (-5000.0, 0.0),
    ],
)
def test_log1mexp_is_exact_at_both_ends(a, value):
    assert log1mexp(number(a)).item() == pytest.approx(value, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("a", [-1e-9, CERTAIN, -0.5, -0.7, -100.0, -5000.0])
def test_the_gradient_of_log1mexp_is_finite_in_float32_too(a):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        leaf = torch.tensor(a, dtype=dtype, requires_grad=True)
        log1mexp(leaf).backward()
        assert leaf.grad.item() == pytest.approx(1 / math.expm1(a) + 1 if a > -50 else 0.0, rel=tolerance, abs=1e-30)


@pytest.mark.parametrize(
    "margin, kind, smoothing, value",
    [
        (1.0, "sigmoid", 0.0, 0.3132616875182228),
        (-1.0, "sigmoid", 0.0, 1.3132616875182228),
        (0.0, "sigmoid", 0.3, 0.6931471805599453),
        (1.0, "sigmoid", 0.1, 0.9 * 0.3132616875182228 + 0.1 * 1.3132616875182228),
        (-5000.0, "sigmoid", 0.0, 5000.0),
        (5000.0, "sigmoid", 0.0, 0.0),
        (0.4, "hinge", 0.0, 0.6),
        (1.5, "hinge", 0.0, 0.0),
        (-3.0, "hinge", 0.0, 4.0),
    ],
)
def test_what_a_margin_costs(margin, kind, smoothing, value):
    assert compare(number(margin), kind, smoothing).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("reduction, own", [("sum", [1.0, 3.0]), ("seq_mean", [0.25, 0.375]), ("token_mean", [0, 0])])
def test_nll_is_each_prompts_own_or_waits_for_the_tokens_of_the_step(reduction, own):
    logps, lengths = number([-2.0, -6.0]), torch.tensor([4.0, 8.0])
    value, part = nll(logps, lengths, torch.tensor([True, False]), 0.5, reduction)
    assert value.tolist() == own
    if reduction == "token_mean":
        assert (part.losses.tolist(), part.tokens.tolist(), part.weight) == ([2.0, 0.0], [4.0, 0.0], 0.5)
    else:
        assert part is None


@pytest.mark.parametrize("reduction", ["sum", "seq_mean", "token_mean"])
def test_an_nll_without_weight_is_not_there(reduction):
    value, part = nll(number([-math.inf]), torch.tensor([4.0]), torch.tensor([True]), 0.0, reduction)
    assert value.tolist() == [0.0] and part is None


def test_the_ends_of_a_list_are_its_first_and_last_response_that_is_present():
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]]).bool()
    first, last = ends(torch.tensor([[1.0, 2.0, 3.0]]).expand(5, 3), present)
    assert first.tolist() == [1, 1, 2, 1, 2] and last.tolist() == [3, 2, 3, 3, 2]


def test_a_share_counts_present_responses_only():
    flags = torch.tensor([[[True, False, True], [True, False, False]]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    assert share(flags, present).tolist() == [[0.5, 0.0]]
