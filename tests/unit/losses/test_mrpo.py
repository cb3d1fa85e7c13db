"""MRPO against numbers computed with 60 digits from the paper's equations, and its options.

Examples A, B and C are those of conftest.py. The numbers of the arithmetic mixture are in test_mean_ref.py, those of
the single steps (weights, eps, clipping) in tests/unit/ops/test_virtual_reference.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from mrpo_ds.losses.mrpo import Config, loss, needs


@pytest.fixture
def run(evaluate):
    """(batch, options) -> [loss, margin h, v_w, v_l] and the Result of a batch with one pair."""

    def compute(logps, **options):
        got = evaluate(loss, logps, Config(**options))
        chosen, rejected = got.output.rewards[0].tolist()
        virtual = [got.output.stats[f"vref/logps/{name}"].item() for name in ("chosen", "rejected")]
        return [got.loss, chosen - rejected, *virtual], got

    return compute


def with_references(logps, rows):
    """The batch with other references [K][R] for its one pair."""
    reference = torch.tensor(rows, dtype=logps.policy.dtype).unsqueeze(1)
    return replace(logps, reference=reference, reference_lengths=torch.full(reference.shape, 10))


# weights, ctro: loss, h, v_w, v_l, d loss / d l_w, loss of the geometric mixture
EXAMPLE_A = [
    ("arwc", "none", 1.197149823986669, -0.8375364342279289, -53.42033829368762, -71.19570263596691,
     -0.06979461070304555, 1.304851694584962),
    ("arwc", "fixed", 0.8651476829321631, -0.3187132318022692, -53.42911779197937, -66.01625011000206,
     -0.05790106249091692, 0.9802793615174706),
    ("arwc", "adaptive", 0.7045713105686730, -0.02271922203019861, -53.73894401134776, -63.36613623164974,
     -0.05056795612113483, 0.7145760184271585),
    ("uniform", "none", 1.096381167955530, -0.6897986299978737, -54.40888019356389, -70.70686649354263,
     -0.06659221294951738, 0.9371544503321098),
    ("uniform", "fixed", 0.7827531620698439, -0.1718388778816632, -54.41089076334360, -65.52927954216023,
     -0.05428543189948035, 0.7690775661319648),
    ("uniform", "adaptive", 0.6449896833077968, 0.09875199357483659, -54.49104530242043, -62.90352536667206,
     -0.04753320450835286, 0.6254759653591863),
]  # fmt: skip


@pytest.mark.parametrize("weights, ctro, value, h, chosen, rejected, gradient, geometric", EXAMPLE_A)
def test_example_a(example, run, exactly, weights, ctro, value, h, chosen, rejected, gradient, geometric):
    numbers, got = run(example("A"), weights=weights, ctro=ctro)
    assert numbers == exactly([value, h, chosen, rejected])
    assert got.gradients[0] == exactly([gradient, -gradient])
    assert run(example("A"), weights=weights, ctro=ctro, virtual_ref="geometric")[1].loss == exactly(geometric)


def test_example_a_statistics(example, exactly):
    output = loss(example("A"), Config())
    stats = {name: value.squeeze(-1).tolist() for name, value in output.stats.items()}
    assert output.rewards.tolist()[0] == exactly([0.1438944011347755, 0.1666136231649741])
    assert stats["weight"] == exactly([0.1847826086956522, 0.8152173913043478])
    assert stats["ctro/eps_chosen"] == exactly(0.04414261460101868)
    assert stats["ctro/eps_rejected"] == exactly(0.05585738539898132)
    assert stats["clip_low"] == [0.0, 0.5] and stats["clip_high"] == [0.0, 0.5]  # -71.4 rises, -48.9 falls
    assert stats["clip_fraction"] == [0.0, 1.0]
    assert stats["vref/offset"] == exactly((-53.73894401134776 + 55.1 - 63.36613623164974 + 60.2) / 2)


def test_example_a_at_step_0_is_not_ln_2(example, evaluate, exactly):
    logps = example("A")
    at_first = replace(logps, policy=logps.reference[0].clone().requires_grad_())
    assert evaluate(loss, at_first, Config()).loss == exactly(0.9449102884932799)


def test_example_a_by_the_authors_code(example, run, exactly):
    numbers, got = run(example("A"), arwc_assignment="code_swapped")
    assert got.output.stats["weight"][0].item() == exactly(0.8152173617674869)
    assert numbers == exactly([0.5847831114394452, 0.2299142774809708, -54.91541389857391, -62.01627112376421])
    assert got.gradients[0] == exactly([-0.04427732951951234, 0.04427732951951234])


# options: loss, h, v_w, v_l, loss of the geometric mixture
EXAMPLE_B = [
    ({"ctro": "none"}, 0.002538277931982334, 5.975, -404.8732058814050, -310.6232058814050, 4.661210806406640),
    ({"ctro": "fixed"}, 1.372247830501386, -1.079839390796878, -230.6732058815753, -206.9715997895441,
     3.114371255923581),
    ({}, 1.449935104999143, -1.182597328765701, -220.1930432025337, -197.5190164901908, 2.254517492226280),
    ({"weights": "uniform"}, 1.443799735636959, -1.174574019894129, -219.9712446490009, -197.2169848479422,
     1.995886059254281),
]  # fmt: skip


@pytest.mark.parametrize("options, value, h, chosen, rejected, geometric", EXAMPLE_B)
def test_example_b(example, run, exactly, options, value, h, chosen, rejected, geometric):
    assert run(example("B"), **options)[0] == exactly([value, h, chosen, rejected])
    assert run(example("B"), virtual_ref="geometric", **options)[1].loss == exactly(geometric)


def test_example_b_gradient_weights_and_eps(example, run, exactly):
    got = run(example("B"))[1]
    stats = got.output.stats
    assert got.gradients[0] == exactly([-0.07654144889732148, 0.07654144889732148])
    weights = [0.09823399558498896, 0.4161147902869757, 0.4856512141280353]
    assert stats["weight"].squeeze(-1).tolist() == exactly(weights)
    assert stats["ctro/eps_chosen"].item() == exactly(0.05021297509829620)
    assert stats["ctro/eps_rejected"].item() == exactly(0.04978702490170380)


def test_example_b_in_float32_does_not_underflow_without_clipping(example, run):
    """exp(-405.75) is 0 in float32; the log-space form never takes it."""
    numbers, _ = run(example("B", torch.float32), ctro="none")
    assert numbers[:2] == [pytest.approx(0.002538277931982334, rel=1e-4), pytest.approx(5.975, abs=1e-4)]


@pytest.mark.parametrize(
    "k, value, h", [(0, 1.482550929954724, -1.225), (1, 0.002538277931982334, 5.975), (2, 14.45000053020598, -14.45)]
)
def test_example_b_with_one_reference_is_dpo(example, run, exactly, k, value, h):
    logps = example("B")
    numbers, got = run(with_references(logps, [logps.reference[k, 0].tolist()]))
    assert numbers[:2] == exactly([value, h])
    assert got.gradients[0] == exactly([-0.1 / (1 + math.exp(h)), 0.1 / (1 + math.exp(h))])


def test_example_c(example, run, exactly):
    numbers, got = run(example("C"))
    stats = got.output.stats
    assert numbers == exactly([0.6639160756698935, 0.05934246259850174, -30.45283242526394, -32.85940779927892])
    assert got.gradients[0] == exactly([-0.04851687364872587, 0.04851687364872587])
    assert stats["weight"].squeeze(-1).tolist() == exactly([2 / 3, 1 / 3])
    assert stats["ctro/eps_chosen"].item() == exactly(0.04822134387351779)
    assert stats["ctro/eps_rejected"].item() == exactly(0.05177865612648221)
    assert not stats["clip_low"].any() and not stats["clip_high"].any()
    assert run(example("C"), virtual_ref="geometric")[1].loss == exactly(0.6684596480132863)


def test_example_c_by_the_authors_code(example, run, exactly):
    numbers, got = run(example("C"), arwc_assignment="code_swapped")
    assert got.output.stats["weight"][0].item() == exactly(0.3333332592592757)
    assert [numbers[0], *numbers[2:]] == exactly([0.6411903583510302, -30.76338257471377, -32.69576444123973])


def test_eps_norm_mean_doubles_the_regions_of_a_pair(example, run):
    assert run(example("A"), eps_norm="mean", eps_max=0.05)[0] == run(example("A"), eps_max=0.1)[0]


def test_without_clipping_there_is_no_eps_to_log(example):
    assert not any("eps" in name for name in loss(example("A"), Config(ctro="none")).stats)


# A reference that cannot be used


@pytest.mark.parametrize("options", [{}, {"weights": [0.2, 0.5, 0.3]}, {"weights": "uniform", "ctro": "fixed"}])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_mask_ref_leaves_the_reference_out_of_the_pair(example, run, broken, options):
    logps = example("B")
    first, _, third = logps.reference[:, 0].tolist()
    got, result = run(with_references(logps, [first, [broken, -3.0], third]), nonfinite="mask_ref", **options)
    if isinstance(options.get("weights"), list):
        options = options | {"weights": [0.4, 0.6]}  # 0.2 and 0.3, shared out again
    wanted, alone = run(with_references(logps, [first, third]), **options)
    assert got == pytest.approx(wanted, abs=1e-12)
    assert result.gradients[0] == pytest.approx(alone.gradients[0], abs=1e-12)
    assert result.output.valid.tolist() == [True]
    assert result.output.stats["weight"][1].item() == result.output.stats["clip_low"][1].item() == 0


def test_mask_ref_cannot_do_without_refm1(example, run):
    got = run(with_references(example("A"), [[math.nan, -60.2], [-48.9, -71.4]]), nonfinite="mask_ref")[1]
    assert got.output.valid.tolist() == [False] and got.loss == 0.0 and got.gradients == [[0.0, 0.0]]


def test_a_response_without_a_scored_token_drops_the_pair(example):
    assert loss(replace(example("A"), lengths=torch.tensor([[10, 0]])), Config()).valid.tolist() == [False]


# Options


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"weights": "awrc"},
            "loss.weights is 'awrc'; allowed: arwc | uniform | a list of numbers >= 0 that sum to 1.",
        ),
        (
            {"arwc_assignment": "code_swapped", "weights": "uniform"},
            "loss.arwc_assignment is 'code_swapped'; allowed: paper, unless loss.weights is arwc.",
        ),
        ({"eps_max": -0.1}, "loss.eps_max is -0.1; allowed: >= 0."),
    ],
)
def test_options_out_of_range_are_refused_by_name(refusal, options, message):
    assert refusal(Config, options) == message


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [math.inf], [], ["a", "b"], 1.0, None])
def test_weights_that_are_no_distribution_are_refused(refusal, weights):
    assert refusal(Config, {"weights": weights}).startswith(f"loss.weights is {weights!r}; allowed: arwc | uniform")


def test_weights_from_yaml_are_a_plain_list():
    read = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create("weights: [0.2, 0.8]"))
    assert OmegaConf.to_object(read) == Config(weights=[0.2, 0.8])


def test_weights_may_miss_a_sum_of_one_by_rounding_and_are_then_shared_exactly(example):
    weights = loss(example("A"), Config(weights=[0.3333333, 0.6666666])).stats["weight"]
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(
    "options, exactly",
    [
        ({}, None),
        ({"weights": "uniform"}, None),
        ({"weights": [0.2, 0.3, 0.5]}, (3, "loss.weights=[0.2, 0.3, 0.5]")),
        ({"arwc_assignment": "code_swapped"}, (2, "loss.arwc_assignment=code_swapped")),
    ],
)
def test_options_that_fit_one_number_of_references_say_so(options, exactly):
    assert needs(Config(**options)).references == 1
    assert needs(Config(**options)).exactly == exactly
