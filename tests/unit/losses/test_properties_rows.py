"""What must hold of every objective, with all its options, about the rows and columns of a batch: P23 and P28."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.losses import mdpo, mean_ref, mppo, mrpo, multi_ref_dpo
from mrpo_ds.losses._virtual import TrustRegionOptions
from tests.unit.losses.strategies import FEW, OBJECTIVES, SEED, batch_for, each, evaluate, random_batch, rows_of, run

LISTS = {label: objective for label, objective in OBJECTIVES.items() if objective.view == "ranked"}
BROKEN = st.sampled_from([math.nan, math.inf, -math.inf])


def same(ours, other):
    """The results of two batches, as exactly as sums in another order can be."""
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(ours.total, other.total, **close)
    torch.testing.assert_close(ours.output.losses, other.output.losses, **close)
    assert torch.equal(ours.output.valid, other.output.valid)
    assert ours.output.stats.keys() == other.output.stats.keys()
    for name, value in other.output.stats.items():
        torch.testing.assert_close(ours.output.stats[name], value, **close)


def columns_of(logps, columns, **more):
    """The given columns of the responses of a batch, as a new leaf; more replaces fields after that."""
    fields = ("lengths", "reference", "reference_lengths", "present", "scores")
    taken = {name: getattr(logps, name)[..., columns].clone() for name in fields}
    policy = logps.policy.detach()[:, columns].clone().requires_grad_()
    return replace(logps, policy=policy, **taken | more)


@each(OBJECTIVES)
@given(SEED, st.permutations(range(5)))
@FEW
def test_p23_the_order_of_the_batch_does_not_matter(objective, seed, order):
    logps = batch_for(objective, seed, 5)
    moved, plain = run(objective, rows_of(logps, order)), run(objective, logps)
    torch.testing.assert_close(moved.total, plain.total, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.gradient, plain.gradient[order], rtol=0, atol=1e-10)
    assert torch.equal(moved.output.losses, plain.output.losses[order])
    assert torch.equal(moved.output.rewards, plain.output.rewards[order])
    assert moved.output.stats.keys() == plain.output.stats.keys()
    for name, value in plain.output.stats.items():
        assert torch.equal(moved.output.stats[name], value[..., order])


ORDERLESS = {label: objective for label, objective in LISTS.items() if not objective.needs.draws}
"""Which response a draw falls on does depend on the order of the columns."""


@each(ORDERLESS)
@given(SEED, st.permutations(range(4)))
@FEW
def test_p23_the_order_of_scored_responses_does_not_matter(objective, seed, order):
    logps = batch_for(objective, seed, 3)
    moved, plain = run(objective, columns_of(logps, order)), run(objective, logps)
    torch.testing.assert_close(moved.output.losses, plain.output.losses, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.output.rewards, plain.output.rewards[:, order], rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.gradient, plain.gradient[:, order], rtol=0, atol=1e-10)


def compares_all(config):
    """Whether no tie has to be broken by the order of the columns."""
    if isinstance(config, mdpo.Config):
        return config.pairs in ("none", "all")
    return config.variant in ("pair_mcs", "pair_mcm")


TIES = {label: objective for label, objective in ORDERLESS.items() if compares_all(objective.config)}


@each(TIES)
@given(SEED, st.permutations(range(4)), st.lists(st.integers(0, 2), min_size=4, max_size=4))
@FEW
def test_p23_nor_does_that_of_tied_ones(objective, seed, order, scores):
    logps = replace(batch_for(objective, seed, 2), scores=torch.tensor([scores] * 2, dtype=torch.float64))
    moved, plain = run(objective, columns_of(logps, order)), run(objective, logps)
    assert plain.output.valid.all() == (len(set(scores)) > 1)
    torch.testing.assert_close(moved.output.losses, plain.output.losses, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved.gradient, plain.gradient[:, order], rtol=0, atol=1e-10)


def spread(logps, width, places, unscored=False):
    """The batch in a wider table: its columns in the given places, garbage in the others, which do not count."""
    source = [places.index(column) if column in places else 0 for column in range(width)]
    extra = torch.tensor([column not in places for column in range(width)])
    wide = columns_of(logps, source)
    if unscored:
        return replace(wide, scores=wide.scores.masked_fill(extra, math.nan))
    return replace(
        wide,
        policy=wide.policy.detach().masked_fill(extra, math.nan).requires_grad_(),
        lengths=wide.lengths.masked_fill(extra, 0),
        reference=wide.reference.masked_fill(extra, -math.inf),
        reference_lengths=wide.reference_lengths.masked_fill(extra, 0),
        present=wide.present & ~extra,
        scores=wide.scores.masked_fill(extra, 100.0),
    )


@pytest.mark.parametrize("unscored", [False, True], ids=["absent", "unscored"])
@each(LISTS)
@given(SEED, st.sets(st.integers(0, 6), min_size=4, max_size=4).map(sorted))
@FEW
def test_p23_p28_absent_and_unscored_responses_change_nothing_wherever_they_are(objective, unscored, seed, places):
    logps = batch_for(objective, seed, 3)
    wide, plain = run(objective, spread(logps, 7, places, unscored)), run(objective, logps)
    same(wide, plain)
    torch.testing.assert_close(wide.gradient[:, places], plain.gradient, rtol=0, atol=1e-10)
    others = [column for column in range(7) if column not in places]
    assert not wide.gradient[:, others].any() and (wide.output.rewards[:, others].abs() < 1e-10).all()


FIXED = {label: objective for label, objective in OBJECTIVES.items() if objective.view not in ("pair", "ranked")}


@each(FIXED)
@given(SEED, st.integers(1, 3))
@FEW
def test_p23_nor_do_absent_ones_at_the_end_for_those_that_know_their_columns(objective, seed, more):
    size = objective.responses
    logps = batch_for(objective, seed, 3)
    wide = spread(logps, size + more, list(range(size)))
    wide = replace(wide, baseline=logps.baseline.mean().expand(size + more))
    plain = run(objective, replace(logps, baseline=wide.baseline[:size]))
    ours = run(objective, wide)
    same(ours, plain)
    torch.testing.assert_close(ours.gradient[:, :size], plain.gradient, rtol=0, atol=1e-10)


@each(LISTS)
@given(SEED, st.lists(st.integers(2, 4), min_size=3, max_size=3))
@FEW
def test_p23_a_prompt_with_fewer_responses_is_what_it_is_alone(objective, seed, counts):
    logps = batch_for(objective, seed, 3)
    present = torch.arange(4) < torch.tensor(counts).unsqueeze(-1)
    mixed = run(objective, replace(logps, present=present))
    for row, count in enumerate(counts):
        alone = run(objective, columns_of(rows_of(logps, [row]), list(range(count))))
        torch.testing.assert_close(mixed.output.losses[[row]], alone.output.losses, rtol=0, atol=1e-10)
        torch.testing.assert_close(mixed.gradient[row, :count] * 3, alone.gradient[0], rtol=0, atol=1e-10)


# P28


def decisive(objective):
    """How many references, from the first, can make a row invalid."""
    if isinstance(objective.config, TrustRegionOptions) and not objective.config.masks_references:
        return objective.references
    return min(objective.references, 1)


def ways_to_break(objective):
    ways = ["length", "absent"]
    if objective.references:
        ways += ["reference", "reference length"]
    if objective.needs.score_range or objective.view == "unpaired":
        ways += ["unscored"]
    elif isinstance(objective.config, (mdpo.Config, mppo.Config)):
        ways += ["tied"]
    return ways


@st.composite
def damages(draw, objective, rows):
    """[rows], each None or (what is broken, response, reference, value)."""
    reference = st.integers(0, max(decisive(objective) - 1, 0))
    ways = st.sampled_from(ways_to_break(objective))
    damage = st.tuples(ways, st.integers(0, objective.responses - 1), reference, BROKEN)
    return draw(st.lists(st.none() | damage, min_size=rows, max_size=rows))


def damaged(logps, objective, broken):
    """The batch with those rows broken, NaN for the policy of most, and nonsense from references that have no say."""
    logps = columns_of(logps, list(range(objective.responses)))
    policy = logps.policy.detach()
    if not isinstance(objective.config, TrustRegionOptions):
        logps.reference[decisive(objective) :] = math.nan
    for row, damage in enumerate(broken):
        if damage is None:
            continue
        way, response, reference, value = damage
        if way not in ("tied", "unscored"):
            policy[row] = math.nan
        if way == "length":
            logps.lengths[row, response] = 0
        elif way == "absent":
            logps.present[row] = False
        elif way == "reference":
            logps.reference[reference, row, response] = value
        elif way == "reference length":
            logps.reference_lengths[reference, row, response] = 0
        else:
            logps.scores[row] = 3.0 if way == "tied" else math.nan
    return replace(logps, policy=policy.requires_grad_())


@each(OBJECTIVES)
@given(SEED, st.data())
@FEW
def test_p28_broken_rows_are_dropped_and_counted_and_the_others_are_as_without_them(objective, seed, data):
    whole, broken = batch_for(objective, seed, 4), data.draw(damages(objective, 4))
    kept = [row for row, damage in enumerate(broken) if damage is None]
    dropped = [row for row in range(4) if row not in kept]
    ours = run(objective, damaged(whole, objective, broken))
    output = ours.output
    assert output.valid.nonzero().flatten().tolist() == kept
    assert ours.total.isfinite() and ours.gradient.isfinite().all() and output.rewards.isfinite().all()
    assert not output.losses[dropped].any() and not ours.gradient[dropped].any()
    assert all(value.isfinite().all() for value in output.stats.values())
    if output.per_token is not None:
        assert not output.per_token.losses[dropped].any() and not output.per_token.tokens[dropped].any()
    if kept:
        alone = run(objective, rows_of(whole, kept))
        torch.testing.assert_close(ours.total, alone.total, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.gradient[kept], alone.gradient, rtol=0, atol=1e-10)
        torch.testing.assert_close(output.rewards[kept], alone.output.rewards, rtol=0, atol=1e-10)


@each(OBJECTIVES)
@given(SEED, st.data())
@FEW
def test_p28_a_batch_of_broken_rows_alone_is_0_and_still_in_the_graph(objective, seed, data):
    broken = [damage or ("length", 0, 0, 0.0) for damage in data.draw(damages(objective, 2))]
    ours = run(objective, damaged(batch_for(objective, seed, 2), objective, broken))
    assert ours.value == 0 and not ours.output.valid.any()
    assert not ours.gradient.any()  # and there is one: autograd.grad would have raised


@pytest.mark.parametrize("weights", ["arwc", "uniform"])
@pytest.mark.parametrize("module", [mrpo, multi_ref_dpo, mean_ref, mdpo])
@given(SEED, st.integers(1, 2), BROKEN, st.sampled_from(["adaptive", "fixed", "none"]))
@FEW
def test_p28_a_masked_reference_is_a_reference_less(module, weights, seed, place, value, ctro):
    config = module.Config(nonfinite="mask_ref", weights=weights, ctro=ctro)
    logps = random_batch(seed, 2, 4 if module is mdpo else 2, 3)
    logps.reference[place, 0, 1] = value
    masked = evaluate(module, config, logps)
    others = [k for k in range(3) if k != place]
    fewer = replace(logps, reference=logps.reference[others], reference_lengths=logps.reference_lengths[others])
    without = evaluate(module, config, fewer)
    torch.testing.assert_close(masked.output.losses[0], without.output.losses[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(masked.gradient[0], without.gradient[0], rtol=0, atol=1e-10)
    whole = evaluate(module, config, rows_of(logps, [1]))
    torch.testing.assert_close(masked.output.losses[[1]], whole.output.losses, rtol=0, atol=1e-10)
