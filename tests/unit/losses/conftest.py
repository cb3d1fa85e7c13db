"""The batch that the tests of this folder start from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mrpo_ds.types import ResponseLogps


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., ResponseLogps]:
    """(policy [B, R], reference [K, B, R]) -> a ResponseLogps in which everything is present and has 10 tokens."""

    def build(policy: Any, reference: Any, dtype: torch.dtype = torch.float64) -> ResponseLogps:
        policy = torch.as_tensor(policy, dtype=dtype).detach().clone().requires_grad_()
        reference = torch.as_tensor(reference, dtype=dtype).detach().clone()
        return ResponseLogps(
            policy=policy,
            lengths=torch.full(policy.shape, 10),
            reference=reference,
            reference_lengths=torch.full(reference.shape, 10),
            present=torch.ones(policy.shape, dtype=torch.bool),
            scores=torch.linspace(1.0, 0.0, policy.shape[1], dtype=dtype).expand(policy.shape),
        )

    return build
