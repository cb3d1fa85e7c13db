"""Step time and memory by policy ranks and model size, and where the time before the first step goes.

    .venv/bin/python -m benchmarks.bench_scale [--ranks 1 2 4] [--models tiny 8m 30m 135m]

MRPO with two small colocated references; the same global batch, whatever the ranks, so that perfect scaling halves the
step with every doubling of the ranks. Rank i is kept to core i, modulo the cores: more ranks than cores share them. By
turns. The split of the start is the first policy rank's: seconds between the phases that the run reports.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import SMOLLM2, Place, pick_device, spread, write_result
from benchmarks.runs import TRAIN_ROWS, Plan, Trained, read_jsonl, train, write_rows
from benchmarks.shapes import SHAPES, parameters, save_synthetic

REFERENCE = "tiny"
FIRST_STEP = ("wait for references", "train")
"""Phases of a step."""


def main() -> int:
    options = parse_arguments()
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-scale-") as folder:
        bench = Bench(options, Path(folder), device)
        result = {"dtype": options.dtype, "batch": options.batch, "cases": bench.measure()}
    write_result(f"scale_{options.name or f'{options.dtype}_{device}'}", result, options.out, device)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="of the policy")
    parser.add_argument("--models", nargs="+", default=["tiny", "8m", "30m", "135m"], help=f"of {sorted(SHAPES)}")
    parser.add_argument("--tokenizer", type=Path, default=SMOLLM2)
    parser.add_argument("--rows", type=Path, default=TRAIN_ROWS)
    parser.add_argument("--adapter", default="ranked")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=8, help="prompts a step, over all ranks")
    parser.add_argument("--steps", type=int, default=5, help="of a run, the first of which is not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    parser.add_argument("--name", help="of the result: benchmarks/results/scale_<name>.json")
    parser.add_argument("--out", help="file of the result")
    return parser.parse_args()


class Bench:
    """All runs, with models made once."""

    def __init__(self, options: argparse.Namespace, folder: Path, device: str) -> None:
        self.options = options
        self.folder = folder
        self.device = device
        self.models = {
            name: save_synthetic(name, folder / name, options.tokenizer, dtype=options.dtype)
            for name in {*options.models, REFERENCE}
        }
        self.plan = Plan(
            model=self.models[REFERENCE],
            rows=folder / "rows.jsonl",
            scratch=folder,
            batch=options.batch,
            steps=options.steps,
            dtype=options.dtype,
            device=device,
            max_length=options.max_length,
            micro_batch_tokens=options.micro_batch_tokens,
        )
        write_rows(self.plan, options.rows, options.adapter, 2)
        self.turn = 0

    def measure(self) -> list[dict[str, Any]]:
        """A row for every model and number of ranks."""
        cases = [(name, ranks) for name in self.options.models for ranks in self.options.ranks]
        found: dict[tuple[str, int], list[tuple[Trained, dict[str, float]]]] = {case: [] for case in cases}
        for turn in range(self.options.turns):
            for name, ranks in cases if turn % 2 == 0 else reversed(cases):
                found[name, ranks].append(self.run(name, ranks))
        rows: list[dict[str, Any]] = []
        for (name, ranks), runs in found.items():
            size = parameters(self.models[name])["parameters"]
            row: dict[str, Any] = {"model": name, "parameters": size, "ranks": ranks, **describe(runs)}
            seconds, memory = row["seconds_a_step"]["median"], row["memory_gib_of_the_largest_rank"]["median"]
            print(f"{name}, {ranks} ranks: {seconds:.3f} s a step, {memory:.2f} GiB; start: {row['start']}", flush=True)
            rows.append(row)
        return rows

    def run(self, name: str, ranks: int) -> tuple[Trained, dict[str, float]]:
        """One run, and the split of its start."""
        self.turn += 1
        references = [("first", self.models[name]), ("second", self.models[REFERENCE])]
        plan = replace(self.plan, model=self.models[name])
        tree = plan.tree(f"run-{self.turn}", {"name": "mrpo"}, references)
        tree["topology"]["policy"] = ranks
        phases = self.folder / f"phases-{self.turn}"
        places = [Place(threads=1, cores=self._core(rank), device=self.device) for rank in range(ranks)]
        run = train(tree, places, ["-m", "benchmarks.startup", str(phases)])
        return run, split_of_start(read_jsonl(phases.with_suffix(".0.jsonl")))

    def _core(self, rank: int) -> tuple[int, ...]:
        cores = sorted(os.sched_getaffinity(0))
        return (cores[rank % len(cores)],) if self.device == "cpu" else ()


def describe(runs: Sequence[tuple[Trained, dict[str, float]]]) -> dict[str, Any]:
    """Medians of all turns; the start's parts are medians each."""
    trained = [run for run, _ in runs]
    starts = [start for _, start in runs]
    return {
        "seconds_a_step": spread(second for run in trained for second in run.steady("perf/seconds_per_step")),
        "memory_gib_of_the_largest_rank": spread(max(rank.peak_gib for rank in run.ranks) for run in trained),
        "memory_gib_logged": spread(run.metrics[-1]["perf/memory_gib"] for run in trained),
        "start": {part: spread(start[part] for start in starts)["median"] for part in starts[0]},
        "turns": [run.steady("perf/seconds_per_step") for run in trained],
    }


def split_of_start(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each part up to the end of the first step, from the moments at which a rank's phases began.

    Args:
        rows: {"phase", "step", "seconds" since the process began}, in order; the second step's must be there.
    """
    parts = {"interpreter": rows[0]["seconds"]}
    for row, following in zip(rows, rows[1:], strict=False):
        if row["step"] > 1:
            break
        name = "first step" if row["phase"] in FIRST_STEP else row["phase"]
        parts[name] = parts.get(name, 0.0) + following["seconds"] - row["seconds"]
    return {name: round(seconds, 4) for name, seconds in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
