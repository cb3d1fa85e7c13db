"""What the machine computes on, said before anyone asks."""

import os

import torch


def announce_cpu() -> None:
    """Tell deepspeed that there is no GPU, before it is imported: it guesses otherwise, with a warning.

    transformers imports it by itself when it is installed, so this comes first in every command.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
