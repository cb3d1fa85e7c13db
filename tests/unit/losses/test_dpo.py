"""DPO against numbers made by hand, and its options.

    h = beta * [(l_w - r_w) - (l_l - r_l)]    loss = softplus(-h)    d loss / d l_w = -beta * sigmoid(-h)

A, first reference: h = 0.1 * [(-52.3 + 55.1) - (-61.7 + 60.2)] = 0.1 * (2.8 + 1.5) = 0.43, softplus(-0.43) = 0.50108...
"""

import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.losses.dpo import Config, loss


@pytest.fixture
def against(example):
    """(k) -> example A with its reference k alone."""
    return lambda k: replace(
        example("A"), reference=example("A").reference[[k]], reference_lengths=example("A").reference_lengths[[k]]
    )


@pytest.mark.parametrize(
    "k, value, gradient",
    [(0, 0.5010837825796713, -0.03941263315682394), (1, 1.548875202545750, -0.07875131558774608)],
)
def test_example_a_against_each_of_its_references(against, evaluate, exactly, k, value, gradient):
    got = evaluate(loss, against(k), Config(beta=0.1))
    assert got.loss == exactly(value)
    assert got.gradients[0] == exactly([gradient, -gradient])


@pytest.mark.parametrize(
    "options, value, gradient",
    [
        ({}, 0.6635971130761409, -0.1 / (1 + math.exp(0.06))),
        ({"label_smoothing": 0.1}, 0.6695971130761409, -0.03850044983805899),
        ({"comparison": "hinge"}, 1 - 0.06, -0.1),
        ({"reference_free": True}, 0.6302581946816907, -0.1 / (1 + math.exp(0.13))),
    ],
)
def test_token_example(token_pair, evaluate, exactly, options, value, gradient):
    got = evaluate(loss, token_pair(), Config(beta=0.1, **options))
    assert got.loss == exactly(value)
    assert got.gradients[0] == exactly([gradient, -gradient])


def test_a_hinge_stops_pulling_beyond_a_margin_of_one(batch_of, evaluate):
    got = evaluate(loss, batch_of([[-10.0, -30.0]], [[-15.0, -20.0]]), Config(beta=0.1, comparison="hinge"))
    assert got.loss == 0.0 and got.gradients == [[0.0, 0.0]]


def test_rewards_are_beta_times_the_log_ratio(example, exactly):
    output = loss(example("A"), Config(beta=0.1))
    assert output.rewards.tolist()[0] == exactly([0.28, -0.15])
    assert output.stats == {} and output.per_token is None


def test_p24_policy_equal_to_the_reference_starts_at_ln_2(batch_of, evaluate):
    got = evaluate(loss, batch_of([[-55.1, -60.2]], [[-55.1, -60.2]]), Config(beta=0.3))
    assert got.loss == pytest.approx(0.6931471805599453, abs=1e-15)
    assert got.gradients[0] == pytest.approx([-0.15, 0.15], abs=1e-15)


def test_references_after_the_first_are_ignored(example, against):
    assert torch.equal(loss(example("A"), Config()).losses, loss(against(0), Config()).losses)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_smoothing": 0.5}, "loss.label_smoothing is 0.5; allowed: 0 <= value < 0.5."),
        (
            {"label_smoothing": 0.1, "comparison": "hinge"},
            "loss.label_smoothing is 0.1; allowed: 0 unless loss.comparison is sigmoid.",
        ),
    ],
)
def test_options_out_of_range_are_refused_by_name(refusal, options, message):
    assert refusal(Config, options) == message
