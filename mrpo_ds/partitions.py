"""Where DeepSpeed's optimizers keep this rank's share of the fp32 weights, moments and gradients, for each ZeRO stage.

Stage 3 cuts every parameter by itself, and names functions that read and write the shares. Stages 1 and 2 lay the
parameters end to end and cut that; each parameter knows which part of it is in this rank's partition.
"""

from typing import Any, Protocol

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from mrpo_ds.shards import WEIGHT, Cut, Shapes, share


class Partitions(Protocol):
    """One rank's part of a policy."""

    flats: list[Tensor]
    """The flat fp32 weights that the inner optimizer steps over; it keeps its moments under them."""

    def cut(self) -> Cut:
        """How the parameters are cut over the ranks."""

    def held(self, name: str, parameter: Any) -> range:
        """The elements of a parameter that this rank really holds."""

    def get(self, name: str, parameter: Any, kind: str) -> Tensor:
        """[elements of this rank] fp32: the live weight or moment, without padding."""

    def set(self, name: str, parameter: Any, kind: str, values: Tensor) -> None:
        """Replace what get returns, between begin and end."""

    def begin(self) -> None:
        """Before the first set."""

    def end(self) -> None:
        """After the last set: forwards read the new weights. Every rank must call it."""

    def clear(self) -> None:
        """Forget the gradient accumulated since the last step."""

    def gradient_copy(self) -> list[Tensor]:
        """A tensor of the size of what a step copies of the gradient on the device, if it does."""


class ByParameter:
    """ZeRO-3."""

    def __init__(self, optimizer: Any, ranks: int, rank: int) -> None:
        self.flats: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        self._optimizer = optimizer
        self._ranks = ranks
        self._rank = rank

    def cut(self) -> Cut:
        """See Partitions."""
        return Cut(self._ranks)

    def held(self, name: str, parameter: Any) -> range:
        """See Partitions. What is cut in another way has too many elements, and so is found out."""
        size = parameter.ds_tensor.numel()
        if size != -(-parameter.ds_numel // self._ranks):
            return range(size)
        return share(parameter.ds_numel, self._ranks, self._rank)

    def get(self, name: str, parameter: Any, kind: str) -> Tensor:
        """See Partitions."""
        if kind == WEIGHT:
            padded: Tensor = safe_get_local_fp32_param(parameter)
        else:
            padded = safe_get_local_optimizer_state(parameter, kind)
        return padded[: len(share(parameter.ds_numel, self._ranks, self._rank))]

    def set(self, name: str, parameter: Any, kind: str, values: Tensor) -> None:
        """See Partitions."""
        padded = nn.functional.pad(values, (0, parameter.ds_tensor.numel() - values.numel()))
        if kind == WEIGHT:
            safe_set_local_fp32_param(parameter, padded)
            parameter.ds_tensor.copy_(padded)  # what the forward reads, in the model's own precision
        else:
            safe_set_local_optimizer_state(parameter, padded, kind)

    def begin(self) -> None:
        """See Partitions."""
        self._optimizer.checkpoint_event_prologue()  # small parameters that every rank keeps whole are let go

    def end(self) -> None:
        """See Partitions."""
        self._optimizer.checkpoint_event_epilogue()  # and gathered again, from the new weights

    def clear(self) -> None:
        """See Partitions."""
        self._optimizer.zero_grad()  # the next backward overwrites the partitions where the last one added to them
        self._optimizer.grad_partitions_flat_buffer.zero_()  # but not those of parameters that it does not reach

    def gradient_copy(self) -> list[Tensor]:
        """See Partitions. It is made group by group where the optimizer is on the device."""
        on_cpu = isinstance(self._optimizer.optimizer, DeepSpeedCPUAdam)
        return [] if on_cpu else [max(self.flats, key=torch.Tensor.numel)]


class EndToEnd:
    """ZeRO-1 and ZeRO-2: DeepSpeedZeroOptimizer, or BF16_Optimizer, which DeepSpeed takes for ZeRO-1 in bf16."""

    def __init__(self, optimizer: Any, shapes: Shapes, ranks: int, rank: int) -> None:
        self._bf16 = isinstance(optimizer, BF16_Optimizer)
        flats = optimizer.fp32_groups_flat_partition if self._bf16 else optimizer.single_partition_of_fp32_groups
        self.flats: list[Tensor] = flats
        self._optimizer = optimizer
        assert len(self.flats) == 1, "the engine makes one group of parameters"
        self._cut = Cut(ranks, self.flats[0].numel())
        self._shares = self._cut.shares(shapes, rank)

    def cut(self) -> Cut:
        """See Partitions."""
        return self._cut

    def held(self, name: str, parameter: Any) -> range:
        """See Partitions."""
        place = parameter._hp_mapping and parameter._hp_mapping.lp_fragment_address
        if not place:
            return self._shares[name][:0]
        return range(place.start, place.start + place.numel)

    def get(self, name: str, parameter: Any, kind: str) -> Tensor:
        """See Partitions."""
        flat = self.flats[0]
        source: Tensor = flat.detach() if kind == WEIGHT else self._optimizer.optimizer.state[flat][kind]
        if not self._shares[name]:
            return source[:0]
        place = parameter._hp_mapping.hp_fragment_address
        return source[place.start : place.start + place.numel]

    def set(self, name: str, parameter: Any, kind: str, values: Tensor) -> None:
        """See Partitions."""
        self.get(name, parameter, kind).copy_(values)

    def begin(self) -> None:
        """See Partitions."""

    def end(self) -> None:
        """See Partitions."""
        self._optimizer.update_lp_params()

    def clear(self) -> None:
        """See Partitions."""
        self._optimizer.zero_grad()
        if self._bf16:
            return
        for gradients in (self._optimizer.averaged_gradients, self._optimizer.all_grad_tensors):
            for group in gradients:
                gradients[group] = None
        self._optimizer.micro_step_id = -1  # with an optimizer on the host: the next gradient is the first
        if self._optimizer.cpu_offload:
            self._optimizer.reset_cpu_buffers()

    def gradient_copy(self) -> list[Tensor]:
        """See Partitions. In bf16 the gradient is summed in fp32, flat, and no copy is made."""
        fp32_model = self._optimizer.dtype == torch.float32 if not self._bf16 else False
        return self.flats if fp32_model and not self._optimizer.cpu_offload else []


def partitions_of(optimizer: Any, shapes: Shapes, ranks: int, rank: int) -> Partitions:
    """Those of an engine's optimizer."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return ByParameter(optimizer, ranks, rank)
    return EndToEnd(optimizer, shapes, ranks, rank)
