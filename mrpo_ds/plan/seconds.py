"""How long the parts of a step take: what a trace counted, at the rates of a machine."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo_ds.plan.machine import Machine
from mrpo_ds.plan.trace import ForwardShape, MetaModel, Trace, trace_forward

PROBES = (ForwardShape(1, 64, 32), ForwardShape(1, 128, 32), ForwardShape(2, 64, 32), ForwardShape(1, 64, 64))
"""Forwards that tell apart what grows with tokens, with squares of rows, with scored tokens, and with nothing."""
BRIDGE_SECONDS = 1e-3
"""A message over the bridge and its broadcast, besides its bytes: two hops of TCP between processes that are ready."""
ADAMW_BYTES = 4 * 7
"""Per parameter of a rank's share: weight, gradient and two moments are read, all but the gradient written."""
STEP_BYTES = 4 * (2 + 3 + 2 + 1)
"""Per parameter of a rank's share, around AdamW: flatten the gradient, its norm in double, clip it, and clear it."""


@dataclass(frozen=True)
class Cost:
    """What is to be done."""

    matmul_flops: float = 0.0
    attention_flops: float = 0.0
    moved_bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.matmul_flops + other.matmul_flops,
            self.attention_flops + other.attention_flops,
            self.moved_bytes + other.moved_bytes,
            self.kernels + other.kernels,
        )


@dataclass(frozen=True)
class CostModel:
    """The cost of a forward, or of one with its backward, as a function of its shape."""

    coefficients: Tensor
    """[4 features, 4 fields of Cost] float64."""

    def __call__(self, shapes: Iterable[ForwardShape]) -> Cost:
        """Of all of these."""
        total = Cost()
        for shape in shapes:
            values = torch.tensor(_features(shape), dtype=torch.float64) @ self.coefficients
            total = total + Cost(*values.clamp(min=0).tolist())
        return total


def cost_model(meta: MetaModel, train: bool) -> CostModel:
    """From four small traces: every part of a cost is linear in the features, so they determine it."""
    features = torch.tensor([_features(shape) for shape in PROBES], dtype=torch.float64)
    costs = torch.tensor([_fields(trace_forward(meta, shape, train)) for shape in PROBES], dtype=torch.float64)
    return CostModel(torch.linalg.solve(features, costs))


def compute_seconds(cost: Cost, machine: Machine, dtype: torch.dtype) -> float:
    """Arithmetic, bytes and launches, one after the other, as operations of one stream run."""
    rate = 1e12 * (machine.tflops.bf16 if dtype == torch.bfloat16 else machine.tflops.fp32)
    work = cost.matmul_flops / rate + cost.attention_flops / (rate * machine.attention_efficiency)
    launches = 1e-6 * machine.launch_us * cost.kernels
    bytes_ = cost.moved_bytes / (1e9 * machine.elementwise_gbs)
    # A GPU is told of the next operations while it works on these; a CPU does both itself.
    return max(work + bytes_, launches) if machine.kind == "gpu" else work + bytes_ + launches


def optimizer_seconds(meta: MetaModel, ranks: int, machine: Machine) -> float:
    """AdamW over a rank's share, and what DeepSpeed does around it."""
    share = sum(meta.sizes) / ranks
    copied = 4 + meta.dtype.itemsize  # the new weights, into the precision of the forward
    return share * (ADAMW_BYTES + STEP_BYTES + copied) / (1e9 * machine.memory_gbs)


def collective_seconds(meta: MetaModel, forwards: int, ranks: int, reuse: float, machine: Machine) -> float:
    """ZeRO-3's traffic of a step: weights gathered for every forward and backward, gradients scattered after each.

    Weights of models that fit the reuse distance stay until backward (PartitionedParameterCoordinator), so they are
    gathered once. Gradients travel in float32 (communication_data_type).
    """
    numbers = sum(meta.sizes)
    gathers = 1 if 2 * numbers <= reuse else 2
    sent = numbers * (gathers * meta.dtype.itemsize + 4) * (ranks - 1) / ranks
    return forwards * sent / (1e9 * machine.between(ranks))


def reduce_seconds(meta: MetaModel, forwards: int, machine: Machine) -> float:
    """What every backward moves to bring its gradients into the rank's share, however many ranks there are.

    Into the bucket, together for the collective, divided, and added to the share: 9 float32 per parameter.
    """
    return forwards * sum(meta.sizes) * 4 * 9 / (1e9 * machine.memory_gbs)


def bridge_seconds(prompts: int, responses: int, references: int, machine: Machine) -> float:
    """One answer of every reference to the policy: two float64 a response."""
    sent = references * prompts * responses * 2 * 8
    return BRIDGE_SECONDS + sent / (1e9 * machine.internode_gbs)


def _features(shape: ForwardShape) -> list[float]:
    return [1.0, float(shape.places), float(shape.rows * shape.width**2), float(shape.scored)]


def _fields(trace: Trace) -> list[float]:
    return [float(x) for x in (trace.matmul_flops, trace.attention_flops, trace.moved_bytes, trace.kernels)]
