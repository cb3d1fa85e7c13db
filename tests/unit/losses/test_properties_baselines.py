"""Identities between the objectives without a virtual reference, and where they start: P21, P22, P24.

l are summed log-probs, m means per token; p of a response is exp(m).
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.losses import cpo, dpo, ipo, kto, mppo, orpo, sft, simpo, tpo
from tests.unit.losses.strategies import (
    FEW,
    LOGP,
    OBJECTIVES,
    PAIR,
    PROPERTY,
    SEED,
    TINY,
    batch_for,
    each,
    evaluate,
    one,
    random_batch,
    run,
    sigmoid,
)

BETA = st.sampled_from([0.01, 0.1, 0.5])
LENGTHS = st.lists(st.integers(1, 40), min_size=3, max_size=3)


def close(ours, other, tolerance=TINY):
    return (ours.value, *ours.grad) == pytest.approx((other.value, *other.grad), rel=0, abs=tolerance)


@pytest.mark.parametrize("reduction", ["token_mean", "sum", "seq_mean"])
@given(SEED, st.floats(0.0, 2.0), st.sampled_from([0.01, 0.1, 0.5]))
@PROPERTY
def test_p21_tpo_whose_gold_response_is_the_chosen_one_is_cpo(reduction, seed, alpha, beta):
    pairs = random_batch(seed, 3, 2)
    doubled = [0, 0, 1]
    triples = replace(
        pairs,
        policy=pairs.policy.detach()[:, doubled].requires_grad_(),
        **{name: getattr(pairs, name)[..., doubled] for name in ("lengths", "present", "scores")},
        **{name: getattr(pairs, name)[..., doubled] for name in ("reference", "reference_lengths")},
    )
    ours = evaluate(tpo, tpo.Config(alpha=alpha, beta=beta, nll_reduction=reduction), triples)
    other = evaluate(cpo, cpo.Config(alpha=alpha, beta=beta, nll_reduction=reduction), pairs)
    assert ours.value == pytest.approx(other.value, abs=TINY)
    summed = torch.stack([ours.gradient[:, 0] + ours.gradient[:, 1], ours.gradient[:, 2]], dim=-1)
    torch.testing.assert_close(summed, other.gradient, rtol=0, atol=TINY)


@given(PAIR, LOGP, st.lists(st.integers(1, 40), min_size=3, max_size=3), st.sampled_from([0.01, 0.1, 0.5]))
@PROPERTY
def test_p21_without_the_gold_response_tpo_is_dpo_without_a_reference(policy, gold, lengths, beta):
    triple = {"policy": [gold, *policy], "lengths": lengths}
    ours = one(tpo, tpo.Config(alpha=0.0, beta=beta), **triple)
    free = one(dpo, dpo.Config(reference_free=True, beta=beta), policy)
    assert ours.grad[0] == 0 and (ours.value, *ours.grad[1:]) == pytest.approx((free.value, *free.grad), abs=TINY)
    assert close(free, one(dpo, dpo.Config(beta=beta), policy, [[0.0, 0.0]]))
    assert close(free, one(cpo, cpo.Config(alpha=0.0, beta=beta), policy))
    averaged = one(tpo, tpo.Config(variant="tpo_l", alpha=0.0, beta=beta, gamma=0.5), **triple)
    margin = one(simpo, simpo.Config(beta=beta, gamma=0.5), policy, lengths=lengths[1:])
    assert (averaged.value, *averaged.grad[1:]) == pytest.approx((margin.value, *margin.grad), abs=TINY)


@given(PAIR, st.integers(1, 40), st.sampled_from([0.5, 2.0]))
@PROPERTY
def test_p21_simpo_of_equal_lengths_without_a_margin_is_cpo_with_beta_over_the_length(policy, length, beta):
    ours = one(simpo, simpo.Config(beta=beta, gamma=0.0), policy, lengths=[length] * 2)
    assert close(ours, one(cpo, cpo.Config(alpha=0.0, beta=beta / length), policy))


def is_of_means(config):
    """Whether nothing but log-probs per token enters a loss."""
    if isinstance(config, tpo.Config):
        return config.nll_reduction != "sum" and (config.variant == "tpo_l" or config.comparison == "ipo")
    if isinstance(config, mppo.Config):
        return config.anchor == "none"
    return getattr(config, "length_norm", False) or isinstance(config, (simpo.Config, orpo.Config, sft.Config))


@each({label: objective for label, objective in OBJECTIVES.items() if is_of_means(objective.config)})
@given(SEED)
@FEW
def test_p22_writing_every_token_twice_changes_nothing(objective, seed):
    once = batch_for(objective, seed, 3)
    twice = replace(
        once,
        policy=(2 * once.policy.detach()).requires_grad_(),
        **{field: 2 * getattr(once, field) for field in ("lengths", "reference", "reference_lengths")},
        **{field: 2 * getattr(once, field) for field in ("prompt", "prompt_lengths")},
    )
    ours, other = run(objective, once), run(objective, twice)
    assert ours.value == pytest.approx(other.value, abs=TINY)
    torch.testing.assert_close(ours.gradient, 2 * other.gradient, rtol=0, atol=TINY)


@given(SEED, st.floats(0.0, 2.0))
@PROPERTY
def test_the_nll_of_every_objective_is_that_of_sft(seed, weight):
    pairs = random_batch(seed, 3, 2)
    plain, whole, average = (
        evaluate(sft, config, pairs).value
        for config in (sft.Config(), sft.Config(train_on_prompt=True), sft.Config(reduction="seq_mean"))
    )

    def nll(module, config, without):
        return evaluate(module, config, pairs).value - evaluate(module, without, pairs).value

    assert nll(cpo, cpo.Config(alpha=weight), cpo.Config(alpha=0.0)) == pytest.approx(weight * plain, abs=TINY)
    options = {"nll_reduction": "seq_mean"}
    assert nll(cpo, cpo.Config(alpha=weight, **options), cpo.Config(alpha=0.0)) == pytest.approx(
        weight * average, abs=TINY
    )
    assert nll(simpo, simpo.Config(sft_weight=weight), simpo.Config()) == pytest.approx(weight * plain, abs=TINY)
    assert evaluate(orpo, orpo.Config(lam=0.0), pairs).value == pytest.approx(plain, abs=TINY)
    assert evaluate(orpo, orpo.Config(lam=0.0, nll="full"), pairs).value == pytest.approx(whole, abs=TINY)


# Where training starts, and single steps from there


@given(PAIR, LENGTHS, BETA, st.integers(1, 3))
@PROPERTY
def test_p24_a_policy_equal_to_its_references_starts_at_known_losses(policy, lengths, beta, count):
    lengths = lengths[:2]
    start = {"policy": policy, "table": [policy] * count, "lengths": lengths, "reference_lengths": [lengths] * count}
    free = one(dpo, dpo.Config(beta=beta), **start)
    assert free.value == pytest.approx(math.log(2), abs=1e-15) and not free.output.rewards.any()
    assert free.grad == pytest.approx([-beta / 2, beta / 2], abs=1e-15)
    for length_norm in (True, False):
        ours = one(ipo, ipo.Config(tau=beta, length_norm=length_norm), **start)
        assert ours.value == pytest.approx((1 / (2 * beta)) ** 2, rel=1e-12)
    for baseline in (0.0, -3.0):
        ours = one(kto, kto.Config(beta=beta), **start, baseline=[baseline] * 2)
        assert ours.value == 0.5 and ours.grad == pytest.approx([-beta / 8, beta / 8], abs=1e-15)


@given(PAIR, PAIR, LENGTHS, st.floats(-50.0, 50.0), BETA)
@PROPERTY
def test_what_only_compares_ignores_a_constant_on_both_responses(policy, reference, lengths, constant, beta):
    """DPO's partition function cancels; that of objectives with means does where the lengths are equal."""
    moved = [number + constant for number in reference]
    for config in (dpo.Config(beta=beta), dpo.Config(label_smoothing=0.2), dpo.Config(comparison="hinge")):
        assert close(one(dpo, config, policy, [moved]), one(dpo, config, policy, [reference]))
    config, more = ipo.Config(length_norm=False), {"lengths": lengths[:2], "reference_lengths": [lengths[1:]]}
    assert close(one(ipo, config, policy, [moved], **more), one(ipo, config, policy, [reference], **more), 1e-7)


@given(PAIR, PAIR, st.lists(st.integers(1, 40), min_size=4, max_size=4), st.booleans(), BETA)
@PROPERTY
def test_ipo_has_the_gradient_of_a_parabola_and_is_0_at_its_target(policy, reference, lengths, length_norm, tau):
    """Means divide by each model's own count of tokens, sums by 1."""
    config, counts = ipo.Config(tau=tau, length_norm=length_norm), lengths if length_norm else [1] * 4
    more = {"table": [reference], "lengths": lengths[:2], "reference_lengths": [lengths[2:]]}
    first = reference[0] / counts[2] - reference[1] / counts[3]
    excess = policy[0] / counts[0] - policy[1] / counts[1] - first - 1 / (2 * tau)
    ours = one(ipo, config, policy, **more)
    assert ours.value == pytest.approx(excess**2, rel=1e-10, abs=TINY)
    assert ours.grad == pytest.approx([2 * excess / counts[0], -2 * excess / counts[1]], rel=1e-10, abs=TINY)
    there = [counts[0] * (policy[1] / counts[1] + first + 1 / (2 * tau)), policy[1]]
    assert one(ipo, config, there, **more).value == pytest.approx(0, abs=1e-20)


@given(PAIR, PAIR, st.floats(-50.0, 50.0), st.floats(0.5, 2.0), st.floats(0.5, 2.0))
@PROPERTY
def test_kto_of_a_pair_is_the_mean_of_its_two_labelled_responses(policy, reference, baseline, lam_d, lam_u):
    config = kto.Config(lam_d=lam_d, lam_u=lam_u)
    both = one(kto, config, policy, [reference], baseline=[baseline] * 2)
    single = [
        one(kto, config, [mine], [[first]], baseline=[baseline], scores=[label])
        for mine, first, label in zip(policy, reference, (1.0, 0.0), strict=True)
    ]
    assert both.value == pytest.approx((single[0].value + single[1].value) / 2, abs=TINY)
    assert both.grad == pytest.approx([run.grad[0] / 2 for run in single], abs=TINY)
    rho = [mine - first - max(baseline, 0.0) for mine, first in zip(policy, reference, strict=True)]
    wanted = [lam_d * sigmoid(-0.1 * rho[0]), lam_u * sigmoid(0.1 * rho[1])]  # 1 - sigmoid(x) = sigmoid(-x)
    assert [run.value for run in single] == pytest.approx(wanted, abs=TINY)


@given(PAIR, PAIR, st.floats(-20.0, 20.0), st.floats(-20.0, 20.0))
@PROPERTY
def test_kto_by_pairs_takes_the_baseline_of_the_other_column(policy, reference, chosen, rejected):
    crossed = one(kto, kto.Config(kl="pair"), policy, [reference], baseline=[chosen, rejected])
    each = [
        one(kto, kto.Config(), policy, [reference], baseline=[baseline] * 2).grad[column]
        for column, baseline in enumerate((rejected, chosen))
    ]
    assert crossed.grad == pytest.approx(each, abs=TINY)


@given(st.lists(st.floats(-5.0, -0.01), min_size=2, max_size=2), LENGTHS, st.floats(0.0, 2.0))
@PROPERTY
def test_orpo_has_the_analytic_gradient(means, lengths, lam):
    """dL/dm_w = -1 - lam sigmoid(-z) / (1 - p_w), dL/dm_l = lam sigmoid(-z) / (1 - p_l)."""
    lengths = lengths[:2]
    policy = [mean * length for mean, length in zip(means, lengths, strict=True)]
    ours = one(orpo, orpo.Config(lam=lam), policy, lengths=lengths)
    odds = [math.exp(mean) / -math.expm1(mean) for mean in means]
    push = odds[1] / (odds[0] + odds[1])  # sigmoid(-z), z = log of the odds ratio
    wanted = [-1 + lam * push / math.expm1(means[0]), -lam * push / math.expm1(means[1])]
    assert [grad * length for grad, length in zip(ours.grad, lengths, strict=True)] == pytest.approx(wanted, rel=1e-9)
    assert ours.value == pytest.approx(-means[0] - lam * math.log(1 - push), rel=1e-9)
