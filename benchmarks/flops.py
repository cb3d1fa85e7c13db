"""Model FLOPs utilization of our policy in bench_step: the arithmetic it needs over what the device could do."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common import spread
from benchmarks.runs import Plan
from benchmarks.shapes import parameters

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bf16 with fp32 accumulation, from the makers' data sheets, by a part of the device's name."""


def training_flops(sizes: dict[str, int], tokens: float) -> float:
    """Floating-point operations of a forward and a backward of so many tokens: 6 for each parameter and token.

    Attention between tokens and the recomputation of activations are left out, and a tied embedding is counted once
    although its look-up is free: for a 1B model at 2k tokens, too little by less than a tenth.
    """
    return 6.0 * sizes["parameters"] * tokens


def mfu(
    plan: Plan, turns: Sequence[dict[str, Any]], lengths: Sequence[Sequence[int]], peak: float | None
) -> dict[str, Any]:
    """What the policy reaches, without the time of its colocated reference.

    The run's own perf/mfu where it logs one. Else each prompt's tokens are counted once, however often they were
    computed, against peak (TFLOP/s) or that of the device; nothing where neither is known.
    """
    logged = [value for turn in turns for value in turn["mfu"][1:] if value is not None]
    if logged:
        return {"mfu": spread(logged), "mfu_counts": "perf/mfu"}
    peak = peak or device_peak(plan.device)
    if peak is None:
        return {}
    values = []
    for turn in turns:
        steps = list(zip(turn["seconds"], turn["reference_seconds"], strict=True))
        for step, (seconds, reference) in list(enumerate(steps))[1:]:
            of_step = lengths[step * plan.batch : (step + 1) * plan.batch]
            flops = training_flops(parameters(plan.model), sum(map(sum, of_step)))
            values.append(flops / (seconds - reference) / (peak * 1e12))
    return {"mfu": spread(values), "mfu_counts": "6 x parameters x tokens, prompts once", "peak_tflops": peak}


def device_peak(device: str) -> float | None:
    """TFLOP/s in bf16 of the first GPU, if it is one of PEAK_TFLOPS."""
    if device != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
