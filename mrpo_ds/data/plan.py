"""The global batches of a run, in order: what every rank of every role computes for itself, so no ids travel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.lazy import Lazy
from mrpo_ds.data.order import step_ids, total_steps
from mrpo_ds.types import Example

Splits = dict[str, Sequence[Example]]
MISMATCHED = "~mismatched"
"""Ends the name of a split whose prompts have the responses of other prompts (mrpo_ds/data/mismatched.py)."""


@dataclass(frozen=True)
class Batch:
    """One global batch."""

    split: str
    """train or eval, or one of these with MISMATCHED."""
    step: int
    """0-based optimizer step (train) or position (eval)."""
    ids: tuple[int, ...]
    """[B] indices of the split's examples."""

    def examples(self, splits: Splits) -> list[Example]:
        """[B] the batch's examples."""
        return [splits[self.split][index] for index in self.ids]

    def mismatched(self) -> "Batch":
        """The same prompts with the responses of other prompts."""
        return replace(self, split=self.split + MISMATCHED)


Batches = Lazy[Batch]
"""Those of a long run would fill memory."""


def eval_batches(num_examples: int, batch_size: int) -> Batches:
    """The held-out rows in file order. The last batch may be smaller; nothing is dropped."""
    return batches_of("eval", num_examples, batch_size)


def batches_of(split: str, num_examples: int, batch_size: int) -> Batches:
    """The rows of a split in file order. The last batch may be smaller; nothing is dropped."""

    def make(position: int) -> Batch:
        start = position * batch_size
        return Batch(split, position, tuple(range(start, min(start + batch_size, num_examples))))

    return Batches(-(-num_examples // batch_size), make)


def train_batches(num_examples: int, config: OptimizationConfig, first_step: int) -> Batches:
    """The batches of optimizer steps first_step .. the last."""
    steps = total_steps(num_examples, config.batch_size, config.epochs, config.max_steps)

    def make(index: int) -> Batch:
        step = first_step + index
        return Batch("train", step, tuple(step_ids(num_examples, config.batch_size, config.seed, step)))

    return Batches(max(0, steps - first_step), make)
