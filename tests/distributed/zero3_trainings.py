"""What a rank of test_memory does with a real ZeRO-3 engine. The imports here are all it needs."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mrpo_ds.activations import HostActivations, Packed
from mrpo_ds.config.ds_config import read_ds_config
from mrpo_ds.config.schema import ModelConfig, OptimizationConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.models import SequenceScorer, load_scorer
from tests.distributed.harness import everyone_left

STEPS = 3
FROZEN = {
    "nothing": (),
    "embeddings": ("embed_tokens",),
    "a layer": ("layers.0.",),
    "all but a norm": ("embed", "proj"),
}
"""What is frozen -> parts of the names of its parameters. The head is tied to the embeddings."""


@dataclass(frozen=True)
class Counting(HostActivations):
    """Counts what it moves, and what of that was a weight as ZeRO-3 had just gathered it."""

    scorer: SequenceScorer | None = None
    fewest_bytes: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"moved": 0, "weights": 0})

    def pack(self, tensor: Tensor) -> Packed:
        """See HostActivations."""
        packed = super().pack(tensor)
        if not isinstance(packed, Tensor) and self.scorer is not None:
            weights = {one.untyped_storage().data_ptr() for one in self.scorer.parameters() if one.numel()}
            self.counts["moved"] += 1
            self.counts["weights"] += tensor.untyped_storage().data_ptr() in weights
        return packed


def train(topology: Topology, launch: Launch, model: str, sharding: str) -> dict[str, Any]:
    """{what is frozen: {way: (losses, norms)}} of three steps, without and with checkpointing and offload."""
    from mrpo_ds.engine import DeepSpeedEngine

    rendezvous = open_rendezvous(launch, 60)
    world = split(topology, rendezvous, share_gpus=False)
    report: dict[str, Any] = {}
    for frozen, names in FROZEN.items():
        for way, checkpointing, offload in (
            ("plain", 0, 0),
            ("checkpointed", 1, 0),
            ("both", 1, 1),
            ("offloaded", 0, 1),
        ):
            config = ModelConfig(path=model, gradient_checkpointing=bool(checkpointing))
            scorer = load_scorer(config, torch.float32, trainable=True)
            for name, parameter in scorer.named_parameters():
                parameter.requires_grad_(not any(part in name for part in names))
            host = Counting(scorer=scorer)
            if offload:
                scorer.saving = host
            optimization = OptimizationConfig(learning_rate=1e-2, max_grad_norm=1.0)
            engine = DeepSpeedEngine(scorer, read_ds_config(sharding), optimization, world.device)
            losses, norms = [], []
            for step in range(STEPS):
                loss = torch.zeros(())
                for micro in range(2):
                    rows = engine.forward(_rows(step, micro, world.rank))
                    loss = loss - rows.sum().detach()
                    engine.backward(-rows.sum() / 100, last=micro == 1)
                losses.append(float(loss))
                norms.append(engine.step(1e-2))
            report[f"{frozen}, {way}"] = (losses, norms, dict(host.counts))
    leave()
    everyone_left(topology, rendezvous.store, launch.rank)
    return report


def _rows(step: int, micro: int, rank: int) -> Any:
    """Other token ids for every micro-batch of every step and rank."""
    start = 10 + 40 * step + 20 * micro + 10 * rank
    return Layout(pad_id=0).collate(
        [[Encoded(ids=list(range(start, start + length)), prompt_length=3)] for length in (9, 14)]
    )
