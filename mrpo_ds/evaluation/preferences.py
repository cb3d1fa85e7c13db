"""Preference accuracy and reward margin on held-out prompts, during training."""

from mrpo_ds.data.micro import PolicyBatch
from mrpo_ds.engine import Engine
from mrpo_ds.metrics import Totals
from mrpo_ds.objective import Objective
from mrpo_ds.reference.client import ReferenceAnswer


def evaluate_preferences(
    engine: Engine, objective: Objective, batches: list[PolicyBatch], answers: list[ReferenceAnswer]
) -> dict[str, float]:
    """Means over all held-out prompts under the names of the training metrics, the same on every rank.

    The references' answers were computed once, before training.
    """
    totals = Totals(objective.reference_names)
    for batch, answer in zip(batches, answers, strict=True):
        for micro in batch.micros:
            logps, output = objective.apply(batch, micro, engine.score(micro.sequences), answer)
            totals.add(output, logps, micro)
    return totals.means()
