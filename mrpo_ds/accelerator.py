"""What the machine computes on, said before anyone asks."""

import os

import torch

KERNELS_KEPT = 32
"""Kernels that oneDNN keeps compiled, by shape: more than a forward and backward have, so that layers share them."""


def announce_cpu() -> None:
    """Tell deepspeed that there is no GPU, before it is imported: it guesses otherwise, with a warning.

    transformers imports it by itself when it is installed, so this comes first in every command.

    oneDNN, and torch's layer over it, keep 1,024 kernels of every kind for shapes that may come again. Packed rows have
    another width in every forward, so in bf16 each one left 10 MB and more in the process that nothing used again.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
        os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNELS_KEPT))
