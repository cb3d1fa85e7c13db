"""What references cost the policy: step time by their number and placement, the store, and the bridge by itself.

    .venv/bin/python -m benchmarks.bench_references [--parts steps served_or_stored store bridge]

    steps              K = 0 (simpo), 1 (dpo), 2, 3 (mrpo) references, served, colocated and stored: step time and the
                       share of it that the policy waits. By turns.
    served_or_stored   MRPO with 2 small references served from their own core against DPO with a stored reference on
                       the policy's core, by turns: the same step time, if references cost nothing.
    store              a second epoch and a second run with a store: nothing is scored, and how much time that saves.
    bridge             the bridge between 2 .. 32 light processes, and a fit by roles, policy ranks and bytes.

The policy is kept to core 0, the references to the others, where there are others. Results of parts that are not asked
for stay as they are in the file.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, SMOLLM2, Place, median, pick_device, spread, write_result
from benchmarks.runs import TRAIN_ROWS, Plan, Trained, score, train, write_rows
from benchmarks.shapes import SHAPES, save_synthetic

PARTS = ("steps", "served_or_stored", "store", "bridge")
PLACEMENTS = ("served", "colocated", "stored")
LOSSES = {0: "simpo", 1: "dpo"}
"""By number of references; more: mrpo."""


def main() -> int:
    options = parse_arguments()
    result = {}
    out = Path(options.out) if options.out else RESULTS / f"{options.name}.json"
    if out.exists():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        result = {part: earlier[part] for part in PARTS if part in earlier}
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-references-") as folder:
        bench = Bench(options, Path(folder), device)
        run: dict[str, Callable[[], dict[str, Any]]] = {
            "steps": bench.steps,
            "served_or_stored": bench.served_or_stored,
            "store": bench.store,
            "bridge": bench.bridge,
        }
        for part in options.parts:
            result[part] = run[part]()
    write_result(options.name, result, options.out, device)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--model", default=str(SMOLLM2), help=f"the policy: a path, or of {sorted(SHAPES)}")
    parser.add_argument("--reference", default="8m", help="the references of `steps` and `store`; `same`: the policy's")
    parser.add_argument("--small-reference", default="tiny", help="those of `served_or_stored`")
    parser.add_argument("--rows", type=Path, default=TRAIN_ROWS)
    parser.add_argument("--adapter", default="ranked")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--most-references", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="prompts a step")
    parser.add_argument("--steps", type=int, default=6, help="of a run, the first of which is not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--most-processes", type=int, default=32, help="of the bridge's")
    parser.add_argument("--messages", type=int, default=200, help="of a measurement of the bridge")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between messages, instead of a step")
    parser.add_argument("--name", default="references", help="of the result")
    parser.add_argument("--out", help="file of the result")
    return parser.parse_args()


class Bench:
    """All parts, with models made once."""

    def __init__(self, options: argparse.Namespace, folder: Path, device: str) -> None:
        self.options = options
        self.folder = folder
        self.device = device
        cores = sorted(os.sched_getaffinity(0)) if device == "cpu" else []
        self.policy_cores, self.reference_cores = tuple(cores[:1]), tuple(cores[1:] or cores)
        self.models: dict[tuple[str, int], Path] = {}
        self.turn = 0

    def plan(self, steps: int | None = None) -> Plan:
        """The rows and sizes of all runs, made when they are first asked for."""
        plan = Plan(
            model=self._model(self.options.model, 0),
            rows=self.folder / "rows.jsonl",
            scratch=self.folder,
            batch=self.options.batch,
            steps=self.options.steps,
            dtype=self.options.dtype,
            device=self.device,
            max_length=self.options.max_length,
            micro_batch_tokens=self.options.micro_batch_tokens,
        )
        if not plan.rows.exists():
            write_rows(plan, self.options.rows, self.options.adapter, 2)
        return replace(plan, steps=steps or plan.steps)

    def _model(self, name: str, seed: int) -> Path:
        if name == "same":
            return self._model(self.options.model, 0)
        if name not in SHAPES:
            return Path(name)
        if (name, seed) not in self.models:
            path = self.folder / f"model-{name}-{seed}"
            self.models[name, seed] = save_synthetic(name, path, SMOLLM2, seed, self.options.dtype)
        return self.models[name, seed]

    def references(self, name: str, count: int) -> list[tuple[str, Path]]:
        """So many references, each with weights of its own where they are made here."""
        return [(f"ref{number}", self._model(name, number)) for number in range(1, count + 1)]

    def run(self, tree: dict[str, Any], placement: str, **topology: Any) -> Trained:
        """One run; with `served`, a rank for each reference."""
        self.turn += 1
        tree["topology"] |= {"placement": placement, **topology}
        tree["output_dir"] = str(self.folder / f"run-{self.turn}")
        served = len(tree["references"]) if placement == "served" else 0
        return train(tree, [self._place(self.policy_cores), *[self._place(self.reference_cores)] * served])

    def _place(self, cores: tuple[int, ...]) -> Place:
        return Place(threads=1, cores=cores, device=self.device)

    def fill(self, tree: dict[str, Any], store: Path) -> None:
        """`mrpo-ds score`: every row of a configuration into a store."""
        tree["topology"] |= {"store": str(store)}
        tree["output_dir"] = str(self.folder / "score")
        score(tree, [self._place(self.policy_cores)])

    # ---- the parts -------------------------------------------------------------------------------------------------

    def steps(self) -> dict[str, Any]:
        """Step time by number and placement of references."""
        plan, store = self.plan(), self.folder / "store-of-steps"
        cases = [(count, where) for count in range(1, self.options.most_references + 1) for where in PLACEMENTS]

        def tree(count: int) -> dict[str, Any]:
            loss = {"name": LOSSES.get(count, "mrpo")}
            return plan.tree("run", loss, self.references(self.options.reference, count))

        self.fill(tree(self.options.most_references), store)
        found: dict[tuple[int, str], list[Trained]] = {case: [] for case in [(0, "colocated"), *cases]}
        for turn in range(self.options.turns):
            for count, where in found if turn % 2 == 0 else reversed(found):
                more = {"store": str(store)} if where == "stored" else {}
                found[count, where].append(self.run(tree(count), where, **more))
        rows = []
        for (count, where), runs in found.items():
            row = {"references": count, "placement": where if count else "none", "loss": LOSSES.get(count, "mrpo")}
            rows.append(row | summary(runs))
            print(f"K={count} {row['placement']}: {describe(rows[-1])}", flush=True)
        return {"policy": Path(self.options.model).name, "reference": self.options.reference, "cases": rows}

    def served_or_stored(self) -> dict[str, Any]:
        """MRPO with K = 2 served against DPO with a stored reference."""
        plan, store = self.plan(), self.folder / "store-of-one"
        references = self.references(self.options.small_reference, 2)
        stored = plan.tree("run", {"name": "dpo"}, references[:1])
        served = plan.tree("run", {"name": "mrpo"}, references)
        self.fill(plan.tree("run", {"name": "dpo"}, references[:1]), store)
        sides: dict[str, Callable[[], Trained]] = {
            "mrpo_2_served": lambda: self.run(served, "served"),
            "dpo_stored": lambda: self.run(stored, "stored", store=str(store)),
        }
        found: dict[str, list[Trained]] = {name: [] for name in sides}
        for turn in range(self.options.turns):
            for name in sides if turn % 2 == 0 else reversed(sides):
                found[name].append(sides[name]())
        result: dict[str, Any] = {name: summary(runs) for name, runs in found.items()}
        for name, row in result.items():
            print(f"{name}: {describe(row)}", flush=True)
        times = {name: row["seconds_a_step"]["median"] for name, row in result.items()}
        result["step_time_ratio"] = times["mrpo_2_served"] / times["dpo_stored"]
        print(f"step time, served over stored: {result['step_time_ratio']:.4f}", flush=True)
        sizes = {"policy": Path(self.options.model).name, "reference": self.options.small_reference}
        return sizes | {"policy_cores": self.policy_cores, "reference_cores": self.reference_cores} | result

    def store(self) -> dict[str, Any]:
        """Seconds that a store saves: in a second epoch, and in a second run."""
        epoch = self.options.steps
        plan, store = self.plan(2 * epoch), self.folder / "store-of-two-runs"
        references = self.references(self.options.reference, min(2, self.options.most_references))

        def run() -> Trained:
            tree = plan.tree("run", {"name": LOSSES.get(len(references), "mrpo")}, references)
            return self.run(tree, "colocated", store=str(store))

        first, second = run(), run()
        parts = {
            "first_epoch": first.metrics[:epoch],
            "second_epoch": first.metrics[epoch:],
            "second_run_first_epoch": second.metrics[:epoch],
        }
        result: dict[str, Any] = {"steps_an_epoch": epoch, "references": len(references)}
        for name, rows in parts.items():
            waits = [row["perf/reference_wait_seconds"] for row in rows]
            fractions = [row[f"ref/{reference}/stored_fraction"] for row in rows for reference, _ in references]
            result[name] = {"reference_seconds": sum(waits), "least_stored_fraction": min(fractions), "waits": waits}
        spent = {name: result[name]["reference_seconds"] for name in parts}
        result["saved_by_second_epoch"] = spent["first_epoch"] - spent["second_epoch"]
        result["saved_by_second_run"] = spent["first_epoch"] - spent["second_run_first_epoch"]
        for name in ("second_epoch", "second_run_first_epoch"):
            if result[name]["least_stored_fraction"] != 1.0:
                raise SystemExit(f"{name} scored rows although the store has them all: {result[name]}")
        print(f"store: {result['saved_by_second_epoch']:.2f} s of {spent['first_epoch']:.2f} s saved", flush=True)
        return result

    def bridge(self) -> dict[str, Any]:
        """Latency of the bridge, and its fits."""
        from benchmarks.bridge import fit, grid, measure

        rows = measure(grid(self.options.most_processes), self.options.messages, self.options.pause)
        fits = {name: fit(rows, name) for name in ("round_trip_seconds", "waited_seconds")}
        print(json.dumps(fits, indent=1), flush=True)
        return {"pause_seconds": self.options.pause, "messages": self.options.messages, "fits": fits, "cases": rows}


def summary(runs: Sequence[Trained]) -> dict[str, Any]:
    """Medians over all counted steps of all turns."""
    seconds = [second for run in runs for second in run.steady("perf/seconds_per_step")]
    return {
        "seconds_a_step": spread(seconds),
        "wait_share": spread(share for run in runs for share in run.wait_shares),
        "wait_seconds": spread(wait for run in runs for wait in run.steady("perf/reference_wait_seconds")),
        "turns": [[round(second, 5) for second in run.steady("perf/seconds_per_step")] for run in runs],
        "median_of_turns": [round(median(run.steady("perf/seconds_per_step")), 5) for run in runs],
        "peak_gib_of_ranks": [round(max(run.ranks[i].peak_gib for run in runs), 3) for i in range(len(runs[0].ranks))],
    }


def describe(row: dict[str, Any]) -> str:
    """A summary in words."""
    return f"{row['seconds_a_step']['median']:.4f} s a step, {row['wait_share']['median']:.2%} of it waiting"


if __name__ == "__main__":
    sys.exit(main())
