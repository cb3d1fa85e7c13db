"""The few collectives of a role's own world. Each is a no-op in a world of one."""

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of value over the ranks of the role, on every rank. Returns a new tensor of the same shape."""
    total = value.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def everywhere(holds: bool, device: torch.device) -> bool:
    """Whether something holds on every rank of the role; one small collective."""
    return bool(sum_over_ranks(torch.tensor(int(holds), device=device)) == dist.get_world_size())


def broadcast_from_leader(value: Tensor) -> Tensor:
    """The leader's value on every rank, in place. Shapes and dtypes must agree."""
    if dist.get_world_size() > 1:
        dist.broadcast(value, src=0)
    return value


def gather_over_ranks(value: Tensor) -> Tensor:
    """[P, *value.shape]: every rank's value, on every rank. Shapes must agree."""
    if dist.get_world_size() == 1:
        return value.unsqueeze(0)
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value)
    return torch.stack(parts)


def barrier() -> None:
    """Wait for every rank of the role."""
    if dist.get_world_size() > 1:
        dist.barrier()


def gather_objects(value: list[str]) -> list[list[str]]:
    """Every rank's list, on every rank. For messages, not for numbers."""
    if dist.get_world_size() == 1:
        return [value]
    parts: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, value)
    return parts
