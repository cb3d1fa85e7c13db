"""Samples under a real ZeRO-3 engine of two ranks: answers of the present weights, and a training that knows of none.

That the answers are those of plain transformers is in tests/unit/test_samples.py, and of an exported model in
tests/e2e/test_wandb.py.
"""

import json
from typing import Any

import pytest
import torch

from mrpo_ds.config.ds_config import read_ds_config
from mrpo_ds.config.schema import ModelConfig, OptimizationConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded, Renderer
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.models import load_scorer, load_tokenizer
from mrpo_ds.types import Message
from tests.distributed.harness import everyone_left, make_topology, run_ranks
from tests.support import make_model

STEPS = 4
QUESTIONS = ["What is the capital of France?", "Two plus two is", "Why?"]
"""One more than ranks: in the second round one of them has nothing to answer."""
WAYS = {"never": None, "copied": 0.5, "in place": 0.0}
"""How the policy is asked -> the memory that a copy may take."""


def train(topology: Topology, launch: Launch, model: str, sharding: str) -> dict[str, Any]:
    """{way: losses and norms of the steps, and what was said after each}."""
    from mrpo_ds.engine import DeepSpeedEngine
    from mrpo_ds.samples import Prompt, Sampler

    rendezvous = open_rendezvous(launch, 60)
    world = split(topology, rendezvous, share_gpus=False)
    config = ModelConfig(path=model, gradient_checkpointing=True)
    renderer = Renderer(load_tokenizer(config), "policy", "auto", score_eos=True)
    prompts = [Prompt(text, renderer.prompt_ids([Message("user", text)]), 10) for text in QUESTIONS]
    ends = [renderer.tokenizer.eos_token_id]
    report: dict[str, Any] = {}
    for way, most in WAYS.items():
        scorer = load_scorer(config, torch.float32, trainable=True)
        optimization = OptimizationConfig(learning_rate=1e-2, max_grad_norm=1.0)
        engine = DeepSpeedEngine(scorer, read_ds_config(sharding), optimization, world.device)
        numbers, said = [], []
        for step in range(STEPS):
            rows = engine.forward(_rows(step, world.rank))
            engine.backward(-rows.sum() / 100, last=True)
            numbers.append((float(rows.sum().detach()), engine.step(1e-2), float(engine.score(_rows(9, 0)).sum())))
            if most is not None:
                sampler = Sampler(
                    scorer.model, renderer, prompts, ends, world.rank, world.size, world.device, most_of_memory=most
                )
                said.append(sampler.sample(lambda: None))
        report[way] = {"numbers": numbers, "said": said}
    leave()
    everyone_left(topology, rendezvous.store, launch.rank)
    return report


def _rows(step: int, rank: int) -> Any:
    start = 10 + 20 * step + 10 * rank
    return Layout(pad_id=0).collate(
        [[Encoded(ids=list(range(start, start + length)), prompt_length=3)] for length in (9, 14)]
    )


@pytest.fixture(scope="module", params=[0, 10_000], ids=["all sharded", "small ones kept whole"])
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("samples")
    sharding = root / "zero3.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": request.param}
    sharding.write_text(json.dumps({"zero_optimization": zero}))
    model = make_model(root / "model", scale=0.1)
    return run_ranks(train, make_topology(2), str(model), str(sharding), timeout=240)


@pytest.mark.parametrize("way", ["copied", "in place"])
def test_the_training_is_the_same_to_the_bit(reports: list[dict[str, Any]], way: str) -> None:
    for report in reports:
        losses = [loss for loss, _, _ in report["never"]["numbers"]]
        assert len(set(losses)) == STEPS
        assert report[way]["numbers"] == report["never"]["numbers"]


def test_every_rank_has_every_answer_and_both_ways_give_the_same(reports: list[dict[str, Any]]) -> None:
    said = [report[way]["said"] for report in reports for way in ("copied", "in place")]
    assert said[0] == said[1] == said[2] == said[3]
    assert all([one["prompt"] for one in samples] == QUESTIONS for samples in said[0])
    assert len({json.dumps(samples) for samples in said[0]}) > 1, "the training changes what is said"
