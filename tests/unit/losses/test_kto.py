"""KTO against numbers made by hand.

    rho = l - r
    desirable    lam_d * (1 - sigmoid(beta * (rho - z0)))
    undesirable  lam_u * (1 - sigmoid(beta * (z0 - rho)))

Token example: rho = 0.1 and -0.5. With z0 = 0.1 the desirable one costs 1 - sigmoid(0) = 0.5, the other
1 - sigmoid(0.06) = 0.48500...
"""

import math

import pytest

from mrpo_ds.losses.kto import Config, loss

Z_TENTH = [0.5, 0.4850044983805899]
Z_ZERO = [0.4975000208331250, 0.4875026035157897]


@pytest.fixture
def singles(batch_of):
    """(further fields) -> the responses of the token example as two prompts, labelled 1 and 0."""
    tokens = {"lengths": [[4], [3]], "reference_lengths": [[[4], [3]]], "scores": [[1.0], [0.0]]}
    return lambda **fields: batch_of([[-2.0], [-3.3]], [[[-2.1], [-2.8]]], **(tokens | fields))


@pytest.mark.parametrize("baseline, values", [(0.1, Z_TENTH), (0.0, Z_ZERO), (-0.4, Z_ZERO)])
def test_single_responses_against_the_baseline_clamped_at_zero(singles, exactly, baseline, values):
    output = loss(singles(baseline=[baseline]), Config(beta=0.1))
    assert output.losses.tolist() == exactly(values)
    assert output.stats["kl"].tolist() == exactly([max(baseline, 0.0)] * 2)
    assert output.rewards.flatten().tolist() == exactly([0.01, -0.05])


def test_gradients(singles, evaluate, exactly):
    """The step's loss is the mean over two prompts."""
    got = evaluate(loss, singles(baseline=[0.1]), Config(beta=0.1))
    assert got.loss == exactly(0.4925022491902950)
    assert [2 * row[0] for row in got.gradients] == exactly([-0.025, 0.02497751349311823])


def test_a_pair_is_the_mean_of_its_two_responses(token_pair, evaluate, exactly):
    """Its baseline is the mean over both columns: (0.3 - 0.1) / 2."""
    got = evaluate(loss, token_pair(baseline=[0.3, -0.1]), Config(beta=0.1))
    assert got.loss == exactly(0.4925022491902950)
    assert got.gradients[0] == exactly([-0.025 / 2, 0.02497751349311823 / 2])


def test_kl_pair_sets_each_response_against_the_other_ones_mean(token_pair, exactly):
    """The chosen one against max(0, -0.5) = 0, the rejected one against 0.1."""
    output = loss(token_pair(baseline=[0.1, -0.5]), Config(beta=0.1, kl="pair"))
    assert output.losses.item() == exactly((0.4975000208331250 + 0.4850044983805899) / 2)


def test_the_labels_weigh_as_told_to_the_last_digit(singles, exactly):
    output = loss(singles(baseline=[0.1]), Config(beta=0.1, lam_d=1.3, lam_u=0.7))
    assert output.losses.tolist() == exactly([1.3 * Z_TENTH[0], 0.7 * Z_TENTH[1]])


def test_p24_policy_equal_to_the_reference_starts_at_a_half(batch_of):
    logps = batch_of([[-5.0, -9.0]], [[-5.0, -9.0]], baseline=[0.0, 0.0])
    assert loss(logps, Config()).losses.item() == 0.5


@pytest.mark.parametrize("label, sign", [(2.0, -1), (0.5, -1), (0.0, 1), (-3.0, 1)])
def test_a_score_above_zero_is_desirable_and_a_batch_may_have_one_label_only(batch_of, evaluate, exactly, label, sign):
    """rho = z0, so that either costs a half."""
    got = evaluate(loss, batch_of([[-2.0]], [[-2.1]], scores=[[label]], baseline=[0.1]), Config(beta=0.1))
    assert got.loss == exactly(0.5) and got.gradients[0] == exactly([sign * 0.025])


@pytest.mark.parametrize("scores", [[[1.0], [math.nan]], None])
def test_a_single_response_without_a_label_is_dropped(singles, evaluate, scores):
    got = evaluate(loss, singles(baseline=[0.1], scores=scores), Config(beta=0.1))
    assert got.output.valid.tolist() == [scores is not None, False]
    assert got.output.losses[1].item() == 0.0 and got.gradients[1] == [0.0]


def test_a_pair_needs_no_scores(token_pair):
    output = loss(token_pair(baseline=[0.0, 0.0], scores=None), Config())
    assert output.valid.tolist() == [True]


@pytest.mark.parametrize("key", ["lam_d", "lam_u"])
def test_weights_may_be_zero_but_not_less(refusal, key):
    Config(**{key: 0.0})
    assert refusal(Config, {key: -0.1}) == f"loss.{key} is -0.1; allowed: >= 0."
