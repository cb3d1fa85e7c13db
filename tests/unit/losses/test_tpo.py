"""TPO against numbers made by hand.

    loss = softplus(-z) + alpha * NLL(y_gold)
    tpo    z = beta * (l_w - l_l)              d loss / d l_w = -beta * sigmoid(-z)
    tpo_l  z = beta * (m_w - m_l) - gamma      d loss / d l_w = -beta * sigmoid(-z) / T_w

Token example: gold -.3 -.2 -.4 -.1 -.5 = -1.5 in 5 tokens, mean -0.3; chosen -2.0 in 4, rejected -3.3 in 3.
tpo: z = 0.1 * 1.3 = 0.13. tpo_l with beta 2, gamma 1.6: z = 2 * 0.6 - 1.6 = -0.4.
"""

import math

import pytest

from mrpo_ds.losses.tpo import CHOSEN, GOLD, Config, loss, needs

PREFERENCE = 0.6302581946816907
PULL = 0.1 / (1 + math.exp(0.13))


@pytest.fixture
def triple(batch_of):
    return lambda **fields: batch_of([[-1.5, -2.0, -3.3]], **({"lengths": [[5, 4, 3]]} | fields))


@pytest.mark.parametrize(
    "options, value, gradients",
    [
        ({"alpha": 0.0}, PREFERENCE, [0.0, -PULL, PULL]),
        ({}, 0.9302581946816907, [-1 / 5, -PULL, PULL]),
        ({"nll_reduction": "seq_mean"}, 0.9302581946816907, [-1 / 5, -PULL, PULL]),
        ({"nll_reduction": "sum"}, 2.130258194681691, [-1.0, -PULL, PULL]),
        (
            {"beta": 0.2, "alpha": 0.9},
            0.8415734864417375,
            [-0.9 / 5, -0.2 / (1 + math.exp(0.26)), 0.2 / (1 + math.exp(0.26))],
        ),
        (
            {"variant": "tpo_l", "beta": 2.0, "gamma": 1.6, "alpha": 0.05},
            0.9280152523999526,
            [-0.05 / 5, -2 / (1 + math.exp(-0.4)) / 4, 2 / (1 + math.exp(-0.4)) / 3],
        ),
    ],
)
def test_token_example(triple, evaluate, exactly, options, value, gradients):
    got = evaluate(loss, triple(), Config(**({"beta": 0.1, "alpha": 1.0} | options)))
    assert got.loss == exactly(value)
    assert got.gradients[0] == exactly(gradients)


@pytest.mark.parametrize(
    "options, value",
    [
        ({"comparison": "hinge"}, 1 - 0.13),
        ({"comparison": "ipo"}, (0.6 - 5) ** 2),
        ({"label_smoothing": 0.1}, 0.9 * PREFERENCE + 0.1 * (PREFERENCE + 0.13)),  # softplus(h) = softplus(-h) + h
        ({"variant": "tpo_l", "comparison": "hinge", "gamma": 0.5}, 1 - (0.06 - 0.5)),
    ],
)
def test_other_comparisons(triple, exactly, options, value):
    assert loss(triple(), Config(beta=0.1, alpha=0.0, **options)).losses.item() == exactly(value)


def test_the_token_mean_is_over_the_gold_tokens_of_the_step(batch_of, evaluate, exactly):
    """1 nat in 2 tokens and 6 in 8; the preference part is ln 2 for both."""
    logps = batch_of([[-1.0, -7.0, -7.0], [-6.0, -9.0, -9.0]], lengths=[[2, 5, 5], [8, 5, 5]])
    assert evaluate(loss, logps, Config()).loss == exactly(math.log(2) + 7.0 / 10)
    assert evaluate(loss, logps, Config(nll_reduction="seq_mean")).loss == exactly(math.log(2) + (1 / 2 + 6 / 8) / 2)


@pytest.mark.parametrize(
    "options, rewards",
    [
        ({}, [-0.15, -0.2, -0.33]),
        ({"variant": "tpo_l", "gamma": 0.5}, [-0.03, -0.05, -0.11]),
        ({"comparison": "ipo"}, [-0.03, -0.05, -0.11]),
    ],
)
def test_rewards_are_beta_times_what_is_compared(triple, exactly, options, rewards):
    output = loss(triple(), Config(beta=0.1, **options))
    assert output.rewards.tolist()[0] == exactly(rewards)
    assert output.stats["logps/gold"].tolist() == [-1.5]


def test_the_chosen_response_is_the_second_and_the_gold_one_is_not_scored_without_a_weight():
    assert needs(Config()).chosen == needs(Config(alpha=0.0)).chosen == CHOSEN
    assert needs(Config()).unused == () and needs(Config(alpha=0.0)).unused == (GOLD,)


def test_without_a_weight_there_is_nothing_to_say_about_the_gold_response(triple):
    output = loss(triple(), Config(alpha=0.0))
    assert output.per_token is None and output.stats == {}


def test_the_gold_response_may_be_the_chosen_one(batch_of, evaluate, exactly):
    """Then it is CPO."""
    logps = batch_of([[-2.0, -2.0, -3.3]], lengths=[[4, 4, 3]])
    assert evaluate(loss, logps, Config(beta=0.1)).loss == exactly(1.130258194681691)


@pytest.mark.parametrize("fields", [{"lengths": [[0, 4, 3]]}, {"present": [[True, True, False]]}])
def test_a_triple_without_gold_tokens_or_a_third_response_is_dropped(triple, evaluate, fields):
    got = evaluate(loss, triple(**fields), Config())
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and got.gradients == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gamma": 0.5}, "loss.gamma is 0.5; allowed: 0, unless loss.variant is tpo_l, without ipo."),
        (
            {"gamma": 0.5, "variant": "tpo_l", "comparison": "ipo"},
            "loss.gamma is 0.5; allowed: 0, unless loss.variant is tpo_l, without ipo.",
        ),
        ({"alpha": -1.0}, "loss.alpha is -1.0; allowed: >= 0."),
        (
            {"comparison": "ipo", "label_smoothing": 0.1},
            "loss.label_smoothing is 0.1; allowed: 0 unless loss.comparison is sigmoid.",
        ),
    ],
)
def test_options_out_of_range_are_refused_by_name(refusal, options, message):
    assert refusal(Config, options) == message
