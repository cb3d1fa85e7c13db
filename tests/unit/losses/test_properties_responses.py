"""What must hold of n ranked responses: P19 of MDPO, P20 of MPPO, and of both with MRPO's virtual reference.

s_i = l_i - r_i is the log-ratio of response i, m_i its mean log-prob per token, p_i = exp(m_i). n responses, N = n - 1.
"""

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.losses import dpo, mdpo, mppo, mrpo
from tests.unit.losses.strategies import (
    LOGP,
    OPTIONS,
    PAIR,
    PROPERTY,
    TINY,
    dot,
    nls,
    one,
    references,
    sigmoid,
    weightings,
)

PAIRS = ("none", "adjacent", "all", "top_vs_rest")
LISTWISE = [mppo.Config(variant=variant) for variant in mppo.RANKED]
LISTWISE += [
    mppo.Config(variant="pair_single", negative="worst"),
    mppo.Config(variant="pair_mcs", combinations="one"),
]


@st.composite
def ranked(draw, least=2, most=5, ties=False):
    """(policy [n], reference [n], scores [n]) of one prompt, in any order of the columns."""
    n = draw(st.integers(least, most))
    numbers = st.lists(LOGP, min_size=n, max_size=n)
    tied = st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(lambda scores: len(set(scores)) > 1)
    scores = draw(tied if ties else st.permutations(range(n)))
    return draw(numbers), draw(numbers), [float(score) for score in scores]


@st.composite
def probabilities(draw, least=2, most=5):
    """(mean log-probs [n], scores [n]) of one prompt."""
    n = draw(st.integers(least, most))
    means = draw(st.lists(st.floats(-5.0, -0.01), min_size=n, max_size=n))
    return means, [float(score) for score in draw(st.permutations(range(n)))]


def best_first(values, scores):
    return [value for _, value in sorted(zip(scores, values, strict=True), key=lambda item: -item[0])]


def close(ours, other, tolerance=TINY):
    return (ours.value, *ours.grad) == pytest.approx((other.value, *other.grad), rel=0, abs=tolerance)


def mdpo_of(sample, **options):
    policy, reference, scores = sample
    return one(mdpo, mdpo.Config(**options), policy, [reference], scores=scores)


def mppo_of(means, scores, config, draw=0.5):
    """MPPO of responses of one token each, whose log-probs are the means."""
    lengths = [1] * len(means)
    return one(mppo, config, means, lengths=lengths, scores=scores, draws=draw)


# P19: MDPO


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("pairs", PAIRS)
@given(ranked(2, 2), st.sampled_from([0.01, 0.1, 0.5]))
@PROPERTY
def test_p19_two_responses_are_dpo(pairs, reduce, sample, beta):
    policy, reference, scores = sample
    ours = mdpo_of(sample, pairs=pairs, reduce=reduce, beta=beta)
    policy, reference = best_first(policy, scores), best_first(reference, scores)
    plain = one(dpo, dpo.Config(beta=beta), policy, [reference])
    assert ours.value == pytest.approx(plain.value, abs=TINY)
    assert best_first(ours.grad, scores) == pytest.approx(plain.grad, abs=TINY)


@given(ranked(ties=True), st.sampled_from([0.01, 0.1, 0.5]))
@PROPERTY
def test_p19_the_list_is_one_comparison_whose_weights_count_the_worse_less_the_better(sample, beta):
    policy, reference, scores = sample
    n = len(scores)
    weights = [sum(math.copysign(1, mine - other) for other in scores if other != mine) / (n - 1) for mine in scores]
    h = beta * dot(weights, [mine - first for mine, first in zip(policy, reference, strict=True)])
    ours = mdpo_of(sample, beta=beta)
    assert ours.value == pytest.approx(nls(h), abs=TINY)
    assert ours.grad == pytest.approx([-beta * weight * sigmoid(-h) for weight in weights], abs=TINY)
    assert math.fsum(ours.grad) == pytest.approx(0, abs=TINY)  # the weights sum to 0


@given(ranked(), st.sampled_from([0.01, 0.1]))
@PROPERTY
def test_p19_without_ties_the_weights_are_evenly_spaced_and_h_is_half_n_times_the_mean_pair_margin(sample, beta):
    ours = mdpo_of(sample, beta=beta)
    rewards = best_first(ours.output.rewards[0].tolist(), sample[2])
    n = len(rewards)
    margins = [first - second for first, second in combinations(rewards, 2)]
    h = n / 2 * math.fsum(margins) / len(margins)
    assert h == pytest.approx(dot([(n - 2 * i + 1) / (n - 1) for i in range(1, n + 1)], rewards), abs=TINY)
    assert ours.value == pytest.approx(nls(h), abs=TINY)


@pytest.mark.parametrize("pairs", PAIRS)
@given(ranked(ties=True), st.floats(-50.0, 50.0))
@PROPERTY
def test_p19_a_constant_on_all_log_ratios_changes_nothing(pairs, sample, constant):
    policy, reference, scores = sample
    moved = [number + constant for number in policy], reference, scores
    shifted = policy, [number - constant for number in reference], scores
    plain = mdpo_of(sample, pairs=pairs)
    assert close(mdpo_of(moved, pairs=pairs), plain) and close(mdpo_of(shifted, pairs=pairs), plain)


@pytest.mark.parametrize("pairs", ["none", "all"])
@given(ranked(ties=True))
@PROPERTY
def test_p19_turning_the_ranking_round_turns_the_margin_round(pairs, sample):
    """nls(h) - nls(-h) = -h. In eq. 8 every strictly ordered pair has a margin of its own."""
    policy, reference, scores = sample
    there = mdpo_of(sample, pairs=pairs, reduce="sum")
    back = mdpo_of((policy, reference, [-score for score in scores]), pairs=pairs, reduce="sum")
    columns = list(zip(there.output.rewards[0].tolist(), scores, strict=True))
    margins = [first[0] - second[0] for first, second in permutations(columns, 2) if first[1] > second[1]]
    h = math.fsum(margins) / (len(scores) - 1 if pairs == "none" else 1)
    assert there.value - back.value == pytest.approx(-h, abs=TINY)


@pytest.mark.parametrize("pairs", PAIRS[1:])
@given(ranked())
@PROPERTY
def test_p19_pairwise_mdpo_is_dpo_on_each_pair(pairs, sample):
    policy, reference, scores = sample
    columns = best_first(list(zip(policy, reference, strict=True)), scores)
    chosen = {
        "adjacent": list(zip(columns, columns[1:], strict=False)),
        "all": list(combinations(columns, 2)),
        "top_vs_rest": [(columns[0], other) for other in columns[1:]],
    }[pairs]
    each = [one(dpo, dpo.Config(), [best[0], other[0]], [[best[1], other[1]]]).value for best, other in chosen]
    assert mdpo_of(sample, pairs=pairs, reduce="sum").value == pytest.approx(math.fsum(each), abs=TINY)
    assert mdpo_of(sample, pairs=pairs).value == pytest.approx(math.fsum(each) / len(each), abs=TINY)


# P20: MPPO


@given(probabilities(2, 2), st.floats(0, 1, exclude_max=True))
@PROPERTY
def test_p20_with_one_other_response_all_variants_are_the_same(sample, draw):
    means, scores = sample
    first, second = best_first([math.exp(mean) for mean in means], scores)
    push = sigmoid(second - first)
    for config in LISTWISE:
        ours = mppo_of(means, scores, config, draw)
        assert ours.value == pytest.approx(nls(first - second), abs=TINY)
        assert best_first(ours.grad, scores) == pytest.approx([-push * first, push * second], abs=TINY)


@given(probabilities())
@PROPERTY
def test_p20_mcm_is_mdpos_weights_times_n_minus_1(sample):
    means, scores = sample
    p, n = best_first([math.exp(mean) for mean in means], scores), len(means)
    weights = [n - 2 * i + 1 for i in range(1, n + 1)]
    ours = mppo_of(means, scores, mppo.Config(variant="pair_mcm"))
    argument = dot(weights, p)
    assert ours.value == pytest.approx(nls(argument), abs=TINY)
    wanted = [-weight * sigmoid(-argument) * number for weight, number in zip(weights, p, strict=True)]
    assert best_first(ours.grad, scores) == pytest.approx(wanted, abs=TINY)
    list_weights = mdpo_of(([0.0] * n, [0.0] * n, scores), beta=2.0).grad  # -beta w sigmoid(0) = -w
    assert best_first(list_weights, scores) == pytest.approx([-weight / (n - 1) for weight in weights], abs=TINY)


@pytest.mark.parametrize("variant", ["pair_mns", "pair_mnm"])
@given(probabilities(3), st.randoms(use_true_random=False))
@PROPERTY
def test_p20_the_order_of_those_below_the_best_does_not_matter(variant, sample, random):
    means, scores = sample
    best = scores.index(max(scores))
    others = scores[:best] + scores[best + 1 :]
    random.shuffle(others)
    shuffled = [*others[:best], scores[best], *others[best:]]
    config = mppo.Config(variant=variant)
    assert close(mppo_of(means, scores, config), mppo_of(means, shuffled, config), 1e-14)


@given(probabilities())
@PROPERTY
def test_p20_the_pair_variants_are_sums_and_arguments_of_each_other(sample):
    """MNS over pairs with the best; MCS = MNS + MCS of the rest; MNM one comparison of N p_1, between -N and N."""
    means, scores = sample
    p = best_first([math.exp(mean) for mean in means], scores)
    value = {config.variant: mppo_of(means, scores, config).value for config in LISTWISE[:6]}
    assert value["pair_mns"] == pytest.approx(math.fsum(nls(p[0] - other) for other in p[1:]), abs=TINY)
    assert value["pair_mcs"] == pytest.approx(math.fsum(nls(x - y) for x, y in combinations(p, 2)), abs=TINY)
    assert value["pair_mnm"] == pytest.approx(nls(len(p[1:]) * p[0] - math.fsum(p[1:])), abs=TINY)
    assert nls(len(p) - 1) < value["pair_mnm"] < nls(1 - len(p))
    assert nls(1) < value["pair_single"] < nls(-1)
    tails = [math.log(math.fsum(map(math.exp, p[i:]))) - p[i] for i in range(len(p))]
    assert value["list_mle"] == pytest.approx(math.fsum(tails), abs=TINY)


@given(probabilities(), st.floats(0, 1, exclude_max=True))
@PROPERTY
def test_p20_a_drawn_pair_is_one_of_the_candidates_and_every_draw_can_be_reached(sample, draw):
    means, scores = sample
    p = best_first([math.exp(mean) for mean in means], scores)
    single = mppo_of(means, scores, mppo.Config(variant="pair_single"), draw)
    combination = mppo_of(means, scores, mppo.Config(variant="pair_mcs", combinations="one"), draw)
    assert any(single.value == pytest.approx(nls(p[0] - other), abs=TINY) for other in p[1:])
    assert any(combination.value == pytest.approx(nls(x - y), abs=TINY) for x, y in combinations(p, 2))
    places = range(len(p) - 1)
    draws = [mppo_of(means, scores, mppo.Config(variant="pair_single"), i / len(places)).grad for i in places]
    assert len({tuple(gradient != 0 for gradient in row) for row in draws}) == len(places)


@pytest.mark.parametrize("variant", mppo.POINT)
@given(st.floats(0.05, 9.95), st.floats(-3.0, -0.01))
@PROPERTY
def test_p20_point_variants_are_least_where_the_probability_is_the_score(variant, score, mean):
    config = mppo.Config(variant=variant)
    least = mppo_of([math.log(score / 10)], [score], config)
    there = mppo_of([mean], [score], config)
    assert least.grad[0] == pytest.approx(0, abs=TINY)
    assert there.value >= least.value - 1e-15
    ahead = math.exp(mean) - score / 10
    assert there.grad[0] * ahead >= 0 and (abs(ahead) < 1e-6 or there.grad[0] != 0)


# Our own extensions: MDPO and MPPO against the virtual reference of K references

KINDS = st.sampled_from(["harmonic", "geometric", "arithmetic"])


@st.composite
def ranked_under_references(draw, least=1):
    """(policy [n], K references [K][n], scores [n])."""
    policy, reference, scores = draw(ranked(ties=True))
    row = st.lists(LOGP, min_size=len(policy), max_size=len(policy))
    return policy, [reference, *draw(st.lists(row, min_size=least - 1, max_size=3))], scores


@given(ranked_under_references(), OPTIONS, KINDS, st.sampled_from(["arwc", "uniform", [1.0]]), st.sampled_from(PAIRS))
@PROPERTY
def test_multi_reference_mdpo_with_one_reference_is_mdpo(sample, options, kind, weights, pairs):
    policy, table, scores = sample
    ours = mdpo.Config(virtual_ref=kind, weights=weights, pairs=pairs, **options)
    plain = mdpo.Config(beta=options["beta"], pairs=pairs, ctro="none")
    found, wanted = (one(mdpo, config, policy, table[:1], scores=scores) for config in (ours, plain))
    assert found.value == wanted.value and found.grad == wanted.grad
    s = [mine - first for mine, first in zip(policy, table[0], strict=True)]
    assert found.output.rewards[0].tolist() == pytest.approx([options["beta"] * each for each in s], abs=TINY)


@given(PAIR, references(), OPTIONS, KINDS, st.data())
@PROPERTY
def test_multi_reference_mdpo_of_two_responses_is_mrpo(policy, table, options, kind, data):
    options = options | {"virtual_ref": kind, "weights": data.draw(weightings(len(table)))}
    ours, plain = one(mdpo, mdpo.Config(**options), policy, table), one(mrpo, mrpo.Config(**options), policy, table)
    assert ours.value == plain.value and ours.grad == plain.grad
    assert torch.equal(ours.output.rewards, plain.output.rewards)
    for name, value in plain.output.stats.items():
        assert torch.equal(ours.output.stats[name], value)


@given(ranked_under_references(2), OPTIONS, KINDS)
@PROPERTY
def test_multi_reference_mdpo_keeps_the_virtual_reference_of_every_response_inside_its_region(sample, options, kind):
    """P3, P6 and P7 for n responses: v stays between the references, and with an eps of 0 at RefM1."""
    policy, table, scores = sample
    beta, rewards = options["beta"], {}
    for ctro, eps in (("none", 0.0), (options["ctro"], 0.0)):
        settings = mdpo.Config(virtual_ref=kind, **options | {"ctro": ctro, "eps_max": eps})
        rewards[ctro] = one(mdpo, settings, policy, table, scores=scores).output.rewards[0].tolist()
    free = [mine - reward / beta for mine, reward in zip(policy, rewards["none"], strict=True)]
    for v, *column in zip(free, *table, strict=True):
        assert min(column) - 1e-9 <= v <= max(column) + 1e-9
    if options["ctro"] != "none":
        held = [mine - reward / beta for mine, reward in zip(policy, rewards[options["ctro"]], strict=True)]
        assert held == pytest.approx(table[0], abs=1e-9)


@given(ranked(ties=True), st.integers(1, 3), OPTIONS, KINDS, st.integers(1, 40), st.floats(0, 1, exclude_max=True))
@PROPERTY
def test_anchored_mppo_with_the_policy_at_its_references_compares_zeros(sample, count, options, kind, length, draw):
    policy, _, scores = sample
    n, options = len(policy), {name: value for name, value in options.items() if name != "beta"}
    orders = list(combinations(sorted(scores), 2))
    terms = {
        "pair_mns": sum(score < max(scores) for score in scores),
        "pair_mcs": sum(lower < higher for lower, higher in orders),
        "list_mle": math.lgamma(n + 1) / math.log(2),
    }
    for variant in mppo.RANKED:
        config = mppo.Config(variant=variant, anchor="virtual", virtual_ref=kind, weights="uniform", **options)
        more = {"lengths": [length] * n, "scores": scores, "draws": draw}
        ours = one(mppo, config, policy, [policy] * count, **more)
        assert ours.output.rewards[0].tolist() == pytest.approx([0.0] * n, abs=1e-13)
        assert ours.value == pytest.approx(terms.get(variant, 1) * math.log(2), abs=TINY)


@given(ranked_under_references(), OPTIONS, KINDS)
@PROPERTY
def test_anchored_mppo_is_mppo_of_probabilities_less_those_of_the_virtual_reference(sample, options, kind):
    policy, table, scores = sample
    options, beta = dict(options), options["beta"]
    v = one(mdpo, mdpo.Config(virtual_ref=kind, **options), policy, table, scores=scores).output.rewards[0] / -beta
    v = (v + torch.tensor(policy, dtype=torch.float64)).tolist()
    del options["beta"]
    lengths = [20 + column for column in range(len(policy))]
    config = mppo.Config(anchor="virtual", virtual_ref=kind, **options)
    ours = one(mppo, config, policy, table, scores=scores, lengths=lengths)
    values = [math.exp(mine / t) - math.exp(other / t) for mine, other, t in zip(policy, v, lengths, strict=True)]
    assert ours.output.rewards[0].tolist() == pytest.approx(values, abs=TINY)
    best = scores.index(max(scores))
    others = [value for value, score in zip(values, scores, strict=True) if score < max(scores)]
    assert ours.value == pytest.approx(nls(len(others) * values[best] - math.fsum(others)), abs=TINY)
