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
class SamplesConfig:
    """What the policy says to fixed prompts at every evaluation: samples.jsonl, docs/wandb.md."""

    held_out: int = 4
    """The first so many prompts of data.eval, >= 0."""
    prompts: list[str] = field(default_factory=list)
    """Texts of users that are asked before them, each as a conversation of its own."""
    max_new_tokens: int = 64
    """Most tokens of an answer, >= 1. The likeliest token is taken each time."""

    def __post_init__(self) -> None:
        require(self.held_out >= 0, "evaluate.samples.held_out", self.held_out, ">= 0 prompts")
        for index, text in enumerate(self.prompts):
            require(bool(text.strip()), f"evaluate.samples.prompts[{index}]", text, "text that is not empty")
        require(self.max_new_tokens >= 1, "evaluate.samples.max_new_tokens", self.max_new_tokens, ">= 1 token")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Preference evaluation on data.eval, and a leaderboard's tasks after training."""

    every_steps: int = 100
    """Optimizer steps between evaluations, >= 1, or 0 for only before and after training."""
    suite: str | None = None
    """A suite of eval/suites, or a YAML like those, to score the trained model on at the end; null: none."""
    suite_limit: int | None = None
    """At most so many documents of each task, >= 1, for trials; null: all."""
    suite_batch_size: int = 16
    """Requests a forward, >= 1; the same for all models of a table."""
    suite_dtype: str = "checkpoint"
    """Of the weights: checkpoint, as they were saved | bf16 | fp32."""
    suite_chat_template: bool | None = None
    """Whether prompts are turns of a chat; null: what the suite says."""
    offline: str | None = None
    """A mirror of the suite's data (mrpo-ds eval-prefetch), for machines without a network; null: the Hub."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """What the policy is asked."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluate.every_steps", self.every_steps, ">= 0 steps")
        limit = self.suite_limit
        require(limit is None or limit >= 1, "evaluate.suite_limit", limit, ">= 1 document, or null")
        require(self.suite_batch_size >= 1, "evaluate.suite_batch_size", self.suite_batch_size, ">= 1 request")
        require_choice("evaluate.suite_dtype", self.suite_dtype, ("checkpoint", "bf16", "fp32"))


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
    """Runs of one experiment share a group. null: WANDB_RUN_GROUP, else the name of the config file; "": none."""
    name: str | None = None
    """Run name, or null for the name of output_dir."""
    log_model: str = "none"
    """none | end: at the end, the trained model as an artifact."""

    def __post_init__(self) -> None:
        require_choice("tracking.wandb.mode", self.mode, ("auto", "online", "offline", "disabled"))
        require_choice("tracking.wandb.log_model", self.log_model, ("none", "end"))


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
