"""The whole configuration of a run, as frozen dataclasses. Standard library only.

Ranges are checked in __post_init__ with the full key, the value, what is allowed and how to mend it.
What needs other files (data, models) or other sections (topology against batch sizes) is checked in check.py.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from mrpo_ds.config.outputs import CheckpointConfig, EvaluateConfig, TrackingConfig
from mrpo_ds.config.shares import is_part
from mrpo_ds.errors import require, require_choice

MISSING = "???"  # OmegaConf's mark of a mandatory value
DTYPES = ("auto", "bf16", "fp32")
ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3")
TEMPLATES = ("auto", "plain")
VIEWS = ("auto", "pair", "triple", "ranked", "best", "unpaired", "point")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a causal language model that is trained in full."""

    path: str = MISSING
    """A directory with safetensors and a tokenizer, or a Hub id."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    allow_pickle: bool = False
    """Also read weights from *.bin, a pickle, where there are no safetensors. docs/security.md says what that risks."""
    trust_remote_code: bool = False
    """Run the Python code that comes with this model, with all rights of this user, on every rank that reads it."""
    dtype: str = "auto"
    """auto | bf16 | fp32. auto: bf16 on GPUs and on CPUs with AMX or AVX512-BF16, else fp32; the log says which."""
    attention: str = "sdpa"
    """sdpa | eager | flex_attention | flash_attention_2 | flash_attention_3, as transformers names them."""
    chat_template: str = "auto"
    """auto: the tokenizer's own template, the plain one if it has none. plain: always the plain one."""
    packing: bool = True
    """Several sequences share a row of a forward, each attending to itself alone: next to nothing is padding."""
    prefix_sharing: bool = True
    """A prompt's tokens are computed once for all its responses. Needs packing, and an attention that takes masks."""
    gradient_checkpointing: bool = True
    """Recompute activations in backward: about 1/3 more compute, far less memory."""
    activation_offload: bool = False
    """Activations wait for backward in host memory (docs/memory.md), at the cost of two copies. No effect on CPUs."""

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype, DTYPES)
        require_choice("model.attention", self.attention, ATTENTIONS)
        require_choice("model.chat_template", self.chat_template, TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """One frozen reference model. The first of the list is RefM1, the one the policy starts from."""

    name: str = MISSING
    """Short name for the metrics (ref/<name>/...): letters, digits, '-', '_' and '.'."""
    path: str = MISSING
    """A directory with safetensors and a tokenizer, or a Hub id."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    allow_pickle: bool = False
    """Also read weights from *.bin, a pickle, where there are no safetensors. docs/security.md says what that risks."""
    trust_remote_code: bool = False
    """Run the Python code that comes with this model, with all rights of this user, on every rank that reads it."""
    dtype: str = "auto"
    """auto | bf16 | fp32. Keep RefM1 at the policy's dtype, or the first margins are biased."""
    attention: str = "sdpa"
    """sdpa | eager | flex_attention | flash_attention_2 | flash_attention_3."""
    chat_template: str = "auto"
    """auto: the tokenizer's own template, the plain one if it has none. plain: always the plain one."""
    packing: bool = True
    """Several sequences share a row of a forward, as for the policy."""
    prefix_sharing: bool = True
    """As for the policy."""
    sharding: str = "none"
    """none: whole on each of its ranks. zero3: parameters sharded over its ranks."""
    batch_tokens: int = 16384
    """Most tokens per scoring forward and rank, padding included, >= 1: no activations are kept, so more than the
    policy's. A longer single prompt goes alone."""

    def __post_init__(self) -> None:
        key = f"references[{self.name}]"
        require(
            bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name.replace(MISSING, "missing")),
            f"{key}.name",
            self.name,
            "letters, digits, '-', '_' and '.'",
        )
        require(self.name != "policy", f"{key}.name", self.name, "any other name; that one is the trained model's")
        require_choice(f"{key}.dtype", self.dtype, DTYPES)
        require_choice(f"{key}.attention", self.attention, ATTENTIONS)
        require_choice(f"{key}.chat_template", self.chat_template, TEMPLATES)
        require_choice(f"{key}.sharding", self.sharding, ("none", "zero3"))
        require(self.batch_tokens >= 1, f"{key}.batch_tokens", self.batch_tokens, ">= 1 token")


@dataclass(frozen=True, kw_only=True)
class DeadlinesConfig:
    """How long a process may be in one phase without progress before it is named and the run ends, > 0 seconds each."""

    load: float = 3600.0
    """Loading a model and its preflight."""
    score: float = 1800.0
    """A reference scoring one batch, and the policy waiting for it."""
    train: float = 1800.0
    """One optimizer step, what is compiled before the first included."""
    evaluate: float = 1800.0
    """One batch of an evaluation."""
    checkpoint: float = 3600.0
    """Writing a checkpoint."""
    export: float = 3600.0
    """Writing the trained model."""

    def __post_init__(self) -> None:
        for name in ("load", "score", "train", "evaluate", "checkpoint", "export"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"topology.deadlines.{name}", value, "> 0 seconds")


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """Who sits on which rank."""

    policy: int = 1
    """Ranks of the policy, >= 1."""
    references: dict[str, int] = field(default_factory=dict)
    """Ranks of each reference by name, >= 1 each; those not named here get 1. Only for placement served."""
    placement: str = "served"
    """served: references on ranks of their own. colocated: on the policy's ranks. stored: read from the store."""
    run_ahead: int = 2
    """Steps that the references may be ahead of the policy, >= 0. Only for placement served."""
    store: str | None = None
    """Directory of the reference store; served and colocated references look into it first and add what they score.
    null: none for them, and <cache>/references, beside the prepared data, for placement stored."""
    store_missing: str = "refuse"
    """refuse | score (on the policy's ranks) the rows that the store lacks. Only for placement stored."""
    store_check_fraction: float = 0.01
    """Share of the stored rows that the real model scores again at the start, 0 to 1, at least one row. 0: none, and
    with every row stored no model is loaded."""
    share_gpus: bool = False
    """Allow ranks of different roles on one GPU (more processes than GPUs on a node)."""
    interface: str | None = None
    """Network interface, by name (eth0) or address, on which the run's own servers listen. null: the one that leads to
    MASTER_ADDR."""
    timeout_seconds: float = 600.0
    """A process that gives no sign of life for this long ends the run, > 0 seconds."""
    deadlines: DeadlinesConfig = field(default_factory=DeadlinesConfig)
    """How long each phase may go without progress although the process lives."""

    def __post_init__(self) -> None:
        require(self.policy >= 1, "topology.policy", self.policy, ">= 1 rank")
        for name, ranks in self.references.items():
            require(ranks >= 1, f"topology.references.{name}", ranks, ">= 1 rank")
        require_choice("topology.placement", self.placement, ("served", "colocated", "stored"))
        require_choice("topology.store_missing", self.store_missing, ("refuse", "score"))
        fraction = self.store_check_fraction
        require(0 <= fraction <= 1, "topology.store_check_fraction", fraction, "0 to 1")
        require(self.run_ahead >= 0, "topology.run_ahead", self.run_ahead, ">= 0 steps")
        require(0 < self.timeout_seconds < math.inf, "topology.timeout_seconds", self.timeout_seconds, "> 0 seconds")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data file or Hub data set and how to read its rows."""

    source: str = MISSING
    """A .json, .jsonl, .jsonl.gz or .parquet file, or a Hub data set id."""
    adapter: str | None = None
    """A file name of mrpo_ds/data/adapters: what the columns mean. null: that of the Hub data set if there is one for
    it (docs/datasets.md), else pairs."""
    split: str = "train"
    """Split of a Hub data set; a local file has one and ignores it."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    subset: str | None = None
    """Configuration of a Hub data set that has several, or null."""
    folder: str | None = None
    """Folder of a Hub data set whose files are read ("helpful-base" of HH-RLHF), or null."""
    limit: int | None = None
    """Read only the first rows, >= 1, or null for all."""
    take: list[Any] | None = None
    """[begin, end) of the rows in the random order of data.split_seed: rows such as [0, 364], or shares such as
    [90%, 100%]. Two parts that do not overlap have no row in common. null: all rows."""

    def __post_init__(self) -> None:
        key = f"limit of data source {self.source!r}"
        require(self.limit is None or self.limit >= 1, key, self.limit, ">= 1 rows, or null")
        allowed = "null, [begin, end] in rows such as [0, 364], or in shares such as [90%, 100%], with begin < end"
        require(is_part(self.take), f"take of data source {self.source!r}", self.take, allowed)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it is cut."""

    train: list[SourceConfig] = field(default_factory=list)
    """Training sources, read one after the other."""
    eval: list[SourceConfig] = field(default_factory=list)
    """Held-out sources; may be empty."""
    view: str = "auto"
    """auto: the usual one of the loss. pair: the best and the worst response of each row. triple: the best (gold), the
    next (chosen) and the worst (rejected). ranked: every response, best first. best: the best alone. unpaired: single
    responses with a label; of several, the best and the worst. point: every response by itself, with its score."""
    eval_view: str = "auto"
    """View of the held-out rows; auto: that of the training rows."""
    split_seed: int = 0
    """Seed of the random order that `take` of a source cuts, >= 0. Apart from train.seed: the same rows are held out
    whatever order they are trained in."""
    max_length: int = 1024
    """Longest prompt + response, in policy tokens, >= 2. Longer responses are cut, as text, for every model."""
    score_turns: str = "last"
    """last: only the answer that is compared is scored. all: the assistant's earlier turns in the prompt too."""
    score_eos: bool = True
    """Score the closing end-of-turn token of complete responses, by every model or by none."""
    max_dropped_fraction: float = 0.01
    """Stop when more rows than this cannot be used, 0 to 1."""
    max_left_out_fraction: float = 0.05
    """Stop when more responses than this (empty, repeated, without a score) are left out of rows that stay, 0 to 1."""
    max_truncated_fraction: float = 0.1
    """Stop when more rows than this have a response cut, 0 to 1."""
    max_misread_fraction: float = 0.01
    """Stop when more rows than this do not survive some model's tokenizer or template unchanged, 0 to 1."""
    cache_dir: str | None = None
    """Where prepared rows and token ids are kept, by content; null: $MRPO_DS_CACHE, else ~/.cache/mrpo-ds."""
    workers: int | None = None
    """Processes that prepare large data on a node, >= 1, or null for one per core, but at most 8: each needs 0.3 to 0.8
    GiB."""

    def __post_init__(self) -> None:
        require_choice("data.view", self.view, VIEWS)
        require_choice("data.eval_view", self.eval_view, VIEWS)
        require(self.split_seed >= 0, "data.split_seed", self.split_seed, ">= 0")
        require_choice("data.score_turns", self.score_turns, ("last", "all"))
        require(self.workers is None or self.workers >= 1, "data.workers", self.workers, ">= 1, or null")
        require(self.max_length >= 2, "data.max_length", self.max_length, ">= 2 tokens")
        for key in ("max_dropped_fraction", "max_left_out_fraction", "max_truncated_fraction", "max_misread_fraction"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"data.{key}", value, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """The optimizer step."""

    batch_size: int = 64
    """Prompts per optimizer step over all policy ranks, a multiple of topology.policy."""
    micro_batch_size: int | None = None
    """Most prompts per forward and rank, >= 1, or null for as many as micro_batch_tokens allows."""
    micro_batch_tokens: int = 8192
    """Most tokens per forward and rank, padding included, >= 1. A longer single prompt goes alone."""
    epochs: int = 1
    """Passes over the training rows, >= 1."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, >= 1, or null for all epochs. The schedule ends there too."""
    max_seconds: float | None = None
    """Stop in time, with a checkpoint and exit code 75, to take no longer than this, > 0 seconds, or null. Within a
    Slurm job its end counts too."""
    learning_rate: float = 5e-7
    """Peak learning rate of AdamW, > 0."""
    weight_decay: float = 0.0
    """AdamW weight decay, >= 0."""
    adam_beta1: float = 0.9
    """AdamW beta1, 0 <= beta1 < 1."""
    adam_beta2: float = 0.999
    """AdamW beta2, 0 <= beta2 < 1."""
    adam_epsilon: float = 1e-8
    """AdamW epsilon, > 0."""
    scheduler: str = "linear"
    """linear | cosine (both to 0) | constant, after the warm-up."""
    warmup_ratio: float = 0.1
    """Fraction of all steps over which the learning rate rises from 0, 0 to 1."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm to this, > 0; inf never clips."""
    max_skipped_steps: int = 0
    """Steps with a number that is not finite which the whole run may leave out, >= 0. 0: stop at the first one."""
    dry_run: bool | None = None
    """Before the first step, forward and backward of the longest micro-batch that the limits allow, so that a lack of
    memory ends the run now and not after hours (docs/memory.md). null: on GPUs only."""
    seed: int = 0
    """Seed of the data order, >= 0."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1 prompts")
        size = self.micro_batch_size
        require(size is None or size >= 1, "train.micro_batch_size", size, ">= 1 prompts, or null")
        require(self.micro_batch_tokens >= 1, "train.micro_batch_tokens", self.micro_batch_tokens, ">= 1 tokens")
        require(self.epochs >= 1, "train.epochs", self.epochs, ">= 1")
        require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, ">= 1, or null")
        seconds = self.max_seconds
        require(seconds is None or seconds > 0, "train.max_seconds", seconds, "> 0 seconds, or null")
        require(0 < self.learning_rate < math.inf, "train.learning_rate", self.learning_rate, "> 0")
        require(0 <= self.weight_decay < math.inf, "train.weight_decay", self.weight_decay, ">= 0")
        for key in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, key) < 1, f"train.{key}", getattr(self, key), "0 <= value < 1")
        require(0 < self.adam_epsilon < math.inf, "train.adam_epsilon", self.adam_epsilon, "> 0")
        require_choice("train.scheduler", self.scheduler, ("linear", "cosine", "constant"))
        require(0 <= self.warmup_ratio <= 1, "train.warmup_ratio", self.warmup_ratio, "0 to 1")
        require(self.max_grad_norm > 0, "train.max_grad_norm", self.max_grad_norm, "> 0")
        require(self.max_skipped_steps >= 0, "train.max_skipped_steps", self.max_skipped_steps, ">= 0 steps")
        require(self.seed >= 0, "train.seed", self.seed, ">= 0")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: a file of mrpo_ds/losses and its own options. Written flat in YAML."""

    name: str
    """File name in mrpo_ds/losses."""
    options: Any
    """That file's Config."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    references: list[ReferenceConfig] = field(default_factory=list)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    loss: Any = MISSING
    """LossConfig after loading; in YAML {name: ..., and that loss's options}."""
    data: DataConfig = field(default_factory=DataConfig)
    train: OptimizationConfig = field(default_factory=OptimizationConfig)
    deepspeed: str = "ds_configs/zero3.json"
    """A DeepSpeed JSON with sharding and precision only; batch sizes and the optimizer come from train."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output_dir: str = MISSING
    """The run directory; must be new, unless --resume continues the run in it."""
