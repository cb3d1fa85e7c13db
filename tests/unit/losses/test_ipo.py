"""IPO against numbers made by hand.

    h = (l_w - r_w) - (l_l - r_l)    loss = (h - 1 / (2 tau))^2    d loss / d l_w = 2 * (h - 1 / (2 tau))

Token example with sums: h = 0.1 + 0.5 = 0.6, (0.6 - 5)^2 = 19.36. With means, h = (-0.5 + 0.525) - (-1.1 + 0.9333...).
"""

import pytest

from mrpo_ds.losses.ipo import Config, loss


def test_token_example_with_sums(token_pair, evaluate, exactly):
    got = evaluate(loss, token_pair(), Config(tau=0.1, length_norm=False))
    assert got.loss == exactly(19.36)
    assert got.gradients[0] == exactly([-8.8, 8.8])
    assert got.output.rewards.tolist()[0] == exactly([0.01, -0.05])


def test_token_example_with_means(token_pair, evaluate, exactly):
    """d loss / d m_w = -9.61..., m = l / T."""
    got = evaluate(loss, token_pair(), Config(tau=0.1))
    assert got.loss == exactly(23.12006944444444)
    assert got.gradients[0] == exactly([-9.616666666666667 / 4, 9.616666666666667 / 3])
    chosen, rejected = got.output.rewards.tolist()[0]
    assert (chosen - rejected) / 0.1 == exactly(0.1916666666666667)


def test_a_reference_is_averaged_over_its_own_tokens(token_pair, exactly):
    """-2.1 / 6 + 2.8 / 7 = 0.05, so h = -0.5 + 1.1 + 0.35 - 0.4 = 0.55."""
    output = loss(token_pair(reference_lengths=[[[6, 7]]]), Config(tau=0.1))
    assert output.losses.item() == exactly((0.55 - 5) ** 2)


@pytest.mark.parametrize("length_norm", [True, False])
def test_p24_policy_equal_to_the_reference_starts_at_the_square_of_the_target(batch_of, evaluate, exactly, length_norm):
    got = evaluate(loss, batch_of([[-5.0, -9.0]], [[-5.0, -9.0]]), Config(tau=0.2, length_norm=length_norm))
    assert got.loss == exactly(6.25)


def test_tau_may_not_be_zero(refusal):
    assert refusal(Config, {"tau": 0.0}) == "loss.tau is 0.0; allowed: > 0."
