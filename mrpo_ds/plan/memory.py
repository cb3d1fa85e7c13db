"""Bytes of a rank, by their parts: what DeepSpeed's ZeRO-3 keeps, and what a traced forward and backward need.

After deepspeed/runtime/zero/stage3.py (0.19): the weights as one flat buffer in the model's precision; float32 masters,
copies in float32 runs too, because it compares a device with a string; the gradients' share and AdamW's moments in
float32; one reduce bucket in float32. In the step the gradients are flattened once more. Gathered weights stay for half
the reuse distance around the turn to backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mrpo_ds.accelerator import KERNELS_KEPT
from mrpo_ds.plan.heap import Heap
from mrpo_ds.plan.machine import Machine
from mrpo_ds.plan.trace import ForwardShape, MetaModel, Trace, trace_forward

GIB = 2**30
DEFAULT_LIVE = 1_000_000_000
"""Of the reuse distance and of a sub-group, in elements: DeepSpeed's own (runtime/zero/config.py)."""
DEFAULT_BUCKET = 50_000_000
"""Of the prefetch bucket, in elements; reduce_bucket_size is ten times that."""
LOGIT_BLOCKS = 1
"""Blocks of logits alive at once (ops/logps.py). They are the largest of the heap and of another size in every forward,
so that those of one forward leave holes that those of the next do not fit."""
KERNEL_BYTES = 2_400_000
"""Of a kernel that oneDNN keeps compiled for one shape of a bf16 matmul: 11 MB grew with each forward's five."""
FIRST_INIT = 1 << 40
"""Numbers of blocks that no trace uses."""


@dataclass(frozen=True)
class Part:
    """A part of a rank's memory."""

    name: str
    bytes: float
    on_host: bool = False
    """In the host's memory although the rank has a GPU."""


@dataclass(frozen=True)
class RoleMemory:
    """What a rank of a role needs at its peak."""

    role: str
    ranks: int
    parts: list[Part]

    @property
    def gib(self) -> float:
        """On the rank's own device."""
        return sum(part.bytes for part in self.parts if not part.on_host) / GIB

    @property
    def host_gib(self) -> float:
        """In the host's memory, for ranks that have a GPU."""
        return sum(part.bytes for part in self.parts if part.on_host) / GIB


@dataclass(frozen=True)
class Sharding:
    """The numbers of a DeepSpeed configuration that decide over memory."""

    reuse: float = DEFAULT_LIVE
    prefetch: float = DEFAULT_BUCKET
    reduce_bucket: float = 10 * DEFAULT_BUCKET
    sub_group: float = DEFAULT_LIVE
    """Elements of a rank's share that the optimizer steps over at a time."""
    offload_weights: bool = False
    offload_optimizer: bool = False

    @classmethod
    def read(cls, ds_config: dict[str, Any]) -> "Sharding":
        """From a ds_config with zero_optimization."""
        zero = ds_config["zero_optimization"]

        def offloads(key: str) -> bool:
            return bool((zero.get(key) or {}).get("device", "none") != "none")

        return cls(
            reuse=float(zero.get("stage3_max_reuse_distance", DEFAULT_LIVE)),
            prefetch=float(zero.get("stage3_prefetch_bucket_size", DEFAULT_BUCKET)),
            reduce_bucket=float(zero.get("reduce_bucket_size", 10 * DEFAULT_BUCKET)),
            sub_group=float(zero.get("sub_group_size", DEFAULT_LIVE)),
            offload_weights=offloads("offload_param"),
            offload_optimizer=offloads("offload_optimizer"),
        )


def policy_memory(
    meta: MetaModel, forwards: Sequence[ForwardShape], ranks: int, sharding: Sharding, machine: Machine
) -> RoleMemory:
    """A policy rank's, for these forwards, of which the largest counts."""
    numbers = sum(meta.sizes)
    share = sum(-(-size // ranks) for size in meta.sizes)
    host = machine.kind == "gpu"
    on_host, weights_away = host and sharding.offload_optimizer, host and sharding.offload_weights
    bucket = 4.0 * min(sharding.reduce_bucket, numbers)
    flat = 0 if on_host else 4 * min(share, sharding.sub_group)
    resident, transient = _of_forwards(meta, forwards, ranks, machine)
    parts = [
        Part("baseline", machine.baseline_gib * GIB),
        Part("weights", meta.dtype.itemsize * share, weights_away),
        Part("fp32 masters", 4 * share, on_host),
        Part("fp32 gradients", 4 * share, on_host),
        Part("AdamW moments", 8 * share, on_host),
        Part("reduce bucket", bucket),
        Part("forward and backward", resident + transient),
        Part("optimizer step, above that", max(0.0, flat - transient)),
    ]
    if machine.kind == "cpu" and meta.dtype == torch.bfloat16:
        parts.append(Part("compiled kernels", KERNELS_KEPT * KERNEL_BYTES))
    if ranks > 1 or weights_away:
        parts.insert(5, Part("gathered weights", meta.dtype.itemsize * gathered(numbers, sharding)))
    return RoleMemory("policy", ranks, parts)


def reference_memory(
    meta: MetaModel, name: str, forwards: Sequence[ForwardShape], ranks: int, sharded: bool, machine: Machine
) -> RoleMemory:
    """A rank's of a served reference: it only runs forward."""
    numbers = sum(meta.sizes)
    parts = [Part("baseline", machine.baseline_gib * GIB), *reference_weights(meta, ranks if sharded else 1)]
    if sharded and ranks > 1:
        parts.append(Part("gathered weights", meta.dtype.itemsize * gathered(numbers, Sharding())))
    largest = max(forwards, key=lambda shape: (shape.places, shape.scored))
    parts.append(Part("forward", live_peak(trace_forward(meta, largest, train=False))))
    return RoleMemory(f"ref/{name}", ranks, parts)


def reference_weights(meta: MetaModel, ranks: int) -> list[Part]:
    """What a colocated reference adds to a policy's rank; its forwards reuse what training leaves."""
    return [Part("weights", meta.dtype.itemsize * sum(meta.sizes) / ranks)]


def gathered(numbers: float, sharding: Sharding) -> float:
    """The most gathered elements at a time: those whose next use is near, and the prefetched ones."""
    return min(float(numbers), sharding.reuse / 2 + sharding.prefetch)


def live_peak(trace: Trace) -> int:
    """The most bytes that are alive at a time, as an allocator of a GPU counts them."""
    alive: dict[int, int] = {}
    now = peak = 0
    for number, size in trace.events:
        now += size if size else -alive.pop(number, 0)
        if size:
            alive[number] = size
        peak = max(peak, now)
    return peak


def _of_forwards(
    meta: MetaModel, forwards: Sequence[ForwardShape], ranks: int, machine: Machine
) -> tuple[float, float]:
    """(bytes that stay resident, bytes on top for a moment) of training forwards."""
    largest = max(forwards, key=lambda shape: (shape.places, shape.scored))
    if machine.kind == "gpu":
        return 0.0, float(live_peak(trace_forward(meta, largest, train=True)))
    smallest = min(forwards, key=lambda shape: (shape.places, shape.scored))
    traces = {shape: trace_forward(meta, shape, train=True) for shape in {largest, smallest}}
    return resident_bytes(meta, [traces[shape] for shape in (largest, smallest, largest)], ranks)


def resident_bytes(meta: MetaModel, traces: Sequence[Trace], ranks: int) -> tuple[float, float]:
    """(bytes of a process's heap at its largest, the most bytes that are mapped at a time) of steps, after a load."""
    heap, number = Heap(), FIRST_INIT
    shares = []
    for size in meta.sizes:  # zero.Init cuts one parameter after the other; then all shares go into one flat buffer
        size *= meta.dtype.itemsize
        heap.allocate(number, size)
        heap.allocate(number + 1, -(-size // ranks))
        heap.free(number)
        shares.append(number + 1)
        number += 2
    for share in shares:
        heap.free(share)
    heap.pin(forget=True)
    heap.most_mapped = heap.mapped
    for trace in traces:
        heap.pin()
        for place, (block, size) in enumerate(trace.events):
            if place == trace.backward_from:
                heap.unpin()
            if size:
                heap.allocate(block, size)
            else:
                heap.free(block)
    return float(heap.end + LOGIT_BLOCKS * heap.largest), float(heap.most_mapped)
