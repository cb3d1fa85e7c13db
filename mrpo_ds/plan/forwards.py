"""The forwards that a run will really make: a few of its steps, by the code that makes them, without a model."""

from dataclasses import dataclass

import torch

from mrpo_ds.config.schema import ReferenceConfig
from mrpo_ds.data.plan import Batch
from mrpo_ds.material import POLICY, Material
from mrpo_ds.plan.trace import ForwardShape
from mrpo_ds.types import SequenceBatch, Work

CPU = torch.device("cpu")
SAMPLED_STEPS = 6
"""Steps that are looked at, spread over the first epoch."""


@dataclass(frozen=True)
class PolicyStep:
    """One step of the policy's busiest rank."""

    forwards: list[ForwardShape]
    """With backward."""
    scored: list[ForwardShape]
    """Without: the rows of the loss's baseline."""
    work: Work
    """Of all ranks."""
    padding: float


def sampled(material: Material) -> list[Batch]:
    """A few training batches of the run."""
    batches = material.train_batches(0)
    per_epoch = max(1, min(len(batches), len(material.splits["train"]) // material.config.train.batch_size))
    count = min(SAMPLED_STEPS, per_epoch)
    return [batches[step * per_epoch // count] for step in range(count)]


def policy_steps(material: Material, ranks: int) -> list[PolicyStep]:
    """What the policy's first rank computes of the sampled batches: it has the heaviest forward of every round."""
    layout = material.speakers[POLICY].layout(material.config.model)
    batcher = material.batcher(layout, 0, ranks, CPU)
    steps = []
    for batch in sampled(material):
        built = batcher.build(batch)
        forwards = [_shape(micro.sequences) for micro in built.micros]
        scored: list[ForwardShape] = []
        if material.needs.baseline == "batch":
            scored = forwards
        elif material.needs.baseline == "mismatched":
            scored = [_shape(micro.sequences) for micro in batcher.build(batch.mismatched()).micros]
        steps.append(PolicyStep(forwards, scored, built.work, built.padding))
    return steps


def reference_steps(material: Material, reference: ReferenceConfig, ranks: int) -> list[list[ForwardShape]]:
    """The forwards by which the first of a reference's ranks answers each sampled batch."""
    speaker = material.speakers[reference.name]
    layout = speaker.layout(reference)
    steps = []
    for batch in sampled(material):
        asked = [batch, batch.mismatched()] if material.needs.baseline == "mismatched" else [batch]
        forwards = []
        for one in asked:
            prompts = [speaker.encodings[one.split][index] for index in one.ids]
            groups = prompts if layout.shared else [[row] for rows in prompts for row in rows]
            plan = layout.group([layout.units(group) for group in groups], reference.batch_tokens, None, ranks)
            forwards += [_shape(layout.collate([groups[index] for index in part or [0]])) for part in plan[::ranks]]
        steps.append(forwards)
    return steps


def _shape(sequences: SequenceBatch) -> ForwardShape:
    rows, width = sequences.input_ids.shape
    return ForwardShape(rows, width, len(sequences.predictors))
