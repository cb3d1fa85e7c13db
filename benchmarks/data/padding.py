"""What share of a forward's token places is padding or filler, and how many there are: shared, packed and padded rows.

    .venv/bin/python -m benchmarks.data.padding ROWS.jsonl.gz... [--adapter hh_rlhf] [--model MODEL]

Counts whole epochs as the policy's ranks compute them; nothing is run. Writes benchmarks/results/padding.json.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.common import SMOLLM2, write_result
from mrpo_ds.config.schema import DataConfig, ModelConfig, OptimizationConfig, SourceConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.micro import PolicyBatcher
from mrpo_ds.data.plan import train_batches
from mrpo_ds.data.prepare import Prepared, Watch, prepare_split
from mrpo_ds.data.rendering import Renderer
from mrpo_ds.models import load_tokenizer
from mrpo_ds.types import Needs

CASES = [(64, 8192, 1), (64, 8192, 2), (64, 8192, 4), (64, 8192, 8), (16, 4096, 2), (8, 2048, 2)]
"""Prompts of a step, tokens of a forward, ranks."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--adapter", default="hh_rlhf")
    parser.add_argument("--model", default=str(SMOLLM2))
    options = parser.parse_args()
    renderer = Renderer(load_tokenizer(ModelConfig(path=options.model)), "policy", "auto", score_eos=True)
    sources = [SourceConfig(source=file, adapter=options.adapter) for file in options.files]
    config = DataConfig(view="pair", max_length=1024, max_dropped_fraction=0.1)
    prepared = prepare_split(sources, config, renderer, "train", Watch(lambda *_: nullcontext(_Silent()), print))
    rows = [measure(prepared, *case) for case in CASES]
    result = {
        "tokenizer": Path(options.model).name,
        "examples": len(prepared.examples),
        "cases": rows,
    }
    write_result("padding", result)
    return 0


class _Silent:
    def update(self, count: int) -> None:
        """No bar."""


def measure(prepared: Prepared, batch_size: int, tokens: int, ranks: int) -> dict[str, float]:
    """Padding, places and forwards of an epoch: prompts shared, sequences packed, sequences padded."""
    values: dict[str, float] = {"batch_size": batch_size, "micro_batch_tokens": tokens, "ranks": ranks}
    config = OptimizationConfig(batch_size=batch_size, micro_batch_tokens=tokens)
    splits, encodings = {"train": prepared.examples}, {"train": prepared.encodings}
    layouts = {"shared": Layout(0, shared=True), "packed": Layout(0), "padded": Layout(0, packed=False)}
    for name, layout in layouts.items():
        batcher = PolicyBatcher(
            splits, encodings, layout, config, Needs(views=("pair",)), 0, ranks, torch.device("cpu")
        )
        built = [batcher.build(batch) for batch in train_batches(len(prepared.examples), config, 0)]
        places = sum(one.work.tokens / (1 - one.padding) for one in built)
        values[f"{name}_padding"] = round(1 - sum(one.work.tokens for one in built) / places, 4)
        values[f"{name}_places"] = round(places)
        values[f"{name}_forwards_per_step"] = round(sum(len(one.micros) for one in built) / len(built), 2)
    return values


if __name__ == "__main__":
    sys.exit(main())
