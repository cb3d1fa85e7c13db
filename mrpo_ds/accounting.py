"""A step's operations against the clock: model teraflop/s, MFU and what is computed twice."""

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_ds.flops import ModelShape, forward_flops, recomputed_flops, training_flops
from mrpo_ds.types import Work


@dataclass(frozen=True)
class Accounting:
    """What the policy's steps are measured against."""

    shape: ModelShape
    checkpointing: bool
    """Whether backward computes the layers again."""
    ranks: int
    """Devices of the policy."""
    peak_tflops: float | None
    """Of one device; None where it is not known, and then there is no MFU."""

    def metrics(self, work: Work, scored: Sequence[Work], seconds: float) -> dict[str, float]:
        """perf/model_tflops_per_second over all ranks, perf/mfu if the peak is known, and perf/recompute_fraction.

        Args:
            work: of the global batch that is trained on.
            scored: what the policy only scored for the step, without a backward (a loss's baseline).
            seconds: of the step, waiting included.
        """
        model = training_flops(self.shape, work) + sum(forward_flops(self.shape, one) for one in scored)
        again = recomputed_flops(self.shape, work, self.checkpointing)
        achieved = model / seconds / 1e12
        values = {
            "perf/model_tflops_per_second": achieved,
            "perf/recompute_fraction": again / max(model + again, 1),
        }
        if self.peak_tflops is not None:
            values["perf/mfu"] = achieved / (self.ranks * self.peak_tflops)
        return values
