"""P26: what MRPO's eq. 6 asks for, solved on a handful of responses whose probabilities are all known.

    J(pi) = E_pi[r] - beta * sum_k a_k KL(pi || pi^k)

The paper calls its solution intractable; it is pi* ~ prod_k (pi^k)^a_k * exp(r / beta), which the geometric virtual
reference gives. With the harmonic one v <= v_geometric, so what MRPO maximises instead never exceeds J. (P25, on the
gradient of a knowledge-distillation term, has nothing to test: there is no such objective here.)
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.ops.virtual_reference import mix
from tests.unit.losses.strategies import PROPERTY, TINY, shares

KINDS = ("harmonic", "geometric", "arithmetic")
REWARDS, POLICIES, WEIGHTS, BETA = [1, 0.5, -0.2], [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [0.4, 0.6], 0.5


def tensors(*numbers):
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


def virtual(policies, weights, kind):
    """[R] log of the virtual reference of K distributions [K, R]."""
    logs = policies.log().unsqueeze(1)
    return (logs[0] + mix(logs - logs[0], weights.unsqueeze(-1), kind)).squeeze(0)


def against(v, pi, rewards, beta):
    """E_pi[r] - beta * KL(pi || exp v), v not necessarily normalised."""
    return (pi * (rewards - beta * (pi.log() - v))).sum().item()


def objective(pi, rewards, policies, weights, beta):
    """J of eq. 6, term by term."""
    divergence = sum(a * (pi * (pi / policy).log()).sum() for a, policy in zip(weights, policies, strict=True))
    return ((pi * rewards).sum() - beta * divergence).item()


def best(v, rewards, beta):
    """(the distribution that maximises against(v, ...), that maximum beta * log Z)."""
    scores = v + rewards / beta
    return scores.softmax(0), beta * scores.logsumexp(0).item()


@pytest.mark.parametrize(
    "kind, probabilities, j, surrogate",
    [
        ("geometric", [0.499926894432, 0.439302090038, 0.0607710155299], 0.5172417371828725, 0.5172417371828725),
        ("harmonic", [0.449170452129, 0.481558246909, 0.0692713009618], 0.5146381565962558, 0.4417151124877562),
        ("arithmetic", [0.565010057649, 0.383733386334, 0.0512565560178], 0.5129799341836996, None),
    ],
)
def test_p26_the_documented_toy(kind, probabilities, j, surrogate):
    rewards, policies, weights = tensors(REWARDS, POLICIES, WEIGHTS)
    pi, maximum = best(virtual(policies, weights, kind), rewards, BETA)
    assert pi.tolist() == pytest.approx(probabilities, abs=1e-12)
    assert objective(pi, rewards, policies, weights, BETA) == pytest.approx(j, abs=TINY)
    assert surrogate is None or maximum == pytest.approx(surrogate, abs=TINY)


@st.composite
def toys(draw):
    """(rewards [R], policies [K, R], weights [K], another distribution [R])."""
    size = draw(st.integers(2, 5))
    rewards = draw(st.lists(st.floats(-2.0, 2.0), min_size=size, max_size=size))
    policies = draw(st.lists(shares(size), min_size=1, max_size=4))
    return tensors(rewards, policies, draw(shares(len(policies))), draw(shares(size)))


@given(toys(), st.sampled_from([0.1, 0.5, 2.0]))
@PROPERTY
def test_p26_the_geometric_reference_solves_eq_6_and_the_harmonic_surrogate_is_a_lower_bound(toy, beta):
    rewards, policies, weights, other = toy
    v = {kind: virtual(policies, weights, kind) for kind in KINDS}
    solved = {kind: best(v[kind], rewards, beta) for kind in KINDS}
    optimum, maximum = solved["geometric"]
    assert objective(optimum, rewards, policies, weights, beta) == pytest.approx(maximum, abs=TINY)
    for pi in (other, optimum, solved["harmonic"][0], solved["arithmetic"][0], *policies):
        j = objective(pi, rewards, policies, weights, beta)
        assert j <= maximum + TINY
        assert j == pytest.approx(against(v["geometric"], pi, rewards, beta), abs=TINY)
        assert against(v["harmonic"], pi, rewards, beta) <= j + TINY
    assert math.isclose(
        against(v["harmonic"], solved["harmonic"][0], rewards, beta), solved["harmonic"][1], abs_tol=TINY
    )
