"""One process of a run that trains nothing of use: `python -m mrpo_ds.plan.probe`, started by plan/measure.py.

It says what a process weighs before any model, what an operation costs besides its arithmetic under ZeRO-3, and how
fast its world exchanges tensors: one line of JSON from rank 0.
"""

import json
import os
import statistics
import sys
import time
from importlib import import_module

import psutil
import torch

from mrpo_ds.config.ds_config import read_ds_config
from mrpo_ds.config.schema import ModelConfig, OptimizationConfig
from mrpo_ds.distributed.speed import collective_gbs
from mrpo_ds.engine import DeepSpeedEngine
from mrpo_ds.models import SequenceScorer
from mrpo_ds.plan.trace import ForwardShape, meta_model, trace_forward
from mrpo_ds.types import SequenceBatch

STEPS, WARM = 12, 4
TOKENS = 16
LINK_SECONDS = 2.0


def main(ds_config: str, tokenizer: str) -> int:
    """Measure as the rank that the environment says."""
    import_module("mrpo_ds.run")  # with the next, all that a run imports
    import_module("mrpo_ds.roles")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    small = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlamaConfig(**small, num_hidden_layers=8, num_key_value_heads=2)
    scorer = SequenceScorer(LlamaForCausalLM(config)).train()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = torch.device("cuda", torch.cuda.current_device())
    engine = DeepSpeedEngine(scorer, read_ds_config(ds_config), OptimizationConfig(), device)
    link = collective_gbs(device, LINK_SECONDS)
    # On two ranks, as a run: the latency of each gather is part of what an operation costs besides its work.
    meta = meta_model(config, torch.float32, ModelConfig(path="", gradient_checkpointing=False))
    kernels = trace_forward(meta, ForwardShape(1, TOKENS, TOKENS - 1), train=True).kernels
    read = AutoTokenizer.from_pretrained(tokenizer)  # kept: a run keeps it too
    launch = _seconds_per_forward(engine, device) / kernels * 1e6
    baseline = _baseline_bytes(device) / 2**30  # of this model a few MB
    assert read is not None
    if os.environ["RANK"] == "0":
        print(json.dumps({"baseline_gib": baseline, "launch_us": launch, "link_gbs": link}), flush=True)
    return 0


def _baseline_bytes(device: torch.device) -> int:
    """Of this process on its CPU; on a GPU what is taken there and is no tensor of torch's."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def _seconds_per_forward(engine: DeepSpeedEngine, device: torch.device) -> float:
    """Median seconds of a forward and backward of a model too small to compute anything."""
    places = torch.arange(TOKENS).unsqueeze(0)
    scored = torch.arange(TOKENS - 1)
    batch = SequenceBatch(
        input_ids=places + 1,
        position_ids=places,
        attention_mask=None,
        segments=torch.zeros(1, 2, TOKENS, dtype=torch.int32),
        predictors=scored,
        targets=scored + 2,
        places=scored,
        table=(1, TOKENS - 1),
    ).to(device)
    times = []
    for step in range(STEPS):
        started = time.perf_counter()
        engine.backward(engine.forward(batch).sum(), last=step % 2 == 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        if step % 2:
            engine.step(0.0)
    return statistics.median(times[WARM:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
