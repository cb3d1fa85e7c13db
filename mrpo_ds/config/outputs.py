"""The sections of a run's configuration that say what it leaves behind: checkpoints, evaluations, tracking."""

import math
from dataclasses import dataclass, field

from mrpo_ds.errors import require, require_choice


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints to resume from."""

    every_steps: int = 100
    """Optimizer steps between checkpoints, >= 1, or 0 for none but when the run is asked to stop."""
    keep: int = 2
    """Newest checkpoints that stay on disk, >= 1."""
    background: bool = True
    """Copy to host memory and write while training goes on; false, or too little free memory: training waits."""
    on_failure: str = "continue"
    """When a checkpoint cannot be written (a full disk): continue with the ones before it, or stop the run."""
    allow_changes: bool = False
    """Let --resume go on from a checkpoint that other settings, rows or weights were written with."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, ">= 0 steps")
        require(self.keep >= 1, "checkpoint.keep", self.keep, ">= 1")
        require_choice("checkpoint.on_failure", self.on_failure, ("continue", "stop"))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Preference evaluation on data.eval, and a leaderboard's tasks after training."""

    every_steps: int = 100
    """Optimizer steps between evaluations, >= 1, or 0 for only before and after training."""
    suite: str | None = None
    """A suite of eval/suites, or a YAML like those, to score the trained model on at the end; null: none."""
    suite_limit: int | None = None
    """At most so many documents of each task, >= 1, for trials; null: all."""
    offline: str | None = None
    """A mirror of the suite's data (mrpo-ds eval-prefetch), for machines without a network; null: the Hub."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluate.every_steps", self.every_steps, ">= 0 steps")
        limit = self.suite_limit
        require(limit is None or limit >= 1, "evaluate.suite_limit", limit, ">= 1 document, or null")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`, never from here."""

    mode: str = "auto"
    """auto: online when there is a key, offline otherwise. online | offline | disabled."""
    project: str = "mrpo-ds"
    """Project name."""
    entity: str | None = None
    """Team or user, or null for the account's default."""
    group: str | None = None
    """Runs of one experiment share a group."""
    name: str | None = None
    """Run name, or null for the name of output_dir."""

    def __post_init__(self) -> None:
        require_choice("tracking.wandb.mode", self.mode, ("auto", "online", "offline", "disabled"))


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the numbers go besides metrics.jsonl."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases settings."""
    plots: bool = True
    """Draw plots/*.png at the end."""
    peak_tflops: float | None = None
    """Matmul peak of a device in the policy's precision, > 0 TFLOP/s, for perf/mfu; null: that of mrpo_ds/peaks.py."""

    def __post_init__(self) -> None:
        peak = self.peak_tflops
        require(peak is None or 0 < peak < math.inf, "tracking.peak_tflops", peak, "> 0 teraflop/s, or null")
