"""CPO against numbers made by hand.

    loss = -log sigmoid(h) + alpha * NLL(y_w), h = beta * (l_w - l_l)
    d loss / d l_w = -beta * sigmoid(-h) - alpha / (tokens of the mean)

Token example: h = 0.1 * (-2.0 + 3.3) = 0.13, softplus(-0.13) = 0.63025...; NLL 2.0 nats over 4 tokens.
"""

import math

import pytest

from mrpo_ds.losses.cpo import Config, loss

PREFERENCE = 0.6302581946816907
PULL = 0.1 / (1 + math.exp(0.13))


@pytest.mark.parametrize(
    "options, value, per_chosen_nat",
    [
        ({"alpha": 0.0}, PREFERENCE, 0.0),
        ({}, 1.130258194681691, 1 / 4),
        ({"nll_reduction": "seq_mean"}, 1.130258194681691, 1 / 4),
        ({"nll_reduction": "sum"}, 2.630258194681691, 1.0),
    ],
)
def test_token_example(token_pair, evaluate, exactly, options, value, per_chosen_nat):
    got = evaluate(loss, token_pair(), Config(beta=0.1, **options))
    assert got.loss == exactly(value)
    assert got.gradients[0] == exactly([-PULL - per_chosen_nat, PULL])


@pytest.mark.parametrize(
    "options, value",
    [
        ({"comparison": "hinge"}, 1 - 0.13),
        ({"label_smoothing": 0.1}, 0.9 * PREFERENCE + 0.1 * (PREFERENCE + 0.13)),  # softplus(h) = softplus(-h) + h
    ],
)
def test_other_comparisons(token_pair, exactly, options, value):
    assert loss(token_pair(), Config(alpha=0.0, **options)).losses.item() == exactly(value)


@pytest.mark.parametrize("reduction, nll", [("token_mean", 3.0 / 10), ("seq_mean", (1 + 1 / 8) / 2), ("sum", 3.0 / 2)])
def test_the_token_mean_is_over_the_step_and_not_over_its_prompts(batch_of, evaluate, exactly, reduction, nll):
    """2 nats in 2 tokens and 1 in 8; the preference part is ln 2 for both."""
    logps = batch_of([[-2.0, -2.0], [-1.0, -1.0]], lengths=[[2, 2], [8, 8]])
    assert evaluate(loss, logps, Config(nll_reduction=reduction)).loss == exactly(math.log(2) + nll)


def test_rewards_are_beta_times_the_sums(token_pair, exactly):
    assert loss(token_pair(), Config(beta=0.1)).rewards.tolist()[0] == exactly([-0.2, -0.33])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": -0.1}, "loss.alpha is -0.1; allowed: >= 0."),
        ({"label_smoothing": 0.5}, "loss.label_smoothing is 0.5; allowed: 0 <= value < 0.5."),
    ],
)
def test_options_out_of_range_are_refused_by_name(refusal, options, message):
    assert refusal(Config, options) == message
