"""Activations that backward needs, kept in host memory until it asks for them.

torch.autograd.graph.save_on_cpu would move weights too, which autograd saves like any other tensor: every micro-batch
would copy the whole model to the host and back, where ZeRO-3 frees a parameter and gathers it anew by itself.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FEWEST_BYTES = 1 << 20
"""Smaller tensors stay: norms, masks' rows and positions are many, and a copy of each costs more than its room."""


@dataclass(frozen=True)
class _OnHost:
    """A tensor that waits on the host, and where it came from."""

    copy: Tensor
    device: torch.device


Packed = Tensor | _OnHost


@dataclass(frozen=True)
class HostActivations:
    """Saved-tensor hooks. With gradient checkpointing around them, only each layer's input passes through here."""

    host: torch.device = torch.device("cpu")
    fewest_bytes: int = FEWEST_BYTES

    def __call__(self) -> AbstractContextManager[None]:
        """A context for a forward: what it saves for backward waits on the host."""
        hooks: AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        return hooks

    def pack(self, tensor: Tensor) -> Packed:
        """What is kept in place of a saved tensor."""
        if not self.moves(tensor):
            return tensor
        # Pinned, so that neither copy stops the host: both are in order on the stream that computes.
        copy = torch.empty_like(tensor, device=self.host, pin_memory=tensor.is_cuda)
        return _OnHost(copy.copy_(tensor, non_blocking=True), tensor.device)

    def unpack(self, packed: Packed) -> Tensor:
        """The saved tensor again, on its own device."""
        if isinstance(packed, _OnHost):
            return packed.copy.to(packed.device, non_blocking=True)
        return packed

    def moves(self, tensor: Tensor) -> bool:
        """Whether a saved tensor is an activation worth a copy: neither a weight or a view of one, nor small."""
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return False
        # whole numbers and masks are ids, positions and such: made once a forward, so moving them frees nothing
        return tensor.is_floating_point() and tensor.numel() * tensor.element_size() >= self.fewest_bytes
