"""ORPO against numbers made by hand.

    log odds = m - log(1 - exp(m))    z = log odds_w - log odds_l    loss = NLL(y_w) + lam * softplus(-z)
    d loss / d m_w = -1 - lam * sigmoid(-z) / (1 - p_w),  d loss / d m_l = +lam * sigmoid(-z) / (1 - p_l)

Token example: m = -0.5 and -1.1.
"""

import math

import pytest
import torch

from mrpo_ds.losses.orpo import Config, log_odds, loss


def test_log_odds_of_the_token_example(exactly):
    odds = log_odds(torch.tensor([-0.5, -1.1], dtype=torch.float64))
    assert odds.tolist() == exactly([0.4327521295671886, -0.6952280260717100])


def test_token_example(token_pair, evaluate, exactly):
    """The gradients are those with respect to the means, divided by the tokens."""
    got = evaluate(loss, token_pair(), Config(lam=0.1))
    assert got.loss == exactly(0.5280420565952534)
    assert got.output.losses.item() == exactly(0.1 * 0.2804205659525342)
    assert got.output.stats["log_odds_ratio"].item() == exactly(1.127980155638899)
    assert got.gradients[0] == exactly([-1.062148183755382 / 4, 0.03665469186651385 / 3])


def test_without_lam_it_is_sft_on_the_chosen_response(token_pair, evaluate, exactly):
    got = evaluate(loss, token_pair(), Config(lam=0.0))
    assert got.loss == exactly(0.5) and got.gradients[0] == exactly([-1 / 4, 0.0])


def test_nll_full_is_over_the_tokens_of_the_prompt_too(token_pair, step_loss, exactly):
    """(2.0 + 4.0) nats over 4 + 6 tokens. The odds stay those of the response."""
    logps = token_pair(prompt=[-4.0], prompt_lengths=[6])
    total = step_loss(loss(logps, Config(lam=0.1, nll="full")))
    assert total.item() == exactly(0.6 + 0.1 * 0.2804205659525342)
    total.backward()
    assert logps.prompt.grad.item() == exactly(-1 / 10)
    assert logps.policy.grad[0, 0].item() == exactly(-1 / 10 - 0.062148183755382 / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sums", [[0.0, -3.3], [-2.0, 0.0], [0.0, 0.0], [-1e-9, -1e-9]])
def test_a_certain_response_costs_something_finite(batch_of, evaluate, sums, dtype):
    got = evaluate(loss, batch_of([sums], (), dtype), Config())
    assert all(map(math.isfinite, [got.loss, *got.gradients[0]]))


def test_rewards_are_lam_times_the_means(token_pair, exactly):
    assert loss(token_pair(), Config(lam=0.1)).rewards.tolist()[0] == exactly([-0.05, -0.11])


def test_lam_may_be_zero_but_not_less(refusal):
    Config(lam=0.0)
    assert refusal(Config, {"lam": -0.1}) == "loss.lam is -0.1; allowed: >= 0."
