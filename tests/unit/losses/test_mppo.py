"""MPPO against numbers computed with 60 digits, ties and missing scores, and its anchor.

Four responses with mean log-probs m, so p = exp(m). Gradients are those with respect to m: the tokens times those with
respect to the sums.
"""

import math

import pytest
import torch

from mrpo_ds.losses.mppo import POINT, RANKED, Config, loss, needs

MEANS, TOKENS, SCORES = [-0.5, -0.7, -0.8, -1.1], [10, 7, 5, 8], [9.0, 7.0, 6.0, 3.0]
P = [0.6065306597126334, 0.4965853037914095, 0.4493289641172216, 0.3328710836980796]
CE = [0.5432752129567189, 0.6959023008425155, 0.7186470716755902, 0.6133403817498030]
GOLDEN = {
    "point_ce": (0.6427912418061569,
                 [-0.1864626479365800, -0.1010174602274153, -0.06840337790839058, 0.01231811532030909]),
    "point_mse": (0.03782101537995274,
                  [-0.08899907628496388, -0.05050637435619009, -0.03385043023783877, 0.005470916626455009]),
    "pair_single": (0.5656495223500398, [-0.2620266406907369, 0.0, 0.0, 0.1438032693777049]),
    "pair_mns": (1.822966466078759, [-0.8281148221975259, 0.2346570726887932, 0.2070419395972047, 0.1438032693777049]),
    "pair_mnm": (0.4588658217036822, [-0.6696097757225361, 0.1827433719818968, 0.1653530408672845, 0.1224965455196130]),
    "pair_mcs": (3.744013812901091, [-0.8281148221975259, -0.2357833768124474, 0.2148017261452851, 0.4534003418809845]),
    "pair_mcm": (0.3504396813105494,
                 [-0.5379108384406053, -0.1468013819484285, 0.1328313834063267, 0.2952117273172981]),
    "list_mle": (2.923143834791706,
                 [-0.4337794008268514, -0.1927015118381548, 0.05067653499777809, 0.3296927684707913]),
}  # fmt: skip


@pytest.fixture
def four(batch_of):
    """(references [K][R], further fields) -> the four responses."""

    def build(references=(), columns=(0, 1, 2, 3), **fields):
        policy = [[MEANS[i] * TOKENS[i] for i in columns]]
        own = {"lengths": [[TOKENS[i] for i in columns]], "scores": [[SCORES[i] for i in columns]]}
        return batch_of(policy, references, **(own | fields))

    return build


def nls(margin):
    return math.log1p(math.exp(-margin))


def variant(name, **options):
    """The Config of a variant that needs no draws."""
    return Config(variant=name, negative="worst", **options)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(four, evaluate, exactly, name):
    value, gradients = GOLDEN[name]
    got = evaluate(loss, four(), variant(name))
    assert got.loss == exactly(value)
    assert [g * count for g, count in zip(got.gradients[0], TOKENS, strict=True)] == exactly(gradients)
    assert got.output.rewards[0].tolist() == exactly(P)


def test_single_responses_each_have_their_own_cross_entropy(batch_of, exactly):
    column = {"lengths": [[count] for count in TOKENS], "scores": [[score] for score in SCORES]}
    logps = batch_of([[mean * count] for mean, count in zip(MEANS, TOKENS, strict=True)], **column)
    assert loss(logps, variant("point_ce")).losses.tolist() == exactly(CE)


def test_scores_are_divided_by_their_scale(four, evaluate, exactly):
    unit = four(scores=[[0.9, 0.7, 0.6, 0.3]])
    assert evaluate(loss, unit, variant("point_ce", score_scale=1.0)).loss == exactly(GOLDEN["point_ce"][0])


# What is drawn


@pytest.mark.parametrize("draw, j", [(0.0, 1), (0.33, 1), (0.34, 2), (0.66, 2), (0.67, 3), (1 - 2**-24, 3)])
def test_pair_single_draws_one_of_those_below_the_best(four, evaluate, exactly, draw, j):
    got = evaluate(loss, four(draws=[draw]), Config(variant="pair_single"))
    assert got.loss == exactly(nls(P[0] - P[j]))
    assert [column for column in range(4) if got.gradients[0][column]] == [0, j]


def test_pair_mcs_with_one_combination_draws_each_of_the_six_pairs(four, evaluate, exactly):
    config = Config(variant="pair_mcs", combinations="one")
    values = [evaluate(loss, four(draws=[(place + 0.5) / 6]), config).loss for place in range(6)]
    pairs = [nls(P[i] - P[k]) for i in range(4) for k in range(i + 1, 4)]
    assert sorted(values) == exactly(sorted(pairs)) and sum(values) == exactly(GOLDEN["pair_mcs"][0])


# Ties, missing scores, edges


TIED = [[9, 9, 6, 3]]


@pytest.mark.parametrize(
    "name, value",
    [
        ("pair_single", nls(P[0] - P[3])),
        ("pair_mns", nls(P[0] - P[2]) + nls(P[0] - P[3])),
        ("pair_mnm", nls(2 * P[0] - P[2] - P[3])),
        ("pair_mcs", sum(nls(P[i] - P[k]) for i, k in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))),
        ("pair_mcm", nls(2 * P[0] + 2 * P[1] - P[2] - 3 * P[3])),
        ("list_mle", GOLDEN["list_mle"][0]),
    ],
)
def test_tied_pairs_are_left_out_and_the_first_of_the_best_is_the_best(four, evaluate, exactly, name, value):
    got = evaluate(loss, four(scores=TIED), variant(name))
    assert got.loss == exactly(value)
    assert got.output.stats["score_ties"].tolist() == pytest.approx([1 / 6])


@pytest.mark.parametrize("name", RANKED)
def test_a_prompt_whose_responses_are_all_tied_is_dropped(four, evaluate, name):
    got = evaluate(loss, four(scores=[[5, 5, 5, 5]]), variant(name))
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and not any(got.gradients[0])


@pytest.mark.parametrize("name", POINT)
def test_ties_do_not_matter_point_wise(four, name):
    assert loss(four(scores=[[5, 5, 5, 5]]), variant(name)).valid.tolist() == [True]


@pytest.mark.parametrize("name", POINT + RANKED)
def test_a_response_without_a_score_is_left_out(four, evaluate, exactly, name):
    got = evaluate(loss, four(scores=[[9, math.nan, 6, 3]]), variant(name))
    wanted = evaluate(loss, four(columns=(0, 2, 3)), variant(name))
    assert got.loss == exactly(wanted.loss) and got.gradients[0][1] == got.output.rewards[0, 1] == 0.0
    assert [got.gradients[0][i] for i in (0, 2, 3)] == exactly(wanted.gradients[0])


@pytest.mark.parametrize("name", POINT + RANKED)
def test_one_scored_response_is_enough_point_wise_only(four, name):
    output = loss(four(scores=[[9, math.nan, math.nan, math.nan]]), variant(name))
    assert output.valid.tolist() == [name in POINT]


@pytest.mark.parametrize("scores", [None, [[math.nan] * 4]])
@pytest.mark.parametrize("name", POINT + RANKED)
def test_without_any_score_the_order_ranks_and_points_are_dropped(four, evaluate, exactly, name, scores):
    got = evaluate(loss, four(scores=scores), variant(name))
    assert got.output.valid.tolist() == [name in RANKED]
    assert got.loss == exactly(GOLDEN[name][0] if name in RANKED else 0.0)


@pytest.mark.parametrize("name", POINT + RANKED)
def test_a_response_without_a_token_drops_the_prompt(four, evaluate, name):
    got = evaluate(loss, four(lengths=[[10, 7, 0, 8]]), variant(name))
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and not any(got.gradients[0])


@pytest.mark.parametrize("name", RANKED)
def test_scores_rank_and_columns_do_not(four, evaluate, exactly, name):
    order = (2, 0, 3, 1)
    got = evaluate(loss, four(columns=order), variant(name))
    value, gradients = GOLDEN[name]
    assert got.loss == exactly(value)
    per_mean = [g * TOKENS[i] for g, i in zip(got.gradients[0], order, strict=True)]
    assert per_mean == exactly([gradients[i] for i in order])


@pytest.mark.parametrize("score, value", [(10.0, 0.0), (4.0, -0.6 * math.log(1e-6))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cross_entropy_of_a_certain_response_is_finite(batch_of, evaluate, score, value, dtype):
    got = evaluate(loss, batch_of([[0.0]], (), dtype, scores=[[score]]), variant("point_ce"))
    assert got.loss == pytest.approx(value, abs=1e-5) and math.isfinite(got.gradients[0][0])


@pytest.mark.parametrize("sums, value", [([0.0, -5000.0], 0.3132616875182228), ([-5000.0, 0.0], 1.3132616875182228)])
def test_a_pair_costs_between_the_two_bounds_that_probabilities_set(batch_of, evaluate, exactly, sums, value):
    assert evaluate(loss, batch_of([sums]), Config(variant="pair_mnm")).loss == exactly(value)


# The anchor, which no paper has


@pytest.mark.parametrize(
    "name, value",
    [(name, count * math.log(2)) for name, count in zip(RANKED[:5], (1, 3, 1, 6, 1), strict=True)]
    + [("list_mle", math.log(24))],
)
def test_with_an_anchor_a_policy_equal_to_refm1_starts_at_a_difference_of_zero(four, evaluate, exactly, name, value):
    at_first = four([[mean * count for mean, count in zip(MEANS, TOKENS, strict=True)]])
    got = evaluate(loss, at_first, variant(name, anchor="virtual"))
    assert got.loss == exactly(value) and got.output.rewards.abs().max().item() == exactly(0.0)


def test_an_anchor_is_the_virtual_reference_per_token_of_the_policy(batch_of, evaluate, exactly):
    """v = -log(0.5 / pi^1 + 0.5 / pi^2)."""
    logps = batch_of([[-5.0, -4.0]], [[-6.0, -4.0], [-4.0, -9.0]], lengths=[[10, 5]], reference_lengths=[[[9, 9]]] * 2)
    got = evaluate(loss, logps, Config(anchor="virtual", weights="uniform", ctro="none"))
    virtual = [-math.log(0.5 * math.exp(first) + 0.5 * math.exp(second)) for first, second in ((6, 4), (4, 9))]
    chosen = math.exp(-0.5) - math.exp(virtual[0] / 10)
    rejected = math.exp(-0.8) - math.exp(virtual[1] / 5)
    slope = 1 / (1 + math.exp(chosen - rejected))
    assert got.output.rewards[0].tolist() == exactly([chosen, rejected])
    assert got.loss == exactly(nls(chosen - rejected))
    assert got.gradients[0] == exactly([-slope * math.exp(-0.5) / 10, slope * math.exp(-0.8) / 5])
    assert got.output.stats["vref/logps/chosen"].item() == exactly(virtual[0])


# Options


@pytest.mark.parametrize("name", POINT)
def test_point_variants_ask_for_scores_in_a_range_and_cannot_be_anchored(refusal, name):
    asked = needs(Config(variant=name, score_scale=5.0))
    assert asked.score_range == (0.0, 5.0) and asked.views == ("point", "ranked") and asked.references == 0
    message = f"loss.anchor is 'virtual'; allowed: none for loss.variant={name}: a score is no difference."
    assert refusal(Config, {"variant": name, "anchor": "virtual"}) == message


@pytest.mark.parametrize(
    "options, draws",
    [
        ({"variant": "pair_single"}, True),
        ({"variant": "pair_single", "negative": "worst"}, False),
        ({"variant": "pair_mcs", "combinations": "one"}, True),
        ({"variant": "pair_mcs"}, False),
        ({"variant": "pair_mns", "combinations": "one"}, False),
    ],
)
def test_random_numbers_are_asked_for_where_something_is_drawn(options, draws):
    assert needs(Config(**options)).draws == draws


def test_references_are_asked_for_by_an_anchor_only():
    weights = {"weights": [0.5, 0.3, 0.2]}
    assert needs(Config(**weights)).references == 0 and needs(Config(**weights)).exactly is None
    anchored = needs(Config(anchor="virtual", **weights))
    assert anchored.references == 1 and anchored.exactly == (3, "loss.weights=[0.5, 0.3, 0.2]")


def test_a_score_scale_of_zero_is_refused(refusal):
    assert refusal(Config, {"score_scale": 0.0}) == "loss.score_scale is 0.0; allowed: > 0."
