"""What a rank of test_numbers does with a real ZeRO engine. The imports here are all it needs."""

import hashlib

import torch

from mrpo_ds.config.ds_config import read_ds_config
from mrpo_ds.config.schema import ModelConfig, OptimizationConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.models import load_scorer

STEPS = ["good", "bad", "good"]


def parameters_after(topology: Topology, launch: Launch, model: str, preset: str, dtype: torch.dtype) -> list[str]:
    """A digest of the weights after each of several ways to leave the bad step out; the first never had it."""
    from mrpo_ds.engine import DeepSpeedEngine, gathered

    world = split(topology, open_rendezvous(launch, 60), share_gpus=False)
    config = ModelConfig(path=model, gradient_checkpointing=False)
    digests = []
    for way in ("without", "finite, cleared", "nan, cleared", "nan, stepped"):
        scorer = load_scorer(config, dtype, trainable=True)
        optimization = OptimizationConfig(learning_rate=1e-2, max_grad_norm=1.0)
        engine = DeepSpeedEngine(scorer, read_ds_config(f"ds_configs/{preset}.json"), optimization, world.device)
        norms = []
        for number, kind in enumerate(STEPS):
            if kind == "bad" and way == "without":
                continue
            for micro in range(2):
                factor = torch.nan if kind == "bad" and way.startswith("nan") else 1.0
                loss = engine.forward(rows(number, micro, world.rank)).sum() * factor
                engine.backward(loss, last=micro == 1)
            if kind == "bad" and way.endswith("cleared"):
                engine.clear()
            else:
                norms.append(engine.step(1e-2))
        assert [torch.isfinite(torch.tensor(norm)).item() for norm in norms].count(False) == (way == "nan, stepped")
        digest = hashlib.sha256()
        with gathered(list(scorer.parameters())):
            for parameter in scorer.parameters():
                digest.update(parameter.detach().float().numpy().tobytes())
        digests.append(digest.hexdigest())
    leave()
    return digests


def rows(step: int, micro: int, rank: int):  # type: ignore[no-untyped-def]
    """Other token ids for every micro-batch of every step and rank."""
    start = 10 + 40 * step + 20 * micro + 10 * rank
    return Layout(pad_id=0).collate([[Encoded(ids=list(range(start, start + 9)), prompt_length=3)]])
