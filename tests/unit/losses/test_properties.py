"""What must hold for every pair, every number of references and every option of DPO and MRPO.

The P-numbers are the project's list of properties; P6 to P9 and P15 are also held of the parts alone in
tests/unit/ops/test_virtual_reference.py. h is the margin, nls(h) = -log sigmoid(h) the loss, d = -h.

The paper's Proposition 2 (gradients of MRPO and of a sum of DPO losses are ordered by the sign of d) is not among them:
its proof takes a weighted arithmetic mean for no larger than the harmonic one. P13 holds what is true instead, with two
counterexamples.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mrpo_ds.losses import dpo, mrpo
from mrpo_ds.ops.virtual_reference import clip_references

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = ("harmonic", "geometric", "arithmetic")
LOGP = st.floats(-400.0, -0.5)
PAIR = st.tuples(LOGP, LOGP).map(list)
OPTIONS = st.fixed_dictionaries(
    {
        "beta": st.sampled_from([0.01, 0.1, 0.5]),
        "virtual_ref": st.sampled_from(KINDS),
        "ctro": st.sampled_from(["adaptive", "fixed", "none"]),
        "eps_max": st.floats(0.0, 2.0),
        "eps_norm": st.sampled_from(["sum", "mean"]),
    }
)


def references(least=1, most=4):
    return st.lists(PAIR, min_size=least, max_size=most)


@st.composite
def weighted_references(draw, least=1):
    """K references and as many weights that sum to 1."""
    table = draw(references(least))
    raw = draw(st.lists(st.floats(0.01, 1.0), min_size=len(table), max_size=len(table)))
    return table, [number / math.fsum(raw) for number in raw]


@pytest.fixture(scope="session")
def run(batch_of):
    """(policy, references, config) -> (output, h, d loss / d policy) of one pair; h and the gradient as floats."""

    def evaluate(policy, table, config, dtype=torch.float64):
        logps = batch_of([policy], [[row] for row in table], dtype)
        module = dpo if isinstance(config, dpo.Config) else mrpo
        output = module.loss(logps, config)
        output.losses.sum().backward()
        chosen, rejected = output.rewards[0].tolist()
        return output, chosen - rejected, logps.policy.grad[0].tolist()

    return evaluate


def nls(h):
    return -F.logsigmoid(torch.tensor(h, dtype=torch.float64)).item()


def dot(weights, numbers):
    return math.fsum(weight * number for weight, number in zip(weights, numbers, strict=True))


def sigmoid(x):
    return torch.tensor(x, dtype=torch.float64).sigmoid().item()


def clipped(table, output):
    """[K, 2] the references inside the trust region of an output."""
    reference = torch.tensor(table, dtype=torch.float64).unsqueeze(1)
    eps = None
    if "ctro/eps_chosen" in output.stats:
        eps = torch.stack([output.stats["ctro/eps_chosen"], output.stats["ctro/eps_rejected"]], dim=-1)
    return (reference[0] + clip_references(reference, eps).offsets).squeeze(1)


def margins(policy, table, beta):
    """h_k [K] of DPO against each reference."""
    chosen, rejected = (
        torch.tensor([policy], dtype=torch.float64) - torch.as_tensor(table, dtype=torch.float64)
    ).unbind(-1)
    return beta * (chosen - rejected)


@given(PAIR, PAIR, OPTIONS, st.sampled_from(["arwc", "uniform", [1.0]]))
@PROPERTY
def test_p1_one_reference_is_dpo_exactly(run, policy, reference, options, weights):
    ours, _, grad = run(policy, [reference], mrpo.Config(weights=weights, **options))
    plain, _, wanted = run(policy, [reference], dpo.Config(beta=options["beta"]))
    assert torch.equal(ours.losses, plain.losses) and torch.equal(ours.rewards, plain.rewards)
    assert grad == wanted


@given(PAIR, PAIR, OPTIONS, st.integers(2, 4), st.data())
@PROPERTY
def test_p2_identical_references_are_dpo(run, policy, reference, options, count, data):
    raw = data.draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count))
    weights = data.draw(st.sampled_from(["arwc", "uniform", [number / math.fsum(raw) for number in raw]]))
    ours, h, grad = run(policy, [reference] * count, mrpo.Config(weights=weights, **options))
    plain, wanted_h, wanted = run(policy, [reference], dpo.Config(beta=options["beta"]))
    assert h == pytest.approx(wanted_h, abs=1e-10)
    assert ours.losses.item() == pytest.approx(plain.losses.item(), abs=1e-10)
    assert grad == pytest.approx(wanted, abs=1e-10)


@given(PAIR, references(2), OPTIONS)
@PROPERTY
def test_p3_an_eps_of_zero_is_dpo_against_refm1(run, policy, table, options):
    assume(options["ctro"] != "none")
    _, h, _ = run(policy, table, mrpo.Config(**(options | {"eps_max": 0.0})))
    _, wanted, _ = run(policy, table, dpo.Config(beta=options["beta"]))
    assert h == pytest.approx(wanted, abs=1e-12 * max(abs(number) for number in table[0]))


@given(PAIR, references(2), OPTIONS)
@PROPERTY
def test_p4_a_huge_eps_clips_nothing(run, policy, table, options):
    wide = {"eps_max": 1e6, "ctro": "adaptive" if options["ctro"] == "none" else options["ctro"]}
    _, h, _ = run(policy, table, mrpo.Config(**(options | wide)))
    _, wanted, _ = run(policy, table, mrpo.Config(**(options | {"ctro": "none"})))
    assert h == wanted


@given(PAIR, references(2), OPTIONS, st.data())
@PROPERTY
def test_p5_all_weight_on_one_reference_is_dpo_against_it_clipped(run, policy, table, options, data):
    chosen = data.draw(st.integers(0, len(table) - 1))
    weights = [1.0 if k == chosen else 0.0 for k in range(len(table))]
    output, h, _ = run(policy, table, mrpo.Config(weights=weights, **options))
    reference = clipped(table, output)[chosen].tolist()
    _, wanted, _ = run(policy, [reference], dpo.Config(beta=options["beta"]))
    assert h == pytest.approx(wanted, abs=1e-10)


@given(PAIR, references(2), OPTIONS)
@PROPERTY
def test_p6_p7_the_virtual_references_are_ordered_and_inside_the_trust_region(run, policy, table, options):
    ladder = []
    for kind in KINDS:
        output, _, _ = run(policy, table, mrpo.Config(**(options | {"virtual_ref": kind})))
        ladder.append(torch.stack([output.stats[f"vref/logps/{name}"] for name in ("chosen", "rejected")], dim=-1)[0])
    bounds = clipped(table, output)
    ladder = [bounds.amin(0), *ladder, bounds.amax(0)]
    for lower, upper in zip(ladder, ladder[1:], strict=False):
        assert (lower <= upper + 1e-10).all()
    if options["ctro"] != "none":
        eps = torch.stack([output.stats[f"ctro/eps_{name}"] for name in ("chosen", "rejected")], dim=-1)[0]
        first = torch.tensor(table[0], dtype=torch.float64)
        assert ((ladder[2] - first).abs() <= eps * first.abs() * (1 + 1e-12) + 1e-10).all()


@given(PAIR, references(), OPTIONS)
@PROPERTY
def test_p8_p9_eps_share_eps_max_and_weights_are_a_distribution(run, policy, table, options):
    output, _, _ = run(policy, table, mrpo.Config(**(options | {"ctro": "adaptive", "eps_norm": "sum"})))
    chosen, rejected = (output.stats[f"ctro/eps_{name}"].item() for name in ("chosen", "rejected"))
    assert min(chosen, rejected) >= 0 and chosen + rejected == pytest.approx(options["eps_max"], abs=1e-12)
    assert (output.stats["weight"] >= 0).all()
    assert output.stats["weight"].sum().item() == pytest.approx(1.0, abs=1e-12)


@given(PAIR, references(), OPTIONS)
@PROPERTY
def test_p10_swapping_chosen_and_rejected_turns_the_margin_round(run, policy, table, options):
    config = mrpo.Config(**options)
    one, h, _ = run(policy, table, config)
    other, swapped, _ = run(policy[::-1], [row[::-1] for row in table], config)
    assert swapped == pytest.approx(-h, abs=1e-10)
    assert torch.equal(one.stats["weight"], other.stats["weight"])
    if options["ctro"] != "none":
        assert torch.equal(one.stats["ctro/eps_chosen"], other.stats["ctro/eps_rejected"])
    _, plain, _ = run(policy, table, dpo.Config())
    assert run(policy[::-1], [row[::-1] for row in table], dpo.Config())[1] == -plain


@given(PAIR, references(2), OPTIONS, st.randoms(use_true_random=False))
@PROPERTY
def test_p11_the_order_of_the_references_after_refm1_does_not_matter(run, policy, table, options, random):
    shuffled = table[1:]
    random.shuffle(shuffled)
    config = mrpo.Config(**options)
    assert run(policy, table, config)[1] == pytest.approx(run(policy, [table[0], *shuffled], config)[1], abs=1e-10)
    anywhere = [*shuffled, table[0]]
    config = mrpo.Config(**(options | {"ctro": "none"}))
    assert run(policy, table, config)[1] == pytest.approx(run(policy, anywhere, config)[1], abs=1e-10)


def test_p11_with_clipping_it_does_matter_who_is_first(run):
    policy, table = [-52.3, -61.7], [[-55.1, -60.2], [-48.9, -71.4]]
    one, other = (run(policy, rows, mrpo.Config())[1] for rows in (table, table[::-1]))
    assert abs(one - other) > 0.1


@given(PAIR, references(2), OPTIONS)
@PROPERTY
def test_p12_the_margin_lies_between_those_of_the_clipped_references(run, policy, table, options):
    output, h, _ = run(policy, table, mrpo.Config(**(options | {"virtual_ref": "harmonic"})))
    each = margins(policy, clipped(table, output), options["beta"])
    assert each.min() - 1e-10 <= h <= each.max() + 1e-10


@given(PAIR, weighted_references(2))
@PROPERTY
def test_p13_the_gradient_differs_from_a_sum_of_dpo_losses_by_how_much_the_references_disagree(run, policy, sample):
    """d~ = dbar + beta * (J_l - J_w) with J = v_geometric - v_harmonic >= 0, and what follows for W = |grad| / beta."""
    table, weights = sample
    beta = 0.1
    options = {"weights": weights, "ctro": "none", "beta": beta}
    harmonic, h, grad = run(policy, table, mrpo.Config(**options))
    geometric, h_geo, grad_geo = run(policy, table, mrpo.Config(virtual_ref="geometric", **options))
    disagreement = [
        (geometric.stats[name] - harmonic.stats[name]).item() for name in ("vref/logps/chosen", "vref/logps/rejected")
    ]
    assert min(disagreement) >= -1e-10
    assert -h == pytest.approx(-h_geo + beta * (disagreement[1] - disagreement[0]), abs=1e-10)

    each = -margins(policy, table, beta)  # d_k
    w_ours, w_geo, w_multi = -grad[0] / beta, -grad_geo[0] / beta, dot(weights, each.sigmoid().tolist())
    more, less = disagreement[1] >= disagreement[0], disagreement[1] <= disagreement[0]
    if (each >= 0).all():
        assert w_geo >= w_multi - 1e-10  # (vi)
        assert not more or w_ours >= w_multi - 1e-10  # (i)
    if (each <= 0).all():
        assert w_geo <= w_multi + 1e-10  # (vi)
        assert not less or w_ours <= w_multi + 1e-10  # (ii)
    assert each.min().sigmoid() - 1e-10 <= w_ours <= each.max().sigmoid() + 1e-10  # (v)


@given(st.lists(st.floats(-45.0, -30.0), min_size=2, max_size=4), st.floats(-5.0, 5.0), st.sampled_from([-40.0, 40.0]))
@PROPERTY
def test_p13_references_that_disagree_equally_on_both_responses_keep_both_halves(run, column, shift, gap):
    """(iii): the same numbers for both responses, in another order and moved by a constant, give J_l = J_w.

    The policy's gap of 40 nats is wider than any reference's, so that all d_k have the sign of the gap.
    """
    table = [[chosen, rejected + shift] for chosen, rejected in zip(column, column[::-1], strict=True)]
    policy = [-100.0, -100.0 + gap]
    _, _, grad = run(policy, table, mrpo.Config(weights="uniform", ctro="none"))
    each = -margins(policy, table, 0.1)
    ours, multi = -grad[0] / 0.1, each.sigmoid().mean().item()
    assert (each > 0).all() if gap > 0 else (each < 0).all()
    assert ours >= multi - 1e-10 if gap > 0 else ours <= multi + 1e-10


# name: policy, references, a_1; W of MRPO, W of the weighted DPO losses, W of the geometric reference
PROPOSITION_2 = {
    "ce1": ([-17, -10], [[-14, -10], [-10, -10]], 0.5, 0.5908546860384761, 0.6213151444899125, 0.6224593312018546),
    "ce2": ([-10, -17], [[-10, -14], [-10, -10]], 0.5, 0.4091453139615239, 0.3786848555100875, 0.3775406687981454),
    "ok1": ([-12, -10], [[-10, -14], [-10, -10]], 0.5, 0.6300660723212115, 0.5977451517691367, None),
    "ok2": ([-10, -12], [[-14, -10], [-10, -10]], 0.5, 0.3699339276787885, 0.4022548482308633, None),
    "eq": ([-10, -12], [[-11, -11.5]] * 2, 0.3, 0.4625701546562505, 0.4625701546562505, 0.4625701546562505),
}


@pytest.mark.parametrize("name", PROPOSITION_2)
def test_p13_counterexamples_and_examples_of_proposition_2(run, name):
    policy, table, first_weight, ours, multi, geometric = PROPOSITION_2[name]
    weights = [first_weight, 1 - first_weight]
    options = {"weights": weights, "ctro": "none"}
    assert -run(policy, table, mrpo.Config(**options))[2][0] / 0.1 == pytest.approx(ours, abs=1e-9)
    each = -margins(policy, table, 0.1)
    assert dot(weights, each.sigmoid().tolist()) == pytest.approx(multi, abs=1e-9)
    if geometric is not None:
        grad = run(policy, table, mrpo.Config(virtual_ref="geometric", **options))[2]
        assert -grad[0] / 0.1 == pytest.approx(geometric, abs=1e-9)
    if name == "ce1":  # the paper's claim is W >= W_multi where every d_k >= 0
        assert (each > 0).all() and ours < multi
        assert run(policy, table, mrpo.Config(**options))[1] == pytest.approx(-0.3674997252642136, abs=1e-9)
    if name == "ce2":
        assert (each < 0).all() and ours > multi


@given(PAIR, weighted_references(2), st.sampled_from(["adaptive", "fixed", "none"]))
@PROPERTY
def test_p14_the_geometric_loss_is_at_most_the_weighted_sum_of_dpo_losses(run, policy, sample, ctro):
    table, weights = sample
    output, _, _ = run(policy, table, mrpo.Config(weights=weights, ctro=ctro, virtual_ref="geometric"))
    each = margins(policy, clipped(table, output), 0.1).tolist()
    assert output.losses.item() <= dot(weights, [nls(h) for h in each]) + 1e-10


@given(PAIR, st.lists(LOGP, min_size=1, max_size=4), OPTIONS)
@PROPERTY
def test_p15_gaps_of_zero_give_uniform_weights_and_a_finite_loss(run, policy, column, options):
    output, _, grad = run(policy, [[number, number] for number in column], mrpo.Config(**options))
    assert output.stats["weight"].tolist() == [[pytest.approx(1 / len(column), abs=1e-15)]] * len(column)
    assert output.losses.isfinite().all() and all(map(math.isfinite, grad))


@given(PAIR, weighted_references(2), OPTIONS, st.data())
@PROPERTY
def test_p16_a_weight_of_zero_is_a_reference_less(run, policy, sample, options, data):
    """With eps held fixed: an adaptive one still counts the reference."""
    assume(options["ctro"] != "adaptive")
    table, weights = sample
    place = data.draw(st.integers(1, len(table)))
    more, zero = [*table], [*weights]
    more.insert(place, data.draw(PAIR))
    zero.insert(place, 0.0)
    _, h, _ = run(policy, more, mrpo.Config(weights=zero, **options))
    assert h == pytest.approx(run(policy, table, mrpo.Config(weights=weights, **options))[1], abs=1e-10)


FAR = st.floats(-5000.0, 0.0, width=32)
FAR_PAIR = st.tuples(FAR, FAR).map(list)


@given(FAR_PAIR, st.lists(FAR_PAIR, min_size=1, max_size=4), OPTIONS)
@PROPERTY
def test_p17_huge_gaps_are_finite_in_float32_and_equal_to_float64(run, policy, table, options):
    """The margin is a difference of numbers up to 5 000 nats, whose float32 spacing is 5e-4: h is good to 1e-3 beta."""
    config = mrpo.Config(**options)
    narrow, h, grad = run(policy, table, config, torch.float32)
    wide, wanted_h, wanted = run(policy, table, config)
    assert h == pytest.approx(wanted_h, rel=1e-4, abs=2e-3 * options["beta"])
    assert narrow.losses.item() == pytest.approx(wide.losses.item(), rel=1e-4, abs=2e-3 * options["beta"])
    assert grad == pytest.approx(wanted, rel=2e-3, abs=1e-4 * options["beta"])
    assert all(map(math.isfinite, grad))


@given(PAIR, references(), OPTIONS)
@PROPERTY
def test_p18_the_gradient_is_beta_sigmoid_of_minus_h_and_opposite(run, policy, table, options):
    for config in (mrpo.Config(**options), dpo.Config(beta=options["beta"])):
        output, h, grad = run(policy, table, config)
        assert output.losses.item() == pytest.approx(nls(h), abs=1e-10)
        assert grad[0] == pytest.approx(-config.beta * sigmoid(-h), abs=1e-12)
        assert grad[1] == -grad[0] and abs(grad[0]) <= config.beta


@given(PAIR, PAIR, st.floats(-50.0, 50.0), st.sampled_from([0.0, 0.2]))
@PROPERTY
def test_dpo_ignores_a_constant_on_both_responses(run, policy, reference, constant, smoothing):
    config = dpo.Config(label_smoothing=smoothing)
    value = run(policy, [reference], config)[0].losses.item()
    moved = [number + constant for number in reference]
    assert run(policy, [moved], config)[0].losses.item() == pytest.approx(value, abs=1e-10)


def test_mrpo_does_not_ignore_a_constant_on_one_reference(run):
    policy, table = [-52.3, -61.7], [[-55.1, -60.2], [-48.9, -71.4]]
    moved = [table[0], [number - 2.0 for number in table[1]]]
    values = [run(policy, rows, mrpo.Config(ctro="none"))[1] for rows in (table, moved)]
    assert abs(values[0] - values[1]) > 1e-3


@given(st.lists(st.tuples(PAIR, PAIR, PAIR), min_size=1, max_size=6), OPTIONS, st.randoms(use_true_random=False))
@PROPERTY
def test_p23_the_order_of_the_batch_does_not_matter(batch_of, rows, options, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    policy, first, second = (list(column) for column in zip(*rows, strict=True))
    logps = batch_of(policy, [first, second])
    moved = batch_of([policy[i] for i in order], [[first[i] for i in order], [second[i] for i in order]])
    config = mrpo.Config(**options)
    torch.testing.assert_close(mrpo.loss(moved, config).losses, mrpo.loss(logps, config).losses[order])


@given(PAIR, st.integers(1, 4), OPTIONS)
@PROPERTY
def test_p24_a_policy_equal_to_every_reference_starts_at_ln_2(run, policy, count, options):
    output, _, grad = run(policy, [policy] * count, mrpo.Config(**options))
    assert output.losses.item() == pytest.approx(0.6931471805599453, abs=1e-10)
    assert grad == pytest.approx([-options["beta"] / 2, options["beta"] / 2], abs=1e-10)
    assert run(policy, [policy], dpo.Config())[0].losses.item() == pytest.approx(math.log(2), abs=1e-15)


BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.lists(st.tuples(PAIR, PAIR, PAIR), min_size=1, max_size=5), OPTIONS, st.data())
@PROPERTY
def test_p28_broken_rows_are_dropped_counted_and_give_no_gradient(batch_of, rows, options, data):
    policy, first, second = (list(column) for column in zip(*rows, strict=True))
    whole = batch_of(policy, [first, second])
    dropped = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    reference, lengths = whole.reference.clone(), whole.lengths.clone()
    for row in (row for row, drop in enumerate(dropped) if drop):
        how = data.draw(st.sampled_from(["first", "second", "length"]))
        if how == "length":
            lengths[row, data.draw(st.integers(0, 1))] = 0
        else:
            reference[int(how == "second"), row, data.draw(st.integers(0, 1))] = data.draw(BROKEN)
    config = mrpo.Config(**options)
    output = mrpo.loss(replace(whole, reference=reference, lengths=lengths), config)
    output.losses.sum().backward()
    assert output.valid.tolist() == [not drop for drop in dropped]
    kept = output.valid.to(torch.float64)
    torch.testing.assert_close(output.losses, mrpo.loss(whole, config).losses * kept)
    assert whole.policy.grad.isfinite().all() and not whole.policy.grad[~output.valid].any()
