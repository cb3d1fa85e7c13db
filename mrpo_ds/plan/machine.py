"""What a plan knows of a machine: a YAML of rates that are reached, not promised."""

import math
from dataclasses import dataclass
from typing import Any

from mrpo_ds.config.load import load_record
from mrpo_ds.config.schema import MISSING
from mrpo_ds.errors import require, require_choice

REQUIRED: Any = MISSING
EXAMPLES = "launch/machines"


@dataclass(frozen=True, kw_only=True)
class Tflops:
    """Matmul rate of one device that training reaches at a model's own shapes, teraflop/s, > 0."""

    bf16: float = REQUIRED
    fp32: float = REQUIRED

    def __post_init__(self) -> None:
        for name in ("bf16", "fp32"):
            require(0 < getattr(self, name) < math.inf, f"tflops.{name}", getattr(self, name), "> 0 teraflop/s")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and what is between them. A device is what a rank has for itself: a GPU, or a CPU's cores."""

    name: str = REQUIRED
    """For the plan's head."""
    kind: str = REQUIRED
    """gpu | cpu: whose memory is counted, the device's or the process's."""
    devices: int = REQUIRED
    """All of them, >= 1."""
    devices_per_node: int = REQUIRED
    """Those within reach of link_gbs, >= 1."""
    memory_gib: float = REQUIRED
    """Of one device, GiB, > 0; on CPUs the node's, shared by its ranks."""
    baseline_gib: float = REQUIRED
    """Of a process before any model: libraries on CPUs, context and communication buffers on GPUs, GiB, >= 0."""
    tflops: Tflops = REQUIRED
    attention_efficiency: float = REQUIRED
    """Rate of attention as a share of that of matmuls, > 0."""
    memory_gbs: float = REQUIRED
    """Bytes that an operation on large tensors reads and writes, GB/s, > 0."""
    elementwise_gbs: float = REQUIRED
    """The same for the tensors between a layer's matmuls, which caches may hold, GB/s, > 0."""
    launch_us: float = REQUIRED
    """What an operation takes besides its arithmetic, microseconds, >= 0."""
    link_gbs: float = REQUIRED
    """Bytes that a rank sends in an all-gather or reduce-scatter within a node, GB/s, > 0."""
    internode_gbs: float = REQUIRED
    """The same between nodes."""
    disk_gbs: float = REQUIRED
    """Of the reference store, GB/s, > 0."""

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, ("gpu", "cpu"))
        for name in ("devices", "devices_per_node"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        positive = ("memory_gib", "attention_efficiency", "memory_gbs", "elementwise_gbs", "link_gbs", "internode_gbs")
        for name in (*positive, "disk_gbs"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "> 0")
        for name in ("baseline_gib", "launch_us"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), ">= 0")

    def between(self, ranks: int) -> float:
        """GB/s of a collective over so many neighbouring ranks: the slowest link decides."""
        return self.link_gbs if ranks <= self.devices_per_node else min(self.link_gbs, self.internode_gbs)


def load_machine(path: str) -> Machine:
    """A machine file. Raises ConfigError for what no machine can be."""
    return load_record(Machine, path, "machine file", EXAMPLES)
