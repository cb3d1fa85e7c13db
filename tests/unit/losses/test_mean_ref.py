"""Mean-Ref against numbers computed with 60 digits: DPO against v = log sum_k a_k pi^k, on examples A, B and C."""

import pytest
import torch

from mrpo_ds.losses import mrpo
from mrpo_ds.losses.mean_ref import Config, loss

# example, weights, ctro: loss
GOLDEN = [
    ("A", "arwc", "none", 0.8766330863614638),
    ("A", "arwc", "fixed", 0.8363551009848913),
    ("A", "arwc", "adaptive", 0.6681679520149656),
    ("A", "uniform", "none", 0.7927631357265739),
    ("A", "uniform", "fixed", 0.7555616224944694),
    ("A", "uniform", "adaptive", 0.6063907593433681),
    ("B", "arwc", "none", 7.435404000403207),
    ("B", "arwc", "fixed", 3.519864308099576),
    ("B", "arwc", "adaptive", 2.525151278525770),
    ("B", "uniform", "adaptive", 2.379170748557836),
    ("C", "arwc", "adaptive", 0.6717617567951109),
]


@pytest.mark.parametrize("name, weights, ctro, value", GOLDEN)
def test_examples(example, evaluate, exactly, name, weights, ctro, value):
    """d loss / d h = -(1 - sigmoid(h)), and sigmoid(h) = exp(-loss)."""
    got = evaluate(loss, example(name), Config(weights=weights, ctro=ctro))
    slope = 0.1 * (1 - torch.tensor(-value, dtype=torch.float64).exp().item())
    assert got.loss == exactly(value)
    assert got.gradients[0] == exactly([-slope, slope])


def test_by_default_the_references_are_clipped_and_weigh_the_same(example, evaluate, exactly):
    assert evaluate(loss, example("A"), Config()).loss == exactly(0.6063907593433681)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_it_is_mrpo_with_another_mean(example, mean):
    options = {"virtual_ref": mean, "weights": "uniform"}
    got, wanted = loss(example("B"), Config(**options)), mrpo.loss(example("B"), mrpo.Config(**options))
    assert torch.equal(got.losses, wanted.losses) and torch.equal(got.rewards, wanted.rewards)


def test_the_margin_against_refm1_is_logged_too(example, exactly):
    """beta * [(-52.3 + 55.1) - (-61.7 + 60.2)]; that of the rewards is against v."""
    output = loss(example("A"), Config(beta=0.1))
    assert output.stats["rewards_ref1/margins"].tolist() == exactly([0.43])
    assert (output.rewards[0, 0] - output.rewards[0, 1]).item() != exactly(0.43)


def test_the_harmonic_mean_is_refused(refusal):
    message = "loss.virtual_ref is 'harmonic'; allowed: arithmetic | geometric."
    assert refusal(Config, {"virtual_ref": "harmonic"}) == message
