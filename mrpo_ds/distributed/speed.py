"""How fast the ranks of a world exchange tensors."""

import time

import torch
import torch.distributed as dist

TENSOR_BYTES = 32 * 2**20
"""Of the whole tensor: about a bucket of gradients."""


def collective_gbs(device: torch.device, seconds: float) -> float | None:
    """Bytes that a rank sends in an all-gather or reduce-scatter, GB/s, or None in a world of one.

    Both are repeated for so many seconds; a rank sends (ranks - 1) / ranks of a tensor.
    """
    ranks = dist.get_world_size()
    if ranks == 1:
        return None
    part = torch.ones(TENSOR_BYTES // 4 // ranks, device=device)
    whole = torch.ones(part.numel() * ranks, device=device)
    sent = 2 * part.numel() * 4 * (ranks - 1)
    times: list[float] = []
    while sum(times) < seconds:
        dist.barrier()
        started = time.perf_counter()
        dist.all_gather_into_tensor(whole, part)
        dist.reduce_scatter_tensor(part, whole)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = torch.tensor([time.perf_counter() - started], device=device)
        dist.broadcast(took, src=0)  # so that all stop together
        times.append(float(took))
    return sent / sorted(times)[len(times) // 2] / 1e9
