"""The DeepSpeed configuration of an engine. The only place where DeepSpeed's batch keys are written."""

import json
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError, require

OWNED_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.learning_rate and its neighbours",
    "scheduler": "train.scheduler",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "data_types": "model.dtype",
    "communication_data_type": "model.dtype",
}

STAGES = (1, 2, 3)
"""What is cut over the ranks: 1 the optimizer's fp32 weights and moments, 2 gradients too, 3 weights too."""
ONLY_STAGE_3 = ("offload_param", "zero_hpz_partition_size", "mics_shard_size", "mics_hierarchical_params_gather")

QUANTIZED = {
    "zero_quantized_weights": "With it the policy is scored with rounded weights and its references with theirs as "
    "they are, so the first log-ratios are not 0.",
    "zero_quantized_nontrainable_weights": "It is for adapters: the policy is trained in full.",
    "zero_quantized_gradients": "Its kernel takes every number for fp16, and gradients are summed in fp32 here.",
}
"""Parts of ZeRO++ that are refused, and why."""


def read_ds_config(path: str) -> dict[str, Any]:
    """A DeepSpeed JSON with sharding only. Raises ConfigError for a missing file, bad JSON or a key that is ours."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"deepspeed is {path!r}, which does not exist; see ds_configs for examples.") from error
    except OSError as error:
        raise ConfigError(f"deepspeed is {path!r}, which cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"deepspeed is {path!r}, which is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"deepspeed is {path!r}, which is not a JSON object.")
    for key, owner in OWNED_KEYS.items():
        if key in values:
            raise ConfigError(f"{path}: {key!r} must not be set there; allowed: remove it and set {owner} instead.")
    zero = values.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in STAGES or isinstance(stage, bool):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage}; allowed: {' | '.join(map(str, STAGES))}.")
    for key, why in QUANTIZED.items():
        name = f"{path}: zero_optimization.{key}"
        require(not values["zero_optimization"].get(key), name, values["zero_optimization"].get(key), "false", why)
    if stage < 3:
        for key in values["zero_optimization"]:
            if key.startswith("stage3_") or key in ONLY_STAGE_3:
                raise ConfigError(
                    f"{path}: zero_optimization.{key} has no effect with stage {stage}, whose weights are whole on "
                    "every rank; allowed: remove it, or set stage to 3."
                )
    return values


def stage_of(sharding: dict[str, Any]) -> int:
    """The ZeRO stage of what read_ds_config returned."""
    return int(sharding["zero_optimization"]["stage"])


def check_partitions(path: str, sharding: dict[str, Any], ranks: int) -> None:
    """Raise ConfigError unless the policy's ranks make up whole groups that keep a second copy of the weights (hpZ)."""
    size = sharding["zero_optimization"].get("zero_hpz_partition_size", 1)
    key = f"{path}: zero_optimization.zero_hpz_partition_size"
    require(isinstance(size, int) and not isinstance(size, bool) and size >= 1, key, size, ">= 1 rank")
    divisors = [str(one) for one in range(1, ranks + 1) if ranks % one == 0]
    require(
        ranks % size == 0,
        key,
        size,
        f"a divisor of topology.policy ({ranks}): {' | '.join(divisors)}",
        "It is the number of policy ranks on a node.",
    )


def check_restorable(path: str, sharding: dict[str, Any]) -> None:
    """Raise ConfigError for sharding whose state a checkpoint cannot read: it needs plain ZeRO shares in memory."""
    zero = sharding["zero_optimization"]
    for section in ("offload_optimizer", "offload_param"):
        offload = zero[section] if isinstance(zero.get(section), dict) else {}
        devices = ("none", "cpu") if stage_of(sharding) == 3 else ("none",)
        wanted = {"device": devices, "ratio": (1, 1.0), "super_offload": (False,)}
        for key, allowed in wanted.items():
            if offload.get(key, allowed[0]) not in allowed:
                raise _not_restorable(path, f"{section}.{key}", offload[key], f"{allowed[-1]}")
    for key in ("mics_shard_size", "zenflow", "round_robin_gradients", "parameter_alignment"):
        if zero.get(key) not in (None, -1, {}, False):
            raise _not_restorable(path, key, zero[key], "leave it out")


def _not_restorable(path: str, key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(
        f"{path}: zero_optimization.{key} is {value!r}, and checkpoints cannot hold the state of such runs; allowed: "
        f"{allowed}, or checkpoint.every_steps=0."
    )


def training_ds_config(sharding: dict[str, Any], ranks: int, max_grad_norm: float, bf16: bool) -> dict[str, Any]:
    """The configuration of the policy's engine.

    DeepSpeed's own accumulation is 1: the loss carries the exact global denominator and the trainer marks the
    boundary itself, so the number of micro-batches may differ from step to step.
    """
    return {
        **sharding,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        **_precision(bf16),
    }


def frozen_ds_config(ranks: int, bf16: bool) -> dict[str, Any]:
    """The configuration of a reference whose parameters are sharded over its ranks."""
    return {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": ranks,
        **_precision(bf16),
    }


def uses_cpu_optimizer(ds_config: dict[str, Any]) -> bool:
    """Whether the optimizer states live on the CPU, which asks for DeepSpeed's own CPU Adam."""
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return bool(offload.get("device", "none") != "none")


def _precision(bf16: bool) -> dict[str, Any]:
    if not bf16:
        return {}
    # gloo has no bf16 reduction; and in bf16 the sum over many micro-batches would lose the late ones, so that the
    # result would depend on how a batch was cut. fp32 shards of the gradient cost 2 more bytes per parameter / ranks.
    return {
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
