"""MDPO against numbers made by hand, its pairwise alternative, ties, and several references.

    s_i = l_i - r_i    w_i = (n - 2i + 1) / (n - 1)    loss = softplus(-h), h = beta * sum_i w_i s_i
    d loss / d l_i = -beta * w_i * sigmoid(-h)

Four responses with s = (2, -1, 2, -2), best first: h = 0.1 * (2 - 1/3 - 2/3 + 2) = 0.3. The paper prints ratios
instead of their logarithms; with those h would be 0.4913328596440968.
"""

import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.losses.mdpo import Config, list_weights, loss
from mrpo_ds.ops.ranking import rank

POLICY, REFERENCE = [-20.0, -24.0, -23.0, -30.0], [-22.0, -23.0, -25.0, -28.0]
THIRD = 0.01418524943961137
ADJACENT = [0.5543552444685271, 0.8543552444685271, 0.5130152523999526]  # softplus of -0.3, 0.3, -0.4


@pytest.fixture
def four(batch_of):
    return lambda **fields: batch_of([POLICY], [REFERENCE], **fields)


def test_golden(four, evaluate, exactly):
    got = evaluate(loss, four(), Config(beta=0.1))
    assert got.loss == exactly(0.5543552444685271)
    assert got.loss != pytest.approx(math.log1p(math.exp(-0.4913328596440968)), abs=1e-3)
    assert got.gradients[0] == exactly([-3 * THIRD, -THIRD, THIRD, 3 * THIRD])
    assert got.output.rewards.tolist()[0] == exactly([0.2, -0.1, 0.2, -0.2])


def test_weights_with_two_decimals_as_the_paper_prints_them(four, evaluate, exactly):
    """0.1 * (2 - 0.33 - 0.66 + 2) = 0.301."""
    assert evaluate(loss, four(), Config(weight_rounding="two_decimals")).loss == exactly(0.5539298092084238)


@pytest.mark.parametrize(
    "count, weights", [(2, [1, -1]), (3, [1, 0, -1]), (4, [1, 1 / 3, -1 / 3, -1]), (5, [1, 0.5, 0, -0.5, -1])]
)
def test_weights_of_a_list(count, weights):
    ranking = rank(torch.ones(1, count, dtype=torch.bool), None)
    assert list_weights(ranking, "exact").tolist() == [pytest.approx(weights, abs=1e-15)]


def test_two_responses_are_dpo(example, evaluate, exactly):
    logps = example("A")
    alone = replace(logps, reference=logps.reference[:1], reference_lengths=logps.reference_lengths[:1])
    for pairs in ("none", "adjacent", "all", "top_vs_rest"):
        got = evaluate(loss, alone, Config(pairs=pairs))
        assert got.loss == exactly(0.5010837825796713)
        assert got.gradients[0] == exactly([-0.03941263315682394, 0.03941263315682394])


def test_the_middle_of_three_has_no_say(batch_of, evaluate):
    got = evaluate(loss, batch_of([POLICY[:3]], [REFERENCE[:3]]), Config())
    assert got.gradients[0][1] == 0.0 and got.gradients[0][0] == -got.gradients[0][2] != 0.0


# Pairs


@pytest.mark.parametrize(
    "pairs, values",
    [("adjacent", ADJACENT), ("top_vs_rest", [ADJACENT[0], 0.6931471805599453, ADJACENT[2]])],
)
def test_pairs_are_ordinary_dpo_losses(four, evaluate, exactly, pairs, values):
    assert evaluate(loss, four(), Config(pairs=pairs)).loss == exactly(sum(values) / 3)
    assert evaluate(loss, four(), Config(pairs=pairs, reduce="sum")).loss == exactly(sum(values))


def test_adjacent_pairs_golden(four, evaluate, exactly):
    got = evaluate(loss, four(), Config(pairs="adjacent"))
    assert got.loss == exactly(0.6405752471123356)
    wanted = [-0.01418524943961137, -0.004962834454110599, 0.005771005897470366, 0.01337707799625160]
    assert got.gradients[0] == exactly(wanted)
    summed = evaluate(loss, four(), Config(pairs="adjacent", reduce="sum"))
    assert summed.loss == exactly(1.921725741337007)
    assert summed.gradients[0] == exactly([3 * gradient for gradient in wanted])


def test_all_pairs_golden(four, evaluate, exactly):
    assert evaluate(loss, four(), Config(pairs="all")).loss == exactly(0.6287141390617459)
    assert evaluate(loss, four(), Config(pairs="all", reduce="sum")).loss == exactly(3.772284834370476)


def test_tied_pairs_are_left_out(four, evaluate, exactly):
    """Ranks 2 and 3 are tied, so two of three neighbours are left and five of six pairs."""
    tied = four(scores=[[3, 2, 2, 1]])
    assert evaluate(loss, tied, Config(pairs="adjacent")).loss == exactly((ADJACENT[0] + ADJACENT[2]) / 2)
    without = 3.772284834370476 - ADJACENT[1]
    assert evaluate(loss, tied, Config(pairs="all", reduce="sum")).loss == exactly(without)


# Ties, missing scores, order


def test_tied_ranks_share_their_weight(four, evaluate, exactly):
    """w = (1, 0, 0, -1), so h = 0.4."""
    got = evaluate(loss, four(scores=[[3, 2, 2, 1]]), Config())
    assert got.loss == exactly(0.5130152523999526)
    assert got.gradients[0][1:3] == [0.0, 0.0]
    assert got.output.stats["score_ties"].tolist() == pytest.approx([1 / 6])


@pytest.mark.parametrize("pairs", ["none", "adjacent", "all", "top_vs_rest"])
def test_a_prompt_whose_responses_are_all_tied_is_dropped(four, evaluate, pairs):
    got = evaluate(loss, four(scores=[[2, 2, 2, 2]]), Config(pairs=pairs))
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and not any(got.gradients[0])
    assert not any(value.any() for value in got.output.stats.values()) and not got.output.rewards.any()


@pytest.mark.parametrize("pairs", ["none", "adjacent", "all", "top_vs_rest"])
def test_scores_rank_and_columns_do_not(batch_of, four, evaluate, exactly, pairs):
    order = [2, 0, 3, 1]
    moved = batch_of(
        [[POLICY[i] for i in order]], [[REFERENCE[i] for i in order]], scores=[[[9, 7, 5, 1][i] for i in order]]
    )
    got, wanted = (evaluate(loss, logps, Config(pairs=pairs)) for logps in (moved, four()))
    assert got.loss == exactly(wanted.loss)
    assert got.gradients[0] == exactly([wanted.gradients[0][i] for i in order])


@pytest.mark.parametrize("scores", [None, [[math.nan] * 4]])
def test_without_scores_the_order_of_the_responses_ranks(four, evaluate, exactly, scores):
    assert evaluate(loss, four(scores=scores), Config()).loss == exactly(0.5543552444685271)


def test_a_response_without_a_score_is_left_out(batch_of, four, evaluate, exactly):
    got = evaluate(loss, four(scores=[[9, math.nan, 5, 1]]), Config())
    three = batch_of([POLICY[:1] + POLICY[2:]], [REFERENCE[:1] + REFERENCE[2:]])
    wanted = evaluate(loss, three, Config())
    assert got.loss == exactly(wanted.loss) and got.gradients[0][1] == 0.0
    assert [got.gradients[0][i] for i in (0, 2, 3)] == exactly(wanted.gradients[0])
    for name, value in wanted.output.stats.items():
        torch.testing.assert_close(got.output.stats[name], value)


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": [[9, math.nan, math.nan, math.nan]]},
        {"present": [[True, False, False, False]]},
        {"lengths": [[10, 10, 0, 10]]},
    ],
)
def test_a_prompt_with_one_response_left_or_one_without_tokens_is_dropped(four, evaluate, fields):
    got = evaluate(loss, four(**fields), Config())
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and not any(got.gradients[0])


# Several references: the paper has one


def test_with_two_responses_it_is_mrpo(example, evaluate, exactly):
    got = evaluate(loss, example("A"), Config())
    assert got.loss == exactly(0.7045713105686730)
    assert got.gradients[0] == exactly([-0.05056795612113483, 0.05056795612113483])
    geometric = evaluate(loss, example("A"), Config(virtual_ref="geometric", weights="uniform", ctro="fixed"))
    assert geometric.loss == exactly(0.7690775661319648)


@pytest.mark.parametrize("options", [{}, {"ctro": "none", "virtual_ref": "arithmetic"}, {"pairs": "all"}])
def test_references_that_agree_are_one(batch_of, four, evaluate, exactly, options):
    got = evaluate(loss, batch_of([POLICY], [REFERENCE] * 3), Config(**options))
    wanted = evaluate(loss, four(), Config(**options))
    assert got.loss == exactly(wanted.loss) and got.gradients[0] == exactly(wanted.gradients[0])


def test_the_virtual_reference_is_that_of_all_responses(batch_of, exactly):
    """Gaps of 6 and 3 nats between the likeliest and the least likely give a = (2/3, 1/3)."""
    second = [-20.0, -23.0, -22.0, -21.0]
    output = loss(batch_of([POLICY], [REFERENCE, second]), Config(ctro="none"))
    virtual = [-math.log(2 / 3 * math.exp(-r) + 1 / 3 * math.exp(-q)) for r, q in zip(REFERENCE, second, strict=True)]
    assert output.stats["weight"].flatten().tolist() == exactly([2 / 3, 1 / 3])
    assert output.rewards[0].tolist() == exactly([0.1 * (p - v) for p, v in zip(POLICY, virtual, strict=True)])
    clipped = loss(batch_of([POLICY], [REFERENCE, second]), Config()).stats
    sizes = [-r - q for r, q in zip(REFERENCE, second, strict=True)]
    assert clipped["ctro/eps_chosen"].item() == exactly(0.1 * sizes[0] / sum(sizes))
    assert clipped["ctro/eps_rejected"].item() == exactly(0.1 * sizes[3] / sum(sizes))
