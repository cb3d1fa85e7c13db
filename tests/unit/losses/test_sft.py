"""SFT against numbers made by hand, on the two responses of the token example: 2.0 nats in 4 tokens, 3.3 in 3."""

import pytest

from mrpo_ds.losses.sft import Config, loss


@pytest.fixture
def two(batch_of):
    return lambda **fields: batch_of([[-2.0], [-3.3]], **({"lengths": [[4], [3]]} | fields))


@pytest.mark.parametrize(
    "reduction, value, gradients",
    [("token_mean", 0.7571428571428571, [-1 / 7, -1 / 7]), ("seq_mean", 0.8, [-1 / 8, -1 / 6])],
)
def test_token_example(two, evaluate, exactly, reduction, value, gradients):
    got = evaluate(loss, two(), Config(reduction=reduction))
    assert got.loss == exactly(value)
    assert [row[0] for row in got.gradients] == exactly(gradients)


@pytest.mark.parametrize(
    "reduction, value, gradients",
    [("token_mean", 6.3 / 10, [-0.1, -0.1]), ("seq_mean", (2.5 / 6 + 3.8 / 4) / 2, [-1 / 12, -1 / 8])],
)
def test_with_the_prompts(two, step_loss, exactly, reduction, value, gradients):
    """0.5 nats each: in 2 tokens and in 1."""
    logps = two(prompt=[-0.5, -0.5], prompt_lengths=[2, 1])
    total = step_loss(loss(logps, Config(reduction=reduction, train_on_prompt=True)))
    total.backward()
    assert total.item() == exactly(value)
    assert logps.policy.grad.flatten().tolist() == logps.prompt.grad.tolist() == exactly(gradients)


def test_prompts_are_left_alone_unless_asked_for(two, evaluate, exactly):
    with_prompts = two(prompt=[-0.5, -0.5], prompt_lengths=[2, 1])
    assert evaluate(loss, with_prompts, Config()).loss == exactly(0.7571428571428571)


def test_a_response_without_a_token_is_no_division_by_zero(two, evaluate, exactly):
    for reduction in ("token_mean", "seq_mean"):
        got = evaluate(loss, two(lengths=[[4], [0]]), Config(reduction=reduction))
        assert got.output.valid.tolist() == [True, False]
        assert got.loss == exactly(0.5) and got.gradients == [[-0.25], [0.0]]


def test_rewards_are_the_sums(two):
    assert loss(two(), Config()).rewards.tolist() == [[-2.0], [-3.3]]
