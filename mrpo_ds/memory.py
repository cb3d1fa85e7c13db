"""How much memory this process has used at its peak, and how much the host still has."""

import ctypes
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch

KEPT_BLOCK, KEPT_TOP = 2**28, 2**30
"""Bytes of a block, and of free memory at the heap's end, up to which freed_is_kept keeps what is freed."""
USUAL_BLOCK, USUAL_TOP = 2**25, 2**26
"""What glibc itself comes to in a process that has used large blocks."""


def peak_memory_gib() -> float:
    """Peak GPU memory where there is a GPU, else peak resident memory of the process, GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@cache
def total_bytes(device: torch.device) -> int:
    """All memory of a GPU, or of the host: the same whenever it is asked for, whatever is in use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def forget_peak() -> None:
    """Begin to measure the peak anew, where that is possible: on GPUs."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def give_back_freed() -> None:
    """Give the system the pages that the C library has freed but kept, where it is glibc; others keep what they keep.

    Loading and checking models leaves holes of their size in the heap, into which a training's tensors rarely fit.
    """
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


@contextmanager
def freed_is_kept(device: torch.device) -> Iterator[None]:
    """Have glibc keep what is freed for what comes next: for generation on a CPU. On a GPU it changes nothing.

    Every token of every layer copies the keys and values into new blocks. glibc gives large ones back to the system as
    soon as they are freed, which then clears each of their pages again for the next: a third of the whole time.
    Only for a while: what else a process does has larger blocks, and leaves holes that it cannot use.
    """
    if device.type != "cpu":
        yield
        return
    _set_kept(KEPT_BLOCK, KEPT_TOP)
    try:
        yield
    finally:
        _set_kept(USUAL_BLOCK, USUAL_TOP)
        give_back_freed()


def _set_kept(block: int, top: int) -> None:
    if (set_option := _of_glibc("mallopt")) is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        set_option(mmap_threshold, block)
        set_option(trim_threshold, top)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function that only glibc has, of this process's C library."""
    try:
        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (AttributeError, OSError):
        return None


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the host, is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator for CPUs and its C++ code raise a plain RuntimeError
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("t allocate memory", "bad_alloc"))


def describe_memory() -> str:
    """What this process has used at its peak, and what is left where it computes, such as '1.2 GiB used, 0.3 left'."""
    left = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_bytes()
    return f"{peak_memory_gib():.2f} GiB used by this rank, {left / 2**30:.2f} GiB left"


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take, of a GPU (what torch keeps for later included) or of the host."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return available_bytes()


def available_bytes() -> int:
    """Host memory that can still be used without swapping: the machine's, or less where something limits it.

    That is a control group, or `ulimit -v`.
    """
    available = int(psutil.virtual_memory().available)
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        available = min(available, most - psutil.Process().memory_info().vms)
    own = _control_group()
    for group in [own, *own.parents] if own is not None else []:
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit ("max"), no such controller, or the root
            continue
        available = min(available, limit - used + int(counters.get("inactive_file", 0)))
    return max(0, available)


def _control_group() -> Path | None:
    """The directory of this process's control group, of version 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((Path("/sys/fs/cgroup") / line[4:] for line in lines if line.startswith("0::/")), None)
