"""SimPO against numbers made by hand, and its options.

    m = l / T    z = beta * (m_w - m_l) - gamma    loss = softplus(-z)
    d loss / d m_w = -beta * sigmoid(-z),  d loss / d l_w = that / T_w

T: sums -2.0 over 4 tokens and -3.3 over 3, so m = -0.5 and -1.1; beta 2, gamma 1: z = 2 * 0.6 - 1 = 0.2,
softplus(-0.2) = 0.59813..., 2 * sigmoid(-0.2) = 0.90033...
"""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from mrpo_ds.errors import ConfigError
from mrpo_ds.losses.simpo import Config, check_references, loss

SUMS, TOKENS = [-2.0, -3.3], [4, 3]


@pytest.fixture
def pair(batch_of):
    """(sums, tokens, number of references) -> a batch of one pair; the references hold nonsense."""

    def build(sums=SUMS, tokens=TOKENS, references=0):
        logps = batch_of([sums], torch.full((references, 1, 2), math.nan))
        return replace(logps, lengths=torch.tensor([tokens]))

    return build


@pytest.mark.parametrize("margin", [{"gamma": 1.0}, {"gamma_beta_ratio": 0.5}, {}])
def test_golden(pair, margin):
    logps = pair()
    output = loss(logps, Config(beta=2.0, **margin))
    assert output.losses.item() == pytest.approx(0.5981388693815918, abs=1e-12)
    output.losses.sum().backward()
    assert logps.policy.grad.tolist()[0] == pytest.approx([-0.2250830013437610, 0.3001106684583481], abs=1e-12)


def test_rewards_are_beta_times_the_mean_without_the_margin(pair):
    output = loss(pair(), Config(beta=2.0, gamma=1.0))
    assert output.rewards.tolist()[0] == pytest.approx([-1.0, -2.2], abs=1e-12)
    assert output.stats == {}


def test_p22_repeating_the_tokens_of_a_response_changes_nothing(pair):
    doubled = pair([2 * SUMS[0], 3 * SUMS[1]], [2 * TOKENS[0], 3 * TOKENS[1]])
    torch.testing.assert_close(loss(doubled, Config()).losses, loss(pair(), Config()).losses)


def test_without_a_margin_and_with_equal_lengths_it_is_a_plain_log_sigmoid_of_the_sums(pair):
    """The preference part of CPO with beta / T."""
    value = loss(pair(tokens=[5, 5]), Config(beta=2.0, gamma=0.0)).losses
    torch.testing.assert_close(value, -F.logsigmoid(torch.tensor([2.0 / 5 * (SUMS[0] - SUMS[1])]).double()))


def test_references_are_ignored_even_when_broken(pair):
    accompanied = loss(pair(references=3), Config())
    assert accompanied.valid.tolist() == [True]
    assert torch.equal(accompanied.losses, loss(pair(), Config()).losses)
    for references in range(4):
        check_references(Config(), references)


def test_a_response_without_a_scored_token_makes_the_pair_invalid_and_not_infinite(pair):
    logps = pair(tokens=[4, 0])
    output = loss(logps, Config())
    assert output.valid.tolist() == [False] and output.losses.tolist() == [0.0]
    output.losses.sum().backward()
    assert logps.policy.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta": 0.0}, "loss.beta is 0.0; allowed: > 0."),
        ({"beta": math.inf}, "loss.beta is inf; allowed: > 0."),
        ({"gamma": -0.1}, "loss.gamma is -0.1; allowed: >= 0, or null."),
        ({"gamma": math.nan}, "loss.gamma is nan; allowed: >= 0, or null."),
        ({"gamma_beta_ratio": -1.0}, "loss.gamma_beta_ratio is -1.0; allowed: >= 0, or null."),
        (
            {"gamma_beta_ratio": 0.5, "gamma": 1.0},
            "loss.gamma is 1.0; allowed: null while loss.gamma_beta_ratio is 0.5. They set the same margin: give one "
            "of them.",
        ),
    ],
)
def test_options_out_of_range_or_in_conflict_are_refused_by_name(options, message):
    with pytest.raises(ConfigError) as error:
        Config(**options)
    assert str(error.value) == message


def test_options_are_frozen_and_survive_being_written_out():
    with pytest.raises(FrozenInstanceError):
        Config().beta = 1.0
    for config in (Config(), Config(gamma=0.0), Config(gamma_beta_ratio=0.3)):
        assert OmegaConf.to_object(OmegaConf.structured(config)) == config
