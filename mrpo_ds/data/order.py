"""The order of the data: a pure function of (seed, step), so every rank of every role computes it and none is told.

An epoch sorts its examples by a BLAKE2b hash. Random generators may change with a library's version; a hash cannot, so
a run resumed after an upgrade sees the same rows.
"""

import hashlib
from functools import lru_cache


def epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    """A permutation of 0 .. num_examples - 1, another one for every seed and epoch."""
    return list(_epoch_order(num_examples, seed, epoch))


@lru_cache(maxsize=2)  # around an epoch's end, references that run ahead are in the next one
def _epoch_order(num_examples: int, seed: int, epoch: int) -> tuple[int, ...]:
    def position(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}|{epoch}|{index}".encode(), digest_size=16).digest()

    return tuple(sorted(range(num_examples), key=position))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer steps that see every example once. The last may be smaller than the others; nothing is dropped."""
    return -(-num_examples // batch_size)


def total_steps(num_examples: int, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole run: all epochs, or max_steps if that is less."""
    steps = epochs * steps_per_epoch(num_examples, batch_size)
    return steps if max_steps is None else min(steps, max_steps)


def step_ids(num_examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the examples of one global batch.

    Args:
        num_examples: examples of the data set, at least 1.
        batch_size: prompts per optimizer step over all ranks, at least 1.
        seed: seed of the order.
        step: optimizer step, from 0.
    """
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    order = _epoch_order(num_examples, seed, epoch)
    return list(order[position * batch_size : (position + 1) * batch_size])
