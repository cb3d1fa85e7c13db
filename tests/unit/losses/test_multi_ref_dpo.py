"""Multi-DPO against numbers computed with 60 digits, and how its gradients compare with MRPO's.

    loss = sum_k a_k softplus(-h_k)    d loss / d l_w = -beta * sum_k a_k sigmoid(-h_k)

with h_k the DPO margin against reference k, clipped.
"""

import pytest
import torch

from mrpo_ds.losses import mrpo
from mrpo_ds.losses.multi_ref_dpo import Config, loss

# example, weights, ctro: loss, d loss / d l_w where the document has it
GOLDEN = [
    ("A", "arwc", "none", 1.355261570595496, -0.07148221122551047),
    ("A", "arwc", "fixed", 1.004504225003677, -0.06216868996808056),
    ("A", "arwc", "adaptive", 0.7208645485833701, -0.05108459345355041),
    ("A", "uniform", "none", 1.024979492562711, -0.05908197437228501),
    ("A", "uniform", "fixed", 0.8098483205997284, -0.05336968133439467),
    ("A", "uniform", "adaptive", 0.6358826523952732, -0.04657143547214951),
    ("B", "arwc", "none", 7.164353418142339, None),
    ("B", "arwc", "fixed", 3.226960897436548, None),
    ("B", "arwc", "adaptive", 2.307031192312851, -0.08555114874079131),
    ("B", "uniform", "adaptive", 2.044088207380535, None),
    ("C", "arwc", "adaptive", 0.6690838029698076, None),
]


@pytest.mark.parametrize("name, weights, ctro, value, gradient", GOLDEN)
def test_examples(example, evaluate, exactly, name, weights, ctro, value, gradient):
    got = evaluate(loss, example(name), Config(weights=weights, ctro=ctro))
    assert got.loss == exactly(value)
    chosen, rejected = got.gradients[0]
    assert chosen == exactly(-rejected if gradient is None else gradient) and rejected == exactly(-chosen)


def test_by_default_the_references_are_clipped_and_weigh_the_same(example, evaluate, exactly):
    assert evaluate(loss, example("A"), Config()).loss == exactly(0.6358826523952732)


def test_the_authors_code_is_this_with_its_1e_6(example, evaluate, exactly):
    """Its weights are not swapped here, as they are in its MRPO."""
    share = 22.5 / (22.5 + 5.1 + 1e-6)
    got = evaluate(loss, example("A"), Config(weights=[1 - share, share]))
    assert got.loss == exactly(0.7208645406202992)


@pytest.mark.parametrize("k, value", [(0, 1.482550929954724), (1, 0.002538277931982334), (2, 14.45000053020598)])
def test_all_weight_on_one_reference_is_dpo(example, evaluate, exactly, k, value):
    weights = [0.0, 0.0, 0.0]
    weights[k] = 1.0
    assert evaluate(loss, example("B"), Config(weights=weights, ctro="none")).loss == exactly(value)


def test_rewards_are_against_refm1_and_clipping_is_logged(example, exactly):
    output = loss(example("A"), Config())
    assert output.rewards.tolist()[0] == exactly([0.28, -0.15])
    assert output.stats["weight"].squeeze(-1).tolist() == [0.5, 0.5]
    assert output.stats["clip_fraction"].squeeze(-1).tolist() == [0.0, 1.0]


# policy, references, a_1; W of MRPO, of Multi-DPO and of MRPO's geometric reference
PROPOSITION_2 = {
    "CE1": ([-17, -10], [[-14, -10], [-10, -10]], 0.5, 0.5908546860384761, 0.6213151444899125, 0.6224593312018546),
    "CE2": ([-10, -17], [[-10, -14], [-10, -10]], 0.5, 0.4091453139615239, 0.3786848555100875, 0.3775406687981454),
    "OK1": ([-12, -10], [[-10, -14], [-10, -10]], 0.5, 0.6300660723212115, 0.5977451517691367, None),
    "OK2": ([-10, -12], [[-14, -10], [-10, -10]], 0.5, 0.3699339276787885, 0.4022548482308633, None),
    "EQ": ([-10, -12], [[-11, -11.5]] * 2, 0.3, 0.4625701546562505, 0.4625701546562505, 0.4625701546562505),
}


@pytest.mark.parametrize("name", PROPOSITION_2)
def test_the_papers_proposition_2_holds_in_some_cases_and_not_in_others(batch_of, evaluate, exactly, name):
    """It claims that W = |d loss / d l_w| / beta of MRPO is the larger one if every d_k = -h_k is positive.

    CE1 and CE2, its mirror image, are counterexamples; with the geometric reference it is true.
    """
    policy, references, first, ours, multi, geometric = PROPOSITION_2[name]
    options = {"weights": [first, 1 - first], "ctro": "none", "beta": 0.1}

    def weight(function, config):
        return -evaluate(function, batch_of([policy], references), config).gradients[0][0] / 0.1

    assert weight(mrpo.loss, mrpo.Config(**options)) == exactly(ours)
    assert weight(loss, Config(**options)) == exactly(multi)
    if geometric is not None:
        assert weight(mrpo.loss, mrpo.Config(virtual_ref="geometric", **options)) == exactly(geometric)


def test_the_first_counterexample_in_numbers(batch_of, exactly):
    policy, references, *_ = PROPOSITION_2["CE1"]
    logps = batch_of([policy], references)
    options = {"weights": [0.5, 0.5], "ctro": "none"}
    harmonic, geometric = (
        mrpo.loss(logps, mrpo.Config(virtual_ref=mean, **options)) for mean in ("harmonic", "geometric")
    )
    assert (harmonic.rewards[0, 1] - harmonic.rewards[0, 0]).item() == exactly(0.3674997252642136)  # d of MRPO
    for name, disagreement in (("chosen", 1.325002747357864), ("rejected", 0.0)):
        key = f"vref/logps/{name}"
        assert (geometric.stats[key] - harmonic.stats[key]).item() == exactly(disagreement)
    each = 0.1 * (logps.reference - logps.policy)  # [K, 1, 2]
    assert torch.diff(-each, dim=-1).flatten().tolist() == exactly([0.3, 0.7])
