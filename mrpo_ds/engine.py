"""The only importer of deepspeed: a trained policy and frozen references, sharded with ZeRO-3."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn

from mrpo_ds.config.ds_config import frozen_ds_config, training_ds_config, uses_cpu_optimizer
from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.models import SequenceScorer, score
from mrpo_ds.types import SequenceBatch

# On CPUs DeepSpeed would first compile a shared-memory all-reduce that only its inference engine calls: a minute lost,
# and a build that is killed leaves a lock on which every later run of the user would wait for ever.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Engine(Protocol):
    """What the training step needs from an engine."""

    device: torch.device

    def forward(self, batch: SequenceBatch) -> Tensor:
        """[N] summed log-probs of the batch's responses, nats, with gradient."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of a scalar; last marks the last micro-batch of the step."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear. Returns the gradient norm before clipping; not finite: it only cleared."""

    def clear(self) -> None:
        """Forget the gradient accumulated since the last step, as if those backwards had never been."""

    def score(self, batch: SequenceBatch) -> Tensor:
        """[N] summed log-probs without gradient."""


class Restorable(Protocol):
    """What a checkpoint needs from an engine."""

    def save(self, directory: Path, tag: str) -> None:
        """Write this rank's shards of parameters and optimizer; every rank must call it.

        Raises OSError or RuntimeError when this rank could not write, after all ranks have tried.
        """

    def load(self, directory: Path, tag: str) -> None:
        """Read what save wrote, at the same number of ranks."""


class PolicyEngine(Engine, Restorable, Protocol):
    """What a run needs: to train, and to go on later."""


class DeepSpeedEngine:
    """The policy under ZeRO-3. Gradients are averaged over ranks: scale the loss by the number of ranks."""

    def __init__(
        self, scorer: SequenceScorer, sharding: dict[str, Any], config: OptimizationConfig, device: torch.device
    ) -> None:
        ranks = int(os.environ["WORLD_SIZE"])
        bf16 = scorer.head.weight.dtype == torch.bfloat16
        ds_config = training_ds_config(sharding, ranks, config.max_grad_norm, bf16)
        _shard(scorer, ds_config, device)
        parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
        self.scorer = scorer
        self.device = device
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            optimizer=_optimizer(parameters, config, uses_cpu_optimizer(ds_config)),
            config=ds_config,
            dist_init_required=False,
        )
        self._settings = _adam_settings(config)
        self._writes = _HeldWrites(self._engine)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """See Engine."""
        return score(self._engine, batch)

    def score(self, batch: SequenceBatch) -> Tensor:
        """See Engine."""
        with torch.no_grad():
            return score(self._engine, batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See Engine."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> float:
        """See Engine."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            self.clear()
        return norm

    def clear(self) -> None:
        """See Engine."""
        optimizer = self._engine.optimizer
        optimizer.zero_grad()  # the next backward overwrites the partitions where the last one added to them
        optimizer.grad_partitions_flat_buffer.zero_()  # but not those of parameters that it does not reach

    def save(self, directory: Path, tag: str) -> None:
        """See Engine."""
        self._writes.error = None
        self._engine.save_checkpoint(str(directory), tag=tag, save_latest=False)
        if self._writes.error is not None:
            raise self._writes.error

    def load(self, directory: Path, tag: str) -> None:
        """See Engine."""
        self._engine.load_checkpoint(str(directory), tag=tag)
        for group in self._engine.optimizer.param_groups:  # it came back with the settings that were saved
            group.update(self._settings)


class _HeldWrites:
    """Holds back the write errors of DeepSpeed's checkpoints until all ranks are through.

    save_checkpoint has barriers: an error on one rank (a full disk) would leave the others in them for ever.
    """

    def __init__(self, engine: Any) -> None:
        self.error: OSError | RuntimeError | None = None
        writer = engine.checkpoint_engine
        writer.save = self._holding(writer.save)
        engine._copy_recovery_script = self._holding(engine._copy_recovery_script)

    def _holding(self, write: Callable[..., None]) -> Callable[..., None]:
        def attempt(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                self.error = self.error or error

        return attempt


def shard_frozen(scorer: SequenceScorer, ranks: int, device: torch.device) -> nn.Module:
    """A reference whose parameters are sharded over the ranks of this world; call it in step on every rank."""
    config = frozen_ds_config(ranks, scorer.head.weight.dtype == torch.bfloat16)
    _shard(scorer, config, device)
    engine: nn.Module = deepspeed.initialize(model=scorer, config=config, dist_init_required=False)[0]
    engine.eval()  # DeepSpeed's own returns nothing
    return engine


def gathered(parameters: list[nn.Parameter]) -> Any:
    """Context in which sharded parameters are whole on every rank; every rank must enter it."""
    return deepspeed.zero.GatheredParameters(parameters)


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter before it was sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _shard(scorer: SequenceScorer, ds_config: dict[str, Any], device: torch.device) -> None:
    """Shard a model that was loaded on the CPU, one parameter after the other.

    deepspeed.initialize would first move all of it to the device, where a large model does not fit.
    """
    deepspeed.init_distributed()  # adopts the default group of this role's world
    deepspeed.zero.Init(module=scorer, config_dict_or_path=ds_config, dtype=scorer.head.weight.dtype)
    for module in scorer.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _optimizer(parameters: list[nn.Parameter], config: OptimizationConfig, on_cpu: bool) -> torch.optim.Optimizer:
    settings = {"lr": config.learning_rate, **_adam_settings(config)}
    if on_cpu:
        cpu_adam: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
        return cpu_adam
    return torch.optim.AdamW(parameters, fused=torch.cuda.is_available(), **settings)


def _adam_settings(config: OptimizationConfig) -> dict[str, Any]:
    return {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
