"""A loss with its options, applied to the batches of a run."""

from dataclasses import dataclass

from torch import Tensor

from mrpo_ds.config.schema import Config
from mrpo_ds.data.micro import MicroBatch, PolicyBatch
from mrpo_ds.losses import LossFunction, load
from mrpo_ds.reference.client import ReferenceAnswer
from mrpo_ds.types import LossOutput, ResponseLogps


@dataclass(frozen=True)
class Objective:
    """What is minimised, and the names under which its references are logged."""

    loss: LossFunction
    options: object
    reference_names: list[str]

    @classmethod
    def from_config(cls, config: Config) -> "Objective":
        """The objective that a run asks for."""
        _, loss = load(config.loss.name)
        return cls(loss, config.loss.options, [reference.name for reference in config.references])

    def apply(
        self, batch: PolicyBatch, micro: MicroBatch, rows: Tensor, reference: ReferenceAnswer
    ) -> tuple[ResponseLogps, LossOutput]:
        """The loss of one micro-batch from its rows' [N] log-probs."""
        logps = batch.logps(micro, rows, reference.logps, reference.lengths)
        return logps, self.loss(logps, self.options)

    def num_valid(self, batch: PolicyBatch, reference: ReferenceAnswer) -> int:
        """Prompts of the global batch that count: the exact denominator under any packing, accumulation or tail."""
        return int(self.loss(batch.without_policy(reference.logps, reference.lengths), self.options).valid.sum())
