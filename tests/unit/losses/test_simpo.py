"""SimPO against numbers made by hand, and its options.

    m = l / T    z = beta * (m_w - m_l) - gamma    loss = softplus(-z)
    d loss / d m_w = -beta * sigmoid(-z),  d loss / d l_w = that / T_w

Token example: m = -2.0 / 4 = -0.5 and -3.3 / 3 = -1.1; beta 2, gamma 1: z = 2 * 0.6 - 1 = 0.2,
softplus(-0.2) = 0.59813..., 2 * sigmoid(-0.2) = 0.90033...
"""

import pytest
import torch
import torch.nn.functional as F

from mrpo_ds.losses.simpo import Config, loss


@pytest.mark.parametrize("margin", [{"gamma": 1.0}, {"gamma_beta_ratio": 0.5}, {}])
def test_token_example(token_pair, evaluate, exactly, margin):
    got = evaluate(loss, token_pair(), Config(beta=2.0, **margin))
    assert got.loss == exactly(0.5981388693815918)
    assert got.gradients[0] == exactly([-0.2250830013437610, 0.3001106684583481])
    assert 4 * got.gradients[0][0] == exactly(-0.9003320053750442)


def test_a_ratio_is_multiplied_by_beta_and_a_gamma_is_not(token_pair):
    ratio, gamma = Config(beta=4.0, gamma_beta_ratio=0.5), Config(beta=4.0, gamma=0.5)
    assert (ratio.margin, gamma.margin) == (2.0, 0.5)
    assert loss(token_pair(), ratio).losses.item() > loss(token_pair(), gamma).losses.item()


def test_an_sft_weight_adds_the_mean_over_the_chosen_tokens(token_pair, evaluate, exactly):
    """2.0 nats over 4 tokens, so 0.5 of 0.5."""
    got = evaluate(loss, token_pair(), Config(beta=2.0, gamma=1.0, sft_weight=0.5))
    assert got.loss == exactly(0.5981388693815918 + 0.5 * 0.5)
    assert got.gradients[0] == exactly([-0.2250830013437610 - 0.5 / 4, 0.3001106684583481])


def test_rewards_are_beta_times_the_mean_without_the_margin(token_pair, exactly):
    output = loss(token_pair(), Config(beta=2.0, gamma=1.0))
    assert output.rewards.tolist()[0] == exactly([-1.0, -2.2])
    assert output.stats == {} and output.per_token is None


def test_without_a_margin_and_with_equal_lengths_it_is_a_plain_log_sigmoid_of_the_sums(token_pair):
    """The preference part of CPO with beta / T."""
    value = loss(token_pair(lengths=torch.tensor([[5, 5]])), Config(beta=2.0, gamma=0.0)).losses
    torch.testing.assert_close(value, -F.logsigmoid(torch.tensor([2.0 / 5 * (-2.0 + 3.3)], dtype=torch.float64)))


def test_a_response_without_a_scored_token_makes_the_pair_invalid_and_not_infinite(token_pair, evaluate):
    got = evaluate(loss, token_pair(lengths=[[4, 0]]), Config(sft_weight=1.0))
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and got.gradients == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gamma": -0.1}, "loss.gamma is -0.1; allowed: >= 0, or null."),
        ({"gamma_beta_ratio": -1.0}, "loss.gamma_beta_ratio is -1.0; allowed: >= 0, or null."),
        ({"sft_weight": -0.1}, "loss.sft_weight is -0.1; allowed: >= 0."),
        (
            {"gamma_beta_ratio": 0.5, "gamma": 1.0},
            "loss.gamma is 1.0; allowed: null while loss.gamma_beta_ratio is 0.5. They set the same margin: give one "
            "of them.",
        ),
    ],
)
def test_options_out_of_range_or_in_conflict_are_refused_by_name(refusal, options, message):
    assert refusal(Config, options) == message
