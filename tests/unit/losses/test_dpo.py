"""DPO against numbers made by hand, and its options.

    h = beta * [(l_w - r_w) - (l_l - r_l)]    loss = softplus(-h)    d loss / d l_w = -beta * sigmoid(-h)

A1: h = 0.1 * [(-52.3 + 55.1) - (-61.7 + 60.2)] = 0.1 * (2.8 + 1.5) = 0.43, softplus(-0.43) = 0.50108...
"""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from mrpo_ds.errors import ConfigError
from mrpo_ds.losses.dpo import Config, check_references, loss

A1 = ([-52.3, -61.7], [-55.1, -60.2])
A2 = ([-52.3, -61.7], [-48.9, -71.4])
T = ([-2.0, -3.3], [-2.1, -2.8])


@pytest.mark.parametrize(
    "pair, smoothing, value, gradient",
    [
        (A1, 0.0, 0.5010837825796713, -0.03941263315682394),
        (A2, 0.0, 1.548875202545750, -0.07875131558774608),
        (T, 0.0, 0.6635971130761409, -0.1 / (1 + math.exp(0.06))),
        (T, 0.1, 0.6695971130761409, -0.03850044983805899),
    ],
)
def test_golden(batch_of, pair, smoothing, value, gradient):
    policy, reference = pair
    logps = batch_of([policy], [[reference]])
    output = loss(logps, Config(beta=0.1, label_smoothing=smoothing))
    assert output.losses.item() == pytest.approx(value, abs=1e-9)
    output.losses.sum().backward()
    assert logps.policy.grad.tolist()[0] == pytest.approx([gradient, -gradient], abs=1e-9)


def test_rewards_are_beta_times_the_log_ratio(batch_of):
    output = loss(batch_of([A1[0]], [[A1[1]]]), Config(beta=0.1))
    assert output.rewards.tolist()[0] == pytest.approx([0.28, -0.15], abs=1e-12)
    assert output.stats == {}


def test_p24_policy_equal_to_the_reference_starts_at_ln_2(batch_of):
    logps = batch_of([A1[1]], [[A1[1]]])
    output = loss(logps, Config(beta=0.3))
    assert output.losses.item() == pytest.approx(0.6931471805599453, abs=1e-15)
    output.losses.sum().backward()
    assert logps.policy.grad.tolist()[0] == pytest.approx([-0.15, 0.15], abs=1e-15)


def test_references_after_the_first_are_ignored_even_when_broken(batch_of):
    alone = loss(batch_of([A1[0]], [[A1[1]]]), Config())
    accompanied = loss(batch_of([A1[0]], [[A1[1]], [[math.nan, -1.0]]]), Config())
    assert accompanied.valid.tolist() == [True]
    assert torch.equal(accompanied.losses, alone.losses)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta": 0.0}, "loss.beta is 0.0; allowed: > 0."),
        ({"beta": math.nan}, "loss.beta is nan; allowed: > 0."),
        ({"beta": math.inf}, "loss.beta is inf; allowed: > 0."),
        ({"label_smoothing": 0.5}, "loss.label_smoothing is 0.5; allowed: 0 <= value < 0.5."),
        ({"label_smoothing": -0.1}, "loss.label_smoothing is -0.1; allowed: 0 <= value < 0.5."),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ConfigError) as error:
        Config(**options)
    assert str(error.value) == message


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().beta = 1.0


def test_no_reference_is_refused():
    check_references(Config(), 1)
    check_references(Config(), 3)
    with pytest.raises(ConfigError, match="the number of references is 0; allowed: >= 1 for loss.name=dpo"):
        check_references(Config(), 0)
