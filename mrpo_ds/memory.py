"""How much memory this process has used at its peak."""

import resource
import sys

import torch


def peak_memory_gib() -> float:
    """Peak GPU memory where there is a GPU, else peak resident memory of the process, GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
