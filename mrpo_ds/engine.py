"""A trained policy, sharded with ZeRO-1, 2 or 3, and frozen references. deepspeed is only imported here and below."""

import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn

from mrpo_ds.config.ds_config import frozen_ds_config, stage_of, training_ds_config, uses_cpu_optimizer
from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.errors import ConfigError
from mrpo_ds.models import SequenceScorer, score
from mrpo_ds.partitions import partitions_of
from mrpo_ds.shards import MOMENTS, WEIGHT, Cut, Shapes, Tensors
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

    device: torch.device

    def shapes(self) -> Shapes:
        """The trainable parameters, the same on every rank."""

    def cut(self) -> Cut:
        """How the parameters are cut over the ranks."""

    def optimizer_steps(self) -> int:
        """Steps that the optimizer counts for its bias correction."""

    def local_state(self) -> Tensors:
        """This rank's part of everything, the live tensors, one after the other."""

    def restore(self, read: Callable[[str, str], Tensor], optimizer_steps: int) -> None:
        """Take over what read(kind, name) returns of each parameter; every rank must call it."""


class PolicyEngine(Engine, Restorable, Protocol):
    """What a run needs: to train, and to go on later."""


class DeepSpeedEngine:
    """The policy under ZeRO. Gradients are averaged over ranks: scale the loss by the number of ranks."""

    def __init__(
        self, scorer: SequenceScorer, sharding: dict[str, Any], config: OptimizationConfig, device: torch.device
    ) -> None:
        ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        bf16 = scorer.head.weight.dtype == torch.bfloat16
        ds_config = training_ds_config(sharding, ranks, config.max_grad_norm, bf16)
        deepspeed.init_distributed()  # adopts the default group of this role's world
        if stage_of(sharding) == 3:
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
        self._partitions = partitions_of(self._engine.optimizer, self.shapes(), ranks, rank)

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
        self._partitions.clear()

    def room_for_step(self) -> tuple[list[Tensor], list[Tensor]]:
        """What only a step makes, as tensors of these sizes on these devices.

        First AdamW's moments, which stay, unless a step has made them; then its flat copy of the gradient, if it makes
        one.
        """
        flats = self._partitions.flats
        moments = [] if self.optimizer_steps() else [flat for flat in flats for _ in MOMENTS]
        return moments, self._partitions.gradient_copy()

    def shapes(self) -> Shapes:
        """See Restorable."""
        return {name: full_shape(parameter) for name, parameter in self._trainable()}

    def cut(self) -> Cut:
        """See Restorable."""
        return self._partitions.cut()

    def check_shares(self) -> None:
        """Raise ConfigError when the parameters are not cut in the way that checkpoints know."""
        mine = self.cut().shares(self.shapes(), int(os.environ["RANK"]))
        for name, parameter in self._trainable():
            held, expected = self._partitions.held(name, parameter), mine[name]
            if held != expected:
                raise ConfigError(
                    f"deepspeed: a rank holds {len(held)} elements of {name} from {held.start} on, where a checkpoint "
                    f"needs {len(expected)} from {expected.start} on; allowed: plain ZeRO sharding over all policy "
                    "ranks, or checkpoint.every_steps=0."
                )

    def optimizer_steps(self) -> int:
        """See Restorable."""
        return max((int(state["step"]) for state in self._engine.optimizer.optimizer.state.values()), default=0)

    def local_state(self) -> Tensors:
        """See Restorable."""
        for kind in (WEIGHT, *MOMENTS) if self.optimizer_steps() else (WEIGHT,):
            for name, parameter in self._trainable():
                yield f"{kind}/{name}", self._partitions.get(name, parameter, kind)

    @torch.no_grad()
    def restore(self, read: Callable[[str, str], Tensor], optimizer_steps: int) -> None:
        """See Restorable."""
        self._partitions.begin()
        if optimizer_steps:
            self._make_moments(optimizer_steps)
        for name, parameter in self._trainable():
            for kind in (WEIGHT, *MOMENTS) if optimizer_steps else (WEIGHT,):
                self._partitions.set(name, parameter, kind, read(kind, name))
        self._partitions.end()

    def _trainable(self) -> list[tuple[str, Any]]:
        return [(name, one) for name, one in self.scorer.named_parameters() if one.requires_grad]

    def _make_moments(self, steps: int) -> None:
        """Give the optimizer the state that its first step would make, with the count of so many steps."""
        adam = self._engine.optimizer.optimizer
        on_cpu = isinstance(adam, DeepSpeedCPUAdam)
        for flat in self._partitions.flats:
            counted = torch.tensor(float(steps), device=flat.device)
            adam.state[flat] = {kind: torch.zeros_like(flat) for kind in MOMENTS}
            adam.state[flat]["step"] = steps if on_cpu else counted
        if on_cpu:
            _count_again(adam, steps)


def shard_frozen(scorer: SequenceScorer, ranks: int, device: torch.device) -> nn.Module:
    """A reference whose parameters are sharded over the ranks of this world; call it in step on every rank."""
    config = frozen_ds_config(ranks, scorer.head.weight.dtype == torch.bfloat16)
    deepspeed.init_distributed()  # adopts the default group of this role's world
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
    deepspeed.zero.Init(module=scorer, config_dict_or_path=ds_config, dtype=scorer.head.weight.dtype)
    for module in scorer.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _optimizer(parameters: list[nn.Parameter], config: OptimizationConfig, on_cpu: bool) -> torch.optim.Optimizer:
    settings = {"lr": config.learning_rate, **_adam_settings(config)}
    if on_cpu:
        cpu_adam: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, adamw_mode=True, **settings)
        return cpu_adam
    return torch.optim.AdamW(parameters, fused=True, **settings)  # one pass, no temporaries


def _adam_settings(config: OptimizationConfig) -> dict[str, Any]:
    return {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }


def _count_again(adam: DeepSpeedCPUAdam, steps: int) -> None:
    """Bring the compiled optimizer's own powers of beta to where so many steps had brought them, to the last bit.

    It multiplies them up step by step; a jump would take pow(), which rounds otherwise. Nothing is updated here.
    """
    group = adam.param_groups[0]
    nothing = torch.empty(0)
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(
            adam.opt_id,
            step,
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["bias_correction"],
            nothing,
            nothing,
            nothing,
            nothing,
        )
