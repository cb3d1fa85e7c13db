"""The global batches of a run, in order: what every rank of every role computes for itself, so no ids travel."""

from dataclasses import dataclass, replace

from mrpo_ds.config.schema import OptimizationConfig
from mrpo_ds.data.order import step_ids, total_steps
from mrpo_ds.types import Example

Splits = dict[str, list[Example]]
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


def eval_batches(num_examples: int, batch_size: int) -> list[Batch]:
    """The held-out rows in file order. The last batch may be smaller; nothing is dropped."""
    starts = range(0, num_examples, batch_size)
    return [
        Batch("eval", position, tuple(range(start, min(start + batch_size, num_examples))))
        for position, start in enumerate(starts)
    ]


def train_batches(num_examples: int, config: OptimizationConfig, first_step: int) -> list[Batch]:
    """The batches of optimizer steps first_step .. the last."""
    steps = total_steps(num_examples, config.batch_size, config.epochs, config.max_steps)
    return [
        Batch("train", step, tuple(step_ids(num_examples, config.batch_size, config.seed, step)))
        for step in range(first_step, steps)
    ]


def num_responses(examples: list[Example]) -> int:
    """R of a batch: the most responses of any of its prompts."""
    return max(len(example.responses) for example in examples)
