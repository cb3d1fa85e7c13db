"""Where a program would wait for a GPU or for other ranks.

On a CPU nothing waits, so it is counted where it is asked for: at the dispatcher and in Python.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from mrpo_ds.distributed import collectives

OPERATORS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "repeat_interleave")
"""Their result, or its size, is on the host."""
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "all_gather_object",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "barrier",
)
OURS = ("sum_over_ranks", "everywhere", "broadcast_from_leader", "gather_over_ranks", "barrier", "gather_objects")


class _Operators(TorchDispatchMode):
    def __init__(self, counts: "Counter[str]") -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )  # it must know how many places are true
        if name in OPERATORS or by_mask:
            self._counts[f"aten.{name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits() -> Iterator["Counter[str]"]:
    """How often each was asked for within the context."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    watched: list[tuple[Any, str]] = [(torch.Tensor, name) for name in METHODS]
    watched += [(dist, name) for name in COLLECTIVES] + [(collectives, name) for name in OURS]
    watched += [(gc, "collect"), (torch.cuda, "synchronize"), (torch.cuda, "empty_cache")]
    with pytest.MonkeyPatch.context() as patch, _Operators(counts):
        for owner, name in watched:
            patch.setattr(owner, name, counting(f"{owner.__name__}.{name}", getattr(owner, name)))
        yield counts
