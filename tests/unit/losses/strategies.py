"""What the property tests of this folder share: numbers to draw, plain formulas, batches and what a loss says of them.

P-numbers are those of the project's list of properties. h is the margin, nls(h) = -log sigmoid(h) the loss.
"""

import math
from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mrpo_ds.types import LossOutput, ResponseLogps
from tests.unit.losses.variants import LOSSES, variants

PROPERTY = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],  # it measures the machine, too, and other work on it
)
FEW = settings(PROPERTY, max_examples=8)
"""For whole random batches under every objective."""
TINY = 1e-10
"""Tolerance, in float64."""
LOGP = st.floats(-400.0, -0.5)
PAIR = st.tuples(LOGP, LOGP).map(list)
OPTIONS = st.fixed_dictionaries(
    {
        "beta": st.sampled_from([0.01, 0.1, 0.5]),
        "ctro": st.sampled_from(["adaptive", "fixed", "none"]),
        "eps_max": st.floats(0.0, 2.0),
        "eps_norm": st.sampled_from(["sum", "mean"]),
    }
)
SEED = st.integers(0, 2**31)


def references(least=1, most=4):
    """K references of a pair."""
    return st.lists(PAIR, min_size=least, max_size=most)


def shares(size):
    """Numbers > 0 that sum to 1."""
    raw = st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size)
    return raw.map(lambda numbers: [number / math.fsum(numbers) for number in numbers])


def weightings(size):
    """Every way to say loss.weights for so many references."""
    return st.one_of(st.sampled_from(["arwc", "uniform"]), shares(size))


# Plain numbers


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def nls(h):
    return max(-h, 0.0) + math.log1p(math.exp(-abs(h)))


def dot(weights, numbers):
    return math.fsum(weight * number for weight, number in zip(weights, numbers, strict=True))


def clipped(table, output):
    """The references of one pair inside the trust regions of an output, by the letter of eq. 8."""
    if "ctro/eps_chosen" not in output.stats:
        return table
    eps = [output.stats["ctro/eps_chosen"].item(), output.stats["ctro/eps_rejected"].item()]

    def clip(row):
        bounds = zip(row, table[0], eps, strict=True)
        return [min(max(logp, (1 + e) * first), (1 - e) * first) for logp, first, e in bounds]

    return [table[0], *(clip(row) for row in table[1:])]


def margins(policy, table, beta):
    """h_k of DPO against each reference of a pair."""
    return [beta * ((policy[0] - row[0]) - (policy[1] - row[1])) for row in table]


# Batches


def batch(policy, table=(), *, dtype=torch.float64, **more) -> ResponseLogps:
    """A ResponseLogps of lists: policy [B][R], references [K][B][R]; every response has 10 tokens unless said."""
    policy = torch.tensor(policy, dtype=dtype, requires_grad=True)
    reference = torch.tensor(table, dtype=dtype).reshape(-1, *policy.shape)
    counts = ("lengths", "reference_lengths", "present")
    given = {name: torch.tensor(value, dtype=None if name in counts else dtype) for name, value in more.items()}
    usual = {
        "lengths": torch.full(policy.shape, 10),
        "reference_lengths": torch.full(reference.shape, 10),
        "present": torch.ones(policy.shape, dtype=torch.bool),
    }
    return ResponseLogps(policy=policy, reference=reference, **(usual | given))


def random_batch(seed, rows, responses, count=0) -> ResponseLogps:
    """A whole batch under so many references: nothing tied, absent or broken; 1 to 40 tokens of 0 to 2 nats each."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def tokens(*shape):
        return torch.randint(1, 41, shape, generator=generator)

    shape = (rows, responses)
    lengths, reference_lengths, prompt_lengths = tokens(*shape), tokens(count, *shape), tokens(rows)
    return ResponseLogps(
        policy=(-2 * uniform(*shape) * lengths).requires_grad_(),
        lengths=lengths,
        reference=-2 * uniform(count, *shape) * reference_lengths,
        reference_lengths=reference_lengths,
        present=torch.ones(shape, dtype=torch.bool),
        scores=10 * uniform(*shape).sort(descending=True).values,
        prompt=-2 * uniform(rows) * prompt_lengths,
        prompt_lengths=prompt_lengths,
        baseline=4 * uniform(responses) - 2,
        draws=uniform(rows),
    )


def rows_of(logps, rows):
    """The given rows of a batch, as a new leaf."""
    taken = {}
    for field in fields(logps):
        value = getattr(logps, field.name)
        if value is not None and field.name != "baseline":
            taken[field.name] = value[:, rows] if field.name.startswith("reference") else value[rows]
    return replace(logps, **taken | {"policy": taken["policy"].detach().clone().requires_grad_()})


class Result(NamedTuple):
    """What a loss says about a batch; of one row also as plain numbers."""

    output: LossOutput
    total: torch.Tensor
    """Scalar, the loss of a step that consists of this batch."""
    gradient: torch.Tensor
    """[B, R] of the total."""

    @property
    def value(self):
        return self.total.item()

    @property
    def h(self):
        """Reward of the first response minus that of the last: the margin of most pairwise objectives."""
        rewards = self.output.rewards[0].tolist()
        return rewards[0] - rewards[-1]

    @property
    def grad(self):
        return self.gradient[0].tolist()


def total(output):
    """The loss of a step as LossOutput says it; 0 when nothing is valid."""
    result = output.losses.sum() / output.valid.sum().clamp(min=1)
    part = output.per_token
    return result if part is None else result + part.weight * part.losses.sum() / part.tokens.sum().clamp(min=1)


def result(output, logps) -> Result:
    value = total(output)
    (gradient,) = torch.autograd.grad(value, logps.policy)
    return Result(output, value.detach(), gradient)


def evaluate(module, config, logps) -> Result:
    return result(module.loss(logps, config), logps)


def one(module, config, policy, table=(), *, reference_lengths=None, baseline=None, **more) -> Result:
    """A single prompt: policy, baseline [R], references, reference_lengths [K][R], other fields [R] or a number."""
    fields = {name: [value] for name, value in more.items()}
    if reference_lengths is not None:
        fields["reference_lengths"] = [[row] for row in reference_lengths]
    if baseline is not None:
        fields["baseline"] = baseline
    return evaluate(module, config, batch([policy], [[row] for row in table], **fields))


OBJECTIVES = {label: objective for name in LOSSES for label, objective in variants(name).items()}
"""Every objective with each of its options, on each view of the data."""


def each(objectives):
    return pytest.mark.parametrize("objective", objectives.values(), ids=objectives)


def batch_for(objective, seed, rows):
    return random_batch(seed, rows, objective.responses, objective.references)


def run(objective, logps) -> Result:
    return result(objective.loss(logps), logps)
