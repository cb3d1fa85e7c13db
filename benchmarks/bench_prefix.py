"""What sharing a prompt between its responses gains, by the ratio of prompt to response and by the number of responses.

    .venv/bin/python -m benchmarks.bench_prefix [--models .cache/models/SmolLM2-135M-Instruct tiny] [--dtype fp32]

The same tokens in packed rows that repeat the prompt for every response, and in rows that hold it once, by turns in one
process: the policy's forward and backward, and a reference's forward. P tokens a prompt, R responses of `--response`
tokens. The gain is the median time of the former over that of the latter. It is set against two bounds:

    bound             (R P + sum R) / (P + sum R): the tokens that go through the layers
    bound_with_head   the same with the language-model head counted, which sees the response tokens alone on both sides

Log-probs and gradients of both must agree, or the exit code is 1.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import SMOLLM2, median, pick_device, spread, write_result
from benchmarks.shapes import SHAPES, parameters, save_synthetic
from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.models import SequenceScorer, load_scorer, resolve_dtype, score
from mrpo_ds.types import SequenceBatch

AGREEMENT = {"fp32": 1e-4, "bf16": 2e-2}
"""Between the two layouts, relative to the largest log-prob or to the gradient's norm."""


@dataclass(frozen=True)
class Case:
    """One shape of a forward's rows."""

    ratio: float
    """P over the tokens of a response."""
    responses: int
    response_tokens: int
    tokens: int
    """About so many with the prompts repeated."""

    @property
    def prompt_tokens(self) -> int:
        return max(2, round(self.ratio * self.response_tokens))

    @property
    def prompts(self) -> int:
        return max(1, round(self.tokens / (self.responses * (self.prompt_tokens + self.response_tokens))))

    def bound(self, head_share: float = 0.0) -> float:
        """The gain if time went with arithmetic. head_share: the head's parameters over those of the layers."""
        answers = self.responses * self.response_tokens
        head = head_share * answers
        return (self.responses * self.prompt_tokens + answers + head) / (self.prompt_tokens + answers + head)

    def groups(self, vocabulary: int) -> list[list[Encoded]]:
        """The prompts' sequences, of random tokens."""
        generator = torch.Generator().manual_seed(0)

        def draw(count: int) -> list[int]:
            ids: list[int] = torch.randint(100, vocabulary, (count,), generator=generator).tolist()
            return ids

        prompts = [draw(self.prompt_tokens) for _ in range(self.prompts)]
        return [
            [Encoded([*prompt, *draw(self.response_tokens)], len(prompt)) for _ in range(self.responses)]
            for prompt in prompts
        ]


def main() -> int:
    options = parse_arguments()
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    cases = [
        Case(ratio, responses, options.response, options.tokens)
        for ratio, responses in itertools.product(options.ratios, options.responses)
    ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-prefix-") as folder:
        for name in options.models:
            path = Path(name)
            if name in SHAPES:
                path = save_synthetic(name, Path(folder) / name, options.tokenizer, dtype=options.dtype)
            rows += measure_model(path, name, cases, options, torch.device(device))
    worst = max(row["largest_disagreement"] for row in rows)
    result = {
        "dtype": options.dtype,
        "attention": options.attention,
        "threads": options.threads,
        "least_share_of_bound_at_P_over_R_from_2": least_share(rows),
        "largest_disagreement": worst,
        "cases": rows,
    }
    write_result(f"prefix_{options.name or f'{options.dtype}_{device}'}", result, options.out, device)
    print(json.dumps(result["least_share_of_bound_at_P_over_R_from_2"], indent=1))
    return int(worst > AGREEMENT[options.dtype])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[str(SMOLLM2), "tiny"], help=f"paths, or of {sorted(SHAPES)}")
    parser.add_argument("--tokenizer", type=Path, default=SMOLLM2, help="of models made here")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--response", type=int, default=64, help="tokens of a response")
    parser.add_argument("--tokens", type=int, default=2048, help="of a forward, the prompts repeated")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--name", help="of the result: benchmarks/results/prefix_<name>.json")
    parser.add_argument("--out", help="file of the result")
    return parser.parse_args()


def measure_model(
    path: Path, name: str, cases: Sequence[Case], options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """A row per case and kind of work."""
    sizes = parameters(path)
    head = sizes["vocabulary"] * sizes["hidden"]
    head_share = head / (sizes["parameters"] - head)
    config = ModelConfig(path=str(path), attention=options.attention, gradient_checkpointing=False)
    scorer = load_scorer(config, resolve_dtype(options.dtype, device), trainable=True).to(device)
    single_row = options.attention.startswith("fl")  # as in a run: flash and flex attention
    rows = []
    for case in cases:
        groups = case.groups(min(sizes["vocabulary"], 49152))
        layouts = {kind: Layout(0, True, single_row, kind == "shared") for kind in ("repeated", "shared")}
        batches = {kind: layout.collate(groups).to(device) for kind, layout in layouts.items()}
        for work, run in (("policy", train_once), ("reference", score_once)):
            row = compare(scorer, batches, run, options.turns)
            bounds = {"bound": case.bound(), "bound_with_head": case.bound(head_share)}
            shares = {f"share_of_{bound}": row["gain"] / value for bound, value in bounds.items()}
            shape = {"model": Path(name).name, "work": work, "P_over_R": case.ratio, "responses": case.responses}
            counts = {"prompts": case.prompts, "P": case.prompt_tokens, "tokens_of_a_response": case.response_tokens}
            rows.append(shape | counts | bounds | row | shares)
            which = f"{shape['model']} {work} P/R={case.ratio:g} R={case.responses}"
            reached = f"{shares['share_of_bound']:.0%}; with the head {shares['share_of_bound_with_head']:.0%}"
            print(f"{which}: {row['gain']:.2f}x of {case.bound():.2f}x ({reached})", flush=True)
    return rows


Run = Callable[[SequenceScorer, SequenceBatch], tuple[Tensor, float]]


def compare(scorer: SequenceScorer, batches: dict[str, SequenceBatch], run: Run, turns: int) -> dict[str, Any]:
    """Seconds of both layouts by turns, their gain, and how far their numbers are apart."""
    seconds: dict[str, list[float]] = {kind: [] for kind in batches}
    found: dict[str, tuple[Tensor, float]] = {}
    for turn in range(1 + turns):  # the first warms up, and is not counted
        for kind in batches if turn % 2 == 0 else reversed(batches):
            scorer.zero_grad()
            started = time.perf_counter()
            found[kind] = run(scorer, batches[kind])
            if turn:
                seconds[kind].append(time.perf_counter() - started)
    (ours, our_norm), (theirs, their_norm) = found["shared"], found["repeated"]
    differences = [float((ours - theirs).abs().max() / theirs.abs().max())]
    if their_norm:
        differences.append(abs(our_norm - their_norm) / their_norm)
    return {
        "gain": median(seconds["repeated"]) / median(seconds["shared"]),
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "turns": {kind: [round(value, 5) for value in values] for kind, values in seconds.items()},
        "places": {kind: batch.input_ids.numel() for kind, batch in batches.items()},
        "largest_disagreement": max(differences),
    }


def train_once(scorer: SequenceScorer, batch: SequenceBatch) -> tuple[Tensor, float]:
    """Forward and backward: [N] log-probs, and the norm of the gradient."""
    logps = score(scorer, batch)
    (-logps.sum()).backward()  # type: ignore[no-untyped-call]
    norms = [parameter.grad.float().norm() for parameter in scorer.parameters() if parameter.grad is not None]
    return logps.detach(), float(torch.stack(norms).norm())


def score_once(scorer: SequenceScorer, batch: SequenceBatch) -> tuple[Tensor, float]:
    """A forward without gradient: [N] log-probs, and 0."""
    with torch.no_grad():
        logps = score(scorer, batch)
    return logps, 0.0 * float(logps[0])  # reading a number waits for the device


def least_share(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By model and work: the smallest share of the bound among the cases with P/R of at least 2."""
    shares: dict[str, float] = {}
    for row in rows:
        if row["P_over_R"] >= 2:
            key = f"{row['model']} {row['work']}"
            shares[key] = min(shares.get(key, 1e9), row["share_of_bound"])
    return shares


if __name__ == "__main__":
    sys.exit(main())
