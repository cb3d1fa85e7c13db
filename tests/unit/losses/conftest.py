"""The batches that the tests of this folder start from, the loss of a step, and how numbers are compared.

The golden numbers of these tests were computed with 60 digits from the papers' equations, not by this program.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mrpo_ds.errors import ConfigError
from mrpo_ds.types import LossOutput, ResponseLogps

# One pair each: (l_w, l_l) of the policy, (r^k_w, r^k_l) of the references.
# A: two references that disagree on which response is better. B: three with gaps of hundreds of nats.
# C: the policy equals RefM1 (step 0) and no bound holds.
EXAMPLES = {
    "A": ([-52.3, -61.7], [[-55.1, -60.2], [-48.9, -71.4]]),
    "B": ([-215.25, -180.75], [[-210.5, -188.25], [-405.75, -311.5], [-150.0, -260.0]]),
    "C": ([-30.0, -33.0], [[-30.0, -33.0], [-31.0, -32.5]]),
}


class Result(NamedTuple):
    """A loss and its gradients as plain numbers."""

    loss: float
    """Of the step."""
    gradients: list[list[float]]
    """[B][R] d loss / d policy log-prob."""
    output: LossOutput


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch shares out even a handful of numbers among all threads: milliseconds each where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., ResponseLogps]:
    """(policy [B, R], reference [K, B, R]) -> a ResponseLogps in which everything is present and has 10 tokens.

    For B = 1 the references may be [K, R]. Further fields are given by name, as numbers.
    """

    def build(policy: Any, reference: Any = (), dtype: torch.dtype = torch.float64, **fields: Any) -> ResponseLogps:
        policy = torch.as_tensor(policy, dtype=dtype).detach().clone().requires_grad_()
        reference = torch.as_tensor(reference, dtype=dtype).detach().clone().reshape(-1, *policy.shape)
        whole = ResponseLogps(
            policy=policy,
            lengths=torch.full(policy.shape, 10),
            reference=reference,
            reference_lengths=torch.full(reference.shape, 10),
            present=torch.ones(policy.shape, dtype=torch.bool),
            scores=torch.linspace(1.0, 0.0, policy.shape[1], dtype=torch.float64).expand(policy.shape),
        )
        numbers = {"scores": torch.float64, "draws": torch.float32, "baseline": dtype, "prompt": dtype}  # as in a run
        given = {
            name: None if value is None else torch.as_tensor(value, dtype=numbers.get(name))
            for name, value in fields.items()
        }
        if "prompt" in given:
            given["prompt"] = given["prompt"].detach().clone().requires_grad_()
        return replace(whole, **given)

    return build


@pytest.fixture(scope="session")
def example(batch_of) -> Callable[..., ResponseLogps]:
    """(A | B | C, dtype) -> that pair with all its references."""
    return lambda name, dtype=torch.float64: batch_of([EXAMPLES[name][0]], EXAMPLES[name][1], dtype)


@pytest.fixture(scope="session")
def token_pair(batch_of) -> Callable[..., ResponseLogps]:
    """A pair of 4 and 3 tokens; further fields by name.

    chosen    policy -.2 -.5 -.1 -1.2 = -2.0   RefM1 -.3 -.6 -.2 -1.0 = -2.1
    rejected  policy -.9 -.4 -2.0     = -3.3   RefM1 -.7 -.5 -1.6     = -2.8
    """
    tokens = {"lengths": [[4, 3]], "reference_lengths": [[[4, 3]]]}
    return lambda **fields: batch_of([[-2.0, -3.3]], [[-2.1, -2.8]], **(tokens | fields))


@pytest.fixture(scope="session")
def step_loss() -> Callable[..., Tensor]:
    """(the outputs of a step's micro-batches) -> the loss of the step, as mrpo_ds.types.LossOutput defines it."""

    def total(*outputs: LossOutput) -> Tensor:
        loss = sum(o.losses.sum() for o in outputs) / sum(o.valid.sum() for o in outputs).clamp(min=1)
        parts = [o.per_token for o in outputs if o.per_token is not None]
        if parts:
            tokens = sum(part.tokens.sum() for part in parts).clamp(min=1)
            loss = loss + parts[0].weight * sum(part.losses.sum() for part in parts) / tokens
        return loss

    return total


@pytest.fixture(scope="session")
def evaluate(step_loss) -> Callable[..., Result]:
    """(loss function, batch, config) -> Result of the batch as a whole step."""

    def compute(loss: Callable[..., LossOutput], logps: ResponseLogps, config: object) -> Result:
        output = loss(logps, config)
        total = step_loss(output)
        (gradients,) = torch.autograd.grad(total, logps.policy)
        return Result(total.item(), gradients.tolist(), output)

    return compute


@pytest.fixture(scope="session")
def exactly() -> Callable[..., Any]:
    """Equal to what is written out, to 1e-9."""
    return lambda numbers: pytest.approx(numbers, abs=1e-9)


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """(Config class, options) -> the message with which they are refused."""

    def message(config: type, options: dict[str, Any]) -> str:
        with pytest.raises(ConfigError) as error:
            config(**options)
        return str(error.value)

    return message
