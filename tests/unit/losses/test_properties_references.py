"""What must hold of a pair under K references, whatever they say: P1 to P18.

P6 to P9 and P15 are also held of the parts alone in tests/unit/ops/test_virtual_reference.py. d = -h.

The paper's Proposition 2 (gradients of MRPO and of a sum of DPO losses are ordered by the sign of d) is not among them:
its proof takes a weighted arithmetic mean for no larger than the harmonic one. P13 holds what is true instead, with two
counterexamples.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.losses import dpo, mdpo, mean_ref, mrpo, multi_ref_dpo
from tests.unit.losses.strategies import (
    LOGP,
    OPTIONS,
    PAIR,
    PROPERTY,
    TINY,
    batch,
    clipped,
    dot,
    evaluate,
    margins,
    nls,
    one,
    references,
    shares,
    sigmoid,
    weightings,
)

KINDS = ("harmonic", "geometric", "arithmetic")
VIRTUAL = {kind: (mrpo, partial(mrpo.Config, virtual_ref=kind)) for kind in KINDS}
FAMILY = VIRTUAL | {
    "mean_ref": (mean_ref, mean_ref.Config),
    "multi_ref_dpo": (multi_ref_dpo, multi_ref_dpo.Config),
    "mdpo of two": (mdpo, mdpo.Config),
}
"""Every objective that takes K references, and its Config."""
each_objective = pytest.mark.parametrize("module, config", FAMILY.values(), ids=FAMILY)
each_virtual_reference = pytest.mark.parametrize("module, config", VIRTUAL.values(), ids=VIRTUAL)


def against(reference, policy, beta):
    """DPO against one reference."""
    return one(dpo, dpo.Config(beta=beta), policy, [reference])


def same(ours, other, tolerance=TINY):
    return (ours.value, *ours.grad) == pytest.approx((other.value, *other.grad), rel=0, abs=tolerance)


@each_objective
@given(PAIR, PAIR, OPTIONS, st.sampled_from(["arwc", "uniform", [1.0]]))
@PROPERTY
def test_p1_one_reference_is_dpo_exactly(module, config, policy, reference, options, weights):
    ours = one(module, config(weights=weights, **options), policy, [reference])
    plain = against(reference, policy, options["beta"])
    assert ours.value == plain.value and ours.grad == plain.grad
    assert torch.equal(ours.output.rewards, plain.output.rewards)


@each_objective
@given(PAIR, PAIR, OPTIONS, st.integers(2, 4), st.data())
@PROPERTY
def test_p2_identical_references_are_dpo(module, config, policy, reference, options, count, data):
    weights = data.draw(weightings(count))
    ours = one(module, config(weights=weights, **options), policy, [reference] * count)
    assert same(ours, against(reference, policy, options["beta"]))


@each_objective
@given(PAIR, references(2), OPTIONS, st.sampled_from(["adaptive", "fixed"]), st.sampled_from(["arwc", "uniform"]))
@PROPERTY
def test_p3_an_eps_of_zero_is_dpo_against_refm1(module, config, policy, table, options, ctro, weights):
    options = options | {"ctro": ctro, "eps_max": 0.0, "weights": weights}
    ours = one(module, config(**options), policy, table)
    assert same(ours, against(table[0], policy, options["beta"]), 1e-12 * max(map(abs, table[0])))


@each_objective
@given(PAIR, references(2), OPTIONS, st.sampled_from(["adaptive", "fixed"]))
@PROPERTY
def test_p4_a_huge_eps_clips_nothing(module, config, policy, table, options, ctro):
    wide = one(module, config(**options | {"ctro": ctro, "eps_max": 1e6}), policy, table)
    none = one(module, config(**options | {"ctro": "none"}), policy, table)
    assert wide.value == none.value and wide.grad == none.grad


@each_objective
@given(PAIR, references(2), OPTIONS, st.data())
@PROPERTY
def test_p5_all_weight_on_one_reference_is_dpo_against_it_clipped(module, config, policy, table, options, data):
    chosen = data.draw(st.integers(0, len(table) - 1))
    weights = [float(k == chosen) for k in range(len(table))]
    ours = one(module, config(weights=weights, **options), policy, table)
    assert same(ours, against(clipped(table, ours.output)[chosen], policy, options["beta"]))


@given(PAIR, references(2), OPTIONS, st.data())
@PROPERTY
def test_p6_p7_the_virtual_references_are_ordered_and_inside_the_trust_region(policy, table, options, data):
    options = options | {"weights": data.draw(weightings(len(table)))}
    ladder = []
    for kind in KINDS:
        output = one(mrpo, mrpo.Config(virtual_ref=kind, **options), policy, table).output
        ladder.append([output.stats[f"vref/logps/{name}"].item() for name in ("chosen", "rejected")])
    for place, name in enumerate(("chosen", "rejected")):
        column = [row[place] for row in clipped(table, output)]
        steps = [min(column), *(row[place] for row in ladder), max(column)]
        assert all(lower <= upper + TINY for lower, upper in zip(steps, steps[1:], strict=False))
        if options["ctro"] != "none":
            band = output.stats[f"ctro/eps_{name}"].item() * abs(table[0][place]) * (1 + 1e-12) + TINY
            assert all(abs(row[place] - table[0][place]) <= band for row in ladder)


@each_objective
@given(PAIR, references(), OPTIONS, st.floats(0.1, 10.0))
@PROPERTY
def test_p8_p9_eps_share_eps_max_and_weights_are_a_distribution(module, config, policy, table, options, factor):
    settings = config(**options | {"ctro": "adaptive", "eps_norm": "sum", "weights": "arwc"})
    stats = one(module, settings, policy, table).output.stats
    eps = [stats[f"ctro/eps_{name}"].item() for name in ("chosen", "rejected")]
    assert min(eps) >= 0 and sum(eps) == pytest.approx(options["eps_max"], abs=1e-12)
    assert (stats["weight"] >= 0).all() and stats["weight"].sum().item() == pytest.approx(1.0, abs=1e-12)
    larger = one(module, settings, policy, [[factor * logp for logp in row] for row in table]).output.stats["weight"]
    torch.testing.assert_close(larger, stats["weight"], rtol=0, atol=TINY)


@each_objective
@given(PAIR, references(), OPTIONS, st.data())
@PROPERTY
def test_p10_swapping_chosen_and_rejected_turns_the_margin_round(module, config, policy, table, options, data):
    settings = config(**options | {"weights": data.draw(weightings(len(table)))})
    there = one(module, settings, policy, table)
    back = one(module, settings, policy[::-1], [row[::-1] for row in table])
    assert back.h == pytest.approx(-there.h, abs=TINY)
    stats, turned = there.output.stats, back.output.stats
    assert torch.equal(stats["weight"], turned["weight"])
    if options["ctro"] != "none":
        assert torch.equal(stats["ctro/eps_chosen"], turned["ctro/eps_rejected"])
    # nls(h) - nls(-h) = -h: of one margin, and of a weighted sum of losses the weighted sum of the margins.
    lost = there.h
    if module is multi_ref_dpo:
        lost = dot(stats["weight"][:, 0].tolist(), margins(policy, clipped(table, there.output), options["beta"]))
    assert there.value - back.value == pytest.approx(-lost, abs=TINY)


@each_objective
@given(PAIR, references(2), OPTIONS, st.data())
@PROPERTY
def test_p11_the_order_of_the_references_after_refm1_does_not_matter(module, config, policy, table, options, data):
    weights = data.draw(weightings(len(table)))

    def run(order, **more):
        moved = weights if isinstance(weights, str) else [weights[k] for k in order]
        return one(module, config(**options | {"weights": moved} | more), policy, [table[k] for k in order])

    straight = list(range(len(table)))
    later = data.draw(st.permutations(straight[1:]))
    assert same(run([0, *later]), run(straight))
    assert same(run(data.draw(st.permutations(straight)), ctro="none"), run(straight, ctro="none"))


@each_objective
def test_p11_with_clipping_it_does_matter_who_is_first(module, config):
    policy, table = [-52.3, -61.7], [[-55.1, -60.2], [-48.9, -71.4]]
    first, second = (one(module, config(), policy, rows).value for rows in (table, table[::-1]))
    assert abs(first - second) > 0.1


@each_virtual_reference
@given(PAIR, references(2), OPTIONS, st.data())
@PROPERTY
def test_p12_the_margin_lies_between_those_of_the_clipped_references(module, config, policy, table, options, data):
    beta = options["beta"]
    ours = one(module, config(**options | {"weights": data.draw(weightings(len(table)))}), policy, table)
    inside = clipped(table, ours.output)
    each = margins(policy, inside, beta)
    assert min(each) - TINY <= ours.h <= max(each) + TINY
    if options["ctro"] != "none":
        eps = [ours.output.stats[f"ctro/eps_{name}"].item() for name in ("chosen", "rejected")]
        assert abs(ours.h - each[0]) <= beta * dot(eps, map(abs, table[0])) + TINY
    if config().virtual_ref == "harmonic":  # h = beta * log sum_k q_k exp(h_k / beta), q_k ~ a_k / clipped pi^k(y_l)
        a = ours.output.stats["weight"][:, 0].tolist()
        q = [math.log(share) - row[1] if share else -math.inf for share, row in zip(a, inside, strict=True)]
        exponents = torch.tensor([q, each], dtype=torch.float64)
        mean = (exponents[0].log_softmax(0) + exponents[1] / beta).logsumexp(0)
        assert ours.h == pytest.approx(beta * mean.item(), abs=TINY)


# Proposition 2: W = |gradient| / beta of MRPO, of the geometric reference and of the weighted sum of DPO losses


def pushes(policy, table, options, beta=0.1):
    """(W of MRPO, W of the geometric reference, W of Multi-DPO), (J_w, J_l), h of MRPO and of the geometric one."""
    harmonic = one(mrpo, mrpo.Config(beta=beta, **options), policy, table)
    geometric = one(mrpo, mrpo.Config(beta=beta, virtual_ref="geometric", **options), policy, table)
    multi = one(multi_ref_dpo, multi_ref_dpo.Config(beta=beta, **options), policy, table)
    names = ("vref/logps/chosen", "vref/logps/rejected")
    disagreement = [(geometric.output.stats[name] - harmonic.output.stats[name]).item() for name in names]
    return [-run.grad[0] / beta for run in (harmonic, geometric, multi)], disagreement, (harmonic.h, geometric.h)


TRIPLE = st.integers(2, 4).flatmap(lambda count: st.tuples(references(count, count), weightings(count)))


@given(PAIR, TRIPLE, st.sampled_from(["adaptive", "fixed", "none"]))
@PROPERTY
def test_p13_the_margin_differs_from_the_mean_one_by_how_much_the_references_disagree(policy, sample, ctro):
    """d~ = dbar + beta * (J_l - J_w), J = v_geometric - v_harmonic >= 0; (v) every W between the least and the most."""
    table, weights = sample
    options = {"weights": weights, "ctro": ctro}
    (ours, geometric, multi), (j_chosen, j_rejected), (h, h_geometric) = pushes(policy, table, options)
    assert min(j_chosen, j_rejected) >= -TINY
    output = one(mrpo, mrpo.Config(**options), policy, table).output
    each = margins(policy, clipped(table, output), 0.1)
    mean = dot(output.stats["weight"][:, 0].tolist(), each)
    assert h_geometric == pytest.approx(mean, abs=TINY)
    assert -h == pytest.approx(-mean + 0.1 * (j_rejected - j_chosen), abs=TINY)
    for push in (ours, geometric, multi):
        assert sigmoid(-max(each)) - TINY <= push <= sigmoid(-min(each)) + TINY


NEAR = st.floats(-45.0, -30.0)
NEAR_TRIPLE = st.integers(2, 4).flatmap(
    lambda count: st.tuples(st.lists(st.tuples(NEAR, NEAR).map(list), min_size=count, max_size=count), shares(count))
)


@pytest.mark.parametrize("sign", [1, -1])
@given(NEAR_TRIPLE, st.floats(0.0, 20.0), st.sampled_from(["adaptive", "none"]))
@PROPERTY
def test_p13_gradients_are_ordered_where_the_references_disagree_more_on_the_right_response(sign, sample, beyond, ctro):
    """All d_k >= 0: (i) W >= W_multi if J_l >= J_w. All <= 0: (ii) W <= W_multi if J_l <= J_w. (vi) W_geo always."""
    table, weights = sample
    options = {"weights": weights, "ctro": ctro}
    start = [-100.0, -100.0]
    _, (j_chosen, j_rejected), _ = pushes(start, table, options)
    if sign * (j_rejected - j_chosen) < 0:
        table = [row[::-1] for row in table]  # which swaps J_w and J_l
    output = one(mrpo, mrpo.Config(**options), start, table).output
    gaps = [sign * (chosen - rejected) for chosen, rejected in clipped(table, output)]
    policy = [-100.0, -100.0 - sign * (min(gaps) - beyond)]  # sign * d_k = beta * (gap_k - the policy's gap) >= 0
    assert all(sign * h <= TINY for h in margins(policy, clipped(table, output), 0.1))
    (ours, geometric, multi), _, _ = pushes(policy, table, options)
    assert sign * (ours - multi) >= -TINY and sign * (geometric - multi) >= -TINY


@given(st.lists(NEAR, min_size=2, max_size=4), st.floats(-5.0, 5.0), st.sampled_from([-40.0, 40.0]))
@PROPERTY
def test_p13_references_that_disagree_equally_on_both_responses_keep_both_halves(column, shift, gap):
    """(iii): the same numbers for both responses, in another order and moved by a constant, give J_l = J_w.

    The policy's gap of 40 nats is wider than any reference's, so that all d_k have the sign of the gap.
    """
    table = [[chosen, rejected + shift] for chosen, rejected in zip(column, column[::-1], strict=True)]
    policy = [-100.0, -100.0 + gap]
    assert all(h * gap < 0 for h in margins(policy, table, 0.1))
    (ours, _, multi), (j_chosen, j_rejected), _ = pushes(policy, table, {"weights": "uniform", "ctro": "none"})
    assert j_chosen == pytest.approx(j_rejected, abs=TINY)
    assert ours >= multi - TINY if gap > 0 else ours <= multi + TINY


@given(PAIR, PAIR, st.integers(2, 4).flatmap(shares), st.sampled_from(["adaptive", "none"]))
@PROPERTY
def test_p13_identical_references_give_equality(policy, reference, weights, ctro):
    """(iv), which the paper calls impossible."""
    (ours, geometric, multi), _, _ = pushes(policy, [reference] * len(weights), {"weights": weights, "ctro": ctro})
    assert ours == pytest.approx(multi, abs=TINY) and geometric == pytest.approx(multi, abs=TINY)


J = 1.325002747357864
PROPOSITION_2 = {  # name: policy, references, a_1; W of MRPO, of Multi-DPO, of the geometric reference; J_w, J_l
    "ce1": ([-17, -10], [[-14, -10], [-10] * 2], 0.5, 0.5908546860384761, 0.6213151444899125, 0.6224593312018546, J, 0),
    "ce2": ([-10, -17], [[-10, -14], [-10] * 2], 0.5, 0.4091453139615239, 0.3786848555100875, 0.3775406687981454, 0, J),
    "ok1": ([-12, -10], [[-10, -14], [-10] * 2], 0.5, 0.6300660723212115, 0.5977451517691367, None, 0, J),
    "ok2": ([-10, -12], [[-14, -10], [-10] * 2], 0.5, 0.3699339276787885, 0.4022548482308633, None, J, 0),
    "eq": ([-10, -12], [[-11, -11.5]] * 2, 0.3, 0.4625701546562505, 0.4625701546562505, 0.4625701546562505, 0, 0),
}


@pytest.mark.parametrize("name", PROPOSITION_2)
def test_p13_counterexamples_and_examples_of_proposition_2(name):
    policy, table, first, ours, multi, geometric, *disagreement = PROPOSITION_2[name]
    options = {"weights": [first, 1 - first], "ctro": "none"}
    found, found_disagreement, (h, _) = pushes(policy, table, options)
    assert found[0] == pytest.approx(ours, abs=TINY) and found[2] == pytest.approx(multi, abs=TINY)
    assert geometric is None or found[1] == pytest.approx(geometric, abs=TINY)
    assert found_disagreement == pytest.approx(disagreement, abs=TINY)
    each = margins(policy, table, 0.1)
    if name == "ce1":  # the paper claims W >= W_multi where every d_k >= 0
        assert max(each) < 0 and found[0] < found[2]
        assert -h == pytest.approx(0.3674997252642136, abs=TINY)
    if name == "ce2":  # and W <= W_multi where every d_k <= 0
        assert min(each) > 0 and found[0] > found[2]


@given(PAIR, TRIPLE, OPTIONS)
@PROPERTY
def test_p14_the_geometric_loss_is_at_most_the_weighted_sum_of_dpo_losses(policy, sample, options):
    table, weights = sample
    geometric = one(mrpo, mrpo.Config(weights=weights, virtual_ref="geometric", **options), policy, table)
    multi = one(multi_ref_dpo, multi_ref_dpo.Config(weights=weights, **options), policy, table)
    assert geometric.value <= multi.value + TINY
    each = margins(policy, clipped(table, multi.output), options["beta"])
    mean = dot(multi.output.stats["weight"][:, 0].tolist(), map(nls, each))
    assert multi.value == pytest.approx(mean, abs=TINY)


@each_objective
@given(PAIR, st.lists(LOGP, min_size=1, max_size=4), OPTIONS)
@PROPERTY
def test_p15_gaps_of_zero_give_uniform_weights_and_a_finite_loss(module, config, policy, column, options):
    ours = one(module, config(**options | {"weights": "arwc"}), policy, [[number, number] for number in column])
    assert ours.output.stats["weight"].tolist() == [[pytest.approx(1 / len(column), abs=1e-15)]] * len(column)
    assert math.isfinite(ours.value) and all(map(math.isfinite, ours.grad))


@each_objective
@given(PAIR, TRIPLE, OPTIONS, st.sampled_from(["fixed", "none"]), st.data())
@PROPERTY
def test_p16_a_weight_of_zero_is_a_reference_less(module, config, policy, sample, options, ctro, data):
    """With eps held fixed: an adaptive one still counts the reference."""
    table = sample[0]
    weights, options = data.draw(shares(len(table))), options | {"ctro": ctro}
    place = data.draw(st.integers(1, len(table)))
    more, zero = [*table], [*weights]
    more.insert(place, data.draw(PAIR))
    zero.insert(place, 0.0)
    ours = one(module, config(weights=zero, **options), policy, more)
    assert same(ours, one(module, config(weights=weights, **options), policy, table))


FAR = st.floats(-5000.0, 0.0, width=32)
FAR_PAIR = st.tuples(FAR, FAR).map(list)


@each_objective
@given(FAR_PAIR, st.lists(FAR_PAIR, min_size=1, max_size=4), OPTIONS, st.sampled_from(["arwc", "uniform"]))
@PROPERTY
def test_p17_huge_gaps_are_finite_in_float32_and_equal_to_float64(module, config, policy, table, options, weights):
    """The margin is a difference of numbers up to 5 000 nats, whose float32 spacing is 5e-4: h is good to 2e-3 beta."""
    settings = config(**options | {"weights": weights})
    narrow, wide = (
        evaluate(module, settings, batch([policy], [[row] for row in table], dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert narrow.value == pytest.approx(wide.value, rel=1e-4, abs=2e-3 * options["beta"])
    assert narrow.h == pytest.approx(wide.h, rel=1e-4, abs=2e-3 * options["beta"])
    assert narrow.grad == pytest.approx(wide.grad, rel=2e-3, abs=1e-4 * options["beta"])
    assert math.isfinite(narrow.value) and all(map(math.isfinite, narrow.grad))


@each_objective
@given(PAIR, references(), OPTIONS)
@PROPERTY
def test_p18_gradients_are_the_analytic_ones_opposite_and_bounded(module, config, policy, table, options):
    settings, beta = config(**options), options["beta"]
    logps = batch([policy], [[row] for row in table])
    logps.reference.requires_grad_()
    ours = evaluate(module, settings, logps)
    module.loss(logps, settings).losses.sum().backward()
    assert logps.reference.grad is None
    if module is multi_ref_dpo:
        each = margins(policy, clipped(table, ours.output), beta)
        push = dot(ours.output.stats["weight"][:, 0].tolist(), [sigmoid(-h) for h in each])
    else:
        push = sigmoid(-ours.h)
        assert ours.value == pytest.approx(nls(ours.h), abs=TINY)
    assert ours.grad[0] == pytest.approx(-beta * push, abs=1e-12)
    assert ours.grad[1] == -ours.grad[0] and abs(ours.grad[0]) <= beta
