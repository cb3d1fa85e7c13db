"""MRPO against numbers computed with 60 digits from the paper's equations, and its options.

Each example is one pair: l of the policy and r^k of the references, in the order (chosen, rejected).
A: two references that disagree on which response is better. B: three with gaps of hundreds of nats.
C: the policy equals RefM1 (step 0) and no bound holds.
"""

import math
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from mrpo_ds.errors import ConfigError
from mrpo_ds.losses.mrpo import Config, check_references, loss

A = ([-52.3, -61.7], [[-55.1, -60.2], [-48.9, -71.4]])
B = ([-215.25, -180.75], [[-210.5, -188.25], [-405.75, -311.5], [-150.0, -260.0]])
C = ([-30.0, -33.0], [[-30.0, -33.0], [-31.0, -32.5]])


def run(batch_of, example, dtype=torch.float64, **options):
    """loss, margin h, (v_w, v_l), (d loss / d l_w, d loss / d l_l) and the whole output of an example."""
    policy, references = example
    logps = batch_of([policy], [[row] for row in references], dtype)
    output = loss(logps, Config(**options))
    output.losses.sum().backward()
    chosen, rejected = output.rewards[0].tolist()
    virtual = [output.stats[f"vref/logps/{name}"].item() for name in ("chosen", "rejected")]
    return output.losses.item(), chosen - rejected, virtual, logps.policy.grad.tolist()[0], output


def exactly(number):
    return pytest.approx(number, abs=1e-9)


# weights, ctro: v_w, v_l, h, loss, d loss / d l_w, loss (arithmetic), loss (geometric)
EXAMPLE_A = [
    ("arwc", "none", -53.42033829368762, -71.19570263596691, -0.8375364342279289, 1.197149823986669,
     -0.06979461070304555, 0.8766330863614638, 1.304851694584962),
    ("arwc", "fixed", -53.42911779197937, -66.01625011000206, -0.3187132318022692, 0.8651476829321631,
     -0.05790106249091692, 0.8363551009848913, 0.9802793615174706),
    ("arwc", "adaptive", -53.73894401134776, -63.36613623164974, -0.02271922203019861, 0.7045713105686730,
     -0.05056795612113483, 0.6681679520149656, 0.7145760184271585),
    ("uniform", "none", -54.40888019356389, -70.70686649354263, -0.6897986299978737, 1.096381167955530,
     -0.06659221294951738, 0.7927631357265739, 0.9371544503321098),
    ("uniform", "fixed", -54.41089076334360, -65.52927954216023, -0.1718388778816632, 0.7827531620698439,
     -0.05428543189948035, 0.7555616224944694, 0.7690775661319648),
    ("uniform", "adaptive", -54.49104530242043, -62.90352536667206, 0.09875199357483659, 0.6449896833077968,
     -0.04753320450835286, 0.6063907593433681, 0.6254759653591863),
]  # fmt: skip


@pytest.mark.parametrize("weights, ctro, chosen, rejected, h, value, gradient, arithmetic, geometric", EXAMPLE_A)
def test_example_a(batch_of, weights, ctro, chosen, rejected, h, value, gradient, arithmetic, geometric):
    options = {"weights": weights, "ctro": ctro}
    got, margin, virtual, grads, _ = run(batch_of, A, **options)
    assert [got, margin, *virtual] == exactly([value, h, chosen, rejected])
    assert grads == exactly([gradient, -gradient])
    assert run(batch_of, A, virtual_ref="arithmetic", **options)[0] == exactly(arithmetic)
    assert run(batch_of, A, virtual_ref="geometric", **options)[0] == exactly(geometric)


def test_example_a_statistics(batch_of):
    output = run(batch_of, A)[-1]
    stats = {name: value.squeeze(-1).tolist() for name, value in output.stats.items()}
    assert output.rewards.tolist()[0] == exactly([0.1438944011347755, 0.1666136231649741])
    assert stats["weight"] == exactly([0.1847826086956522, 0.8152173913043478])
    assert stats["ctro/eps_chosen"] == exactly(0.04414261460101868)
    assert stats["ctro/eps_rejected"] == exactly(0.05585738539898132)
    assert stats["clip_low"] == [0.0, 0.5] and stats["clip_high"] == [0.0, 0.5]  # -71.4 rises, -48.9 falls
    assert stats["vref/offset"] == exactly((-53.73894401134776 + 55.1 - 63.36613623164974 + 60.2) / 2)


def test_example_a_at_step_0_is_not_ln_2(batch_of):
    assert run(batch_of, (A[1][0], A[1]))[0] == exactly(0.9449102884932799)


def test_example_a_by_the_authors_code(batch_of):
    value, h, virtual, grads, output = run(batch_of, A, arwc_assignment="code_swapped")
    assert output.stats["weight"][0].item() == exactly(0.8152173617674869)
    assert [value, h, *virtual] == exactly(
        [0.5847831114394452, 0.2299142774809708, -54.91541389857391, -62.01627112376421]
    )
    assert grads == exactly([-0.04427732951951234, 0.04427732951951234])


# options: v_w, v_l, h, loss, loss (arithmetic), loss (geometric)
EXAMPLE_B = [
    ({"ctro": "none"}, -404.8732058814050, -310.6232058814050, 5.975, 0.002538277931982334,
     7.435404000403207, 4.661210806406640),
    ({"ctro": "fixed"}, -230.6732058815753, -206.9715997895441, -1.079839390796878, 1.372247830501386,
     3.519864308099576, 3.114371255923581),
    ({"ctro": "adaptive"}, -220.1930432025337, -197.5190164901908, -1.182597328765701, 1.449935104999143,
     2.525151278525770, 2.254517492226280),
    ({"weights": "uniform"}, -219.9712446490009, -197.2169848479422, -1.174574019894129, 1.443799735636959,
     2.379170748557836, 1.995886059254281),
]  # fmt: skip


@pytest.mark.parametrize("options, chosen, rejected, h, value, arithmetic, geometric", EXAMPLE_B)
def test_example_b(batch_of, options, chosen, rejected, h, value, arithmetic, geometric):
    got, margin, virtual, _, _ = run(batch_of, B, **options)
    assert [got, margin, *virtual] == exactly([value, h, chosen, rejected])
    assert run(batch_of, B, virtual_ref="arithmetic", **options)[0] == exactly(arithmetic)
    assert run(batch_of, B, virtual_ref="geometric", **options)[0] == exactly(geometric)


def test_example_b_gradient_weights_and_eps(batch_of):
    _, _, _, grads, output = run(batch_of, B)
    assert grads == exactly([-0.07654144889732148, 0.07654144889732148])
    weights = [0.09823399558498896, 0.4161147902869757, 0.4856512141280353]
    assert output.stats["weight"].squeeze(-1).tolist() == exactly(weights)
    assert output.stats["ctro/eps_chosen"].item() == exactly(0.05021297509829620)
    assert output.stats["ctro/eps_rejected"].item() == exactly(0.04978702490170380)


def test_example_b_in_float32_does_not_underflow_without_clipping(batch_of):
    """exp(-405.75) is 0 in float32; the log-space form never takes it."""
    value, h, _, _, _ = run(batch_of, B, torch.float32, ctro="none")
    assert (h, value) == (pytest.approx(5.975, abs=1e-4), pytest.approx(0.002538277931982334, rel=1e-4))


@pytest.mark.parametrize("references, value, gradient", [
    ([0], 1.482550929954724, -0.1 / (1 + math.exp(-1.225))),
    ([1], 0.002538277931982334, -0.1 / (1 + math.exp(5.975))),
    ([2], 14.45000053020598, -0.1 / (1 + math.exp(-14.45))),
])  # fmt: skip
def test_example_b_with_one_reference_is_dpo(batch_of, references, value, gradient):
    got, _, _, grads, _ = run(batch_of, (B[0], [B[1][k] for k in references]))
    assert got == exactly(value) and grads == exactly([gradient, -gradient])


def test_example_c(batch_of):
    value, h, virtual, grads, output = run(batch_of, C)
    assert [value, h, *virtual] == exactly(
        [0.6639160756698935, 0.05934246259850174, -30.45283242526394, -32.85940779927892]
    )
    assert grads == exactly([-0.04851687364872587, 0.04851687364872587])
    assert output.stats["weight"].squeeze(-1).tolist() == exactly([2 / 3, 1 / 3])
    assert output.stats["ctro/eps_chosen"].item() == exactly(0.04822134387351779)
    assert not output.stats["clip_low"].any() and not output.stats["clip_high"].any()
    assert run(batch_of, C, virtual_ref="arithmetic")[0] == exactly(0.6717617567951109)
    assert run(batch_of, C, virtual_ref="geometric")[0] == exactly(0.6684596480132863)


def test_example_c_by_the_authors_code(batch_of):
    value, _, virtual, _, output = run(batch_of, C, arwc_assignment="code_swapped")
    assert output.stats["weight"][0].item() == exactly(0.3333332592592757)
    assert [value, *virtual] == exactly([0.6411903583510302, -30.76338257471377, -32.69576444123973])


def test_eps_norm_mean_doubles_the_regions_of_a_pair(batch_of):
    assert run(batch_of, A, eps_norm="mean", eps_max=0.05)[0] == run(batch_of, A, eps_max=0.1)[0]


def test_without_clipping_there_is_no_eps_to_log(batch_of):
    assert not any("eps" in name for name in run(batch_of, A, ctro="none")[-1].stats)


# A reference that cannot be used


@pytest.mark.parametrize("options", [{}, {"weights": [0.2, 0.5, 0.3]}, {"weights": "uniform", "ctro": "fixed"}])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_mask_ref_leaves_the_reference_out_of_the_pair(batch_of, broken, options):
    with_broken = [B[1][0], [broken, -3.0], B[1][2]]
    got = run(batch_of, (B[0], with_broken), nonfinite="mask_ref", **options)
    if isinstance(options.get("weights"), list):
        options = options | {"weights": [0.4, 0.6]}  # 0.2 and 0.3, shared out again
    wanted = run(batch_of, (B[0], [B[1][0], B[1][2]]), **options)
    assert [got[0], got[1], *got[2], *got[3]] == pytest.approx(
        [wanted[0], wanted[1], *wanted[2], *wanted[3]], abs=1e-12
    )
    assert got[-1].valid.tolist() == [True]
    assert got[-1].stats["weight"][1].item() == got[-1].stats["clip_low"][1].item() == 0


def test_mask_ref_cannot_do_without_refm1(batch_of):
    output = run(batch_of, (A[0], [[math.nan, -60.2], A[1][1]]), nonfinite="mask_ref")[-1]
    assert output.valid.tolist() == [False] and output.losses.tolist() == [0.0]


def test_statistics_of_a_dropped_pair_are_zero(batch_of):
    output = run(batch_of, (A[0], [A[1][0], [-48.9, -math.inf]]))[-1]
    assert output.valid.tolist() == [False]
    assert not any(value.any() for value in output.stats.values()) and not output.rewards.any()


def test_a_response_without_a_scored_token_drops_the_pair(batch_of):
    logps = replace(batch_of([A[0]], [[row] for row in A[1]]), lengths=torch.tensor([[10, 0]]))
    assert loss(logps, Config()).valid.tolist() == [False]


# Options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta": -0.1}, "loss.beta is -0.1; allowed: > 0."),
        ({"virtual_ref": "mean"}, "loss.virtual_ref is 'mean'; allowed: harmonic | geometric | arithmetic."),
        (
            {"weights": "awrc"},
            "loss.weights is 'awrc'; allowed: arwc | uniform | a list of numbers >= 0 that sum to 1.",
        ),
        ({"arwc_assignment": "code"}, "loss.arwc_assignment is 'code'; allowed: paper | code_swapped."),
        (
            {"arwc_assignment": "code_swapped", "weights": "uniform"},
            "loss.arwc_assignment is 'code_swapped'; allowed: paper, unless loss.weights is arwc.",
        ),
        ({"ctro": "adaptve"}, "loss.ctro is 'adaptve'; allowed: adaptive | fixed | none."),
        ({"eps_max": -0.1}, "loss.eps_max is -0.1; allowed: >= 0."),
        ({"eps_max": math.inf}, "loss.eps_max is inf; allowed: >= 0."),
        ({"eps_norm": "max"}, "loss.eps_norm is 'max'; allowed: sum | mean."),
        ({"nonfinite": "ignore"}, "loss.nonfinite is 'ignore'; allowed: drop | mask_ref."),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ConfigError) as error:
        Config(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [math.inf], [], ["a", "b"], 1.0, None])
def test_weights_that_are_no_distribution_are_refused(weights):
    with pytest.raises(ConfigError, match="loss.weights is .*; allowed: arwc | uniform"):
        Config(weights=weights)


def test_weights_from_yaml_are_a_plain_list():
    read = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create("weights: [0.2, 0.8]"))
    assert OmegaConf.to_object(read) == Config(weights=[0.2, 0.8])


def test_weights_may_miss_a_sum_of_one_by_rounding_and_are_then_shared_exactly(batch_of):
    weights = run(batch_of, A, weights=[0.3333333, 0.6666666])[-1].stats["weight"]
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-15)


def test_references_that_do_not_fit_the_options_are_refused():
    check_references(Config(), 1)
    check_references(Config(weights=[0.2, 0.3, 0.5]), 3)
    check_references(Config(arwc_assignment="code_swapped"), 2)
    with pytest.raises(ConfigError, match="the number of references is 0; allowed: >= 1 for loss.name=mrpo"):
        check_references(Config(), 0)
    with pytest.raises(ConfigError, match=r"loss.weights is \[0.5, 0.5\]; allowed: 3 numbers, one per reference"):
        check_references(Config(weights=[0.5, 0.5]), 3)
    with pytest.raises(ConfigError, match="references is 3; allowed: 2 for loss.arwc_assignment=code_swapped"):
        check_references(Config(arwc_assignment="code_swapped"), 3)
