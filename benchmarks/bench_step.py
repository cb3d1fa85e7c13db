"""DPO on the same rows by us and by TRL's DPOTrainer, by turns in one run: pairs a second and peak memory.

    .venv/bin/python -m benchmarks.bench_step --trl .cache/trl/bin/python [ROWS --adapter hh_rlhf] [--responses 4]

Both train the same model in the same precision with a live reference, AdamW and the same token ids in the same order;
each turn is a process of its own. Ours is `mrpo-ds train`, ZeRO-3 on one rank with the reference on it. TRL runs
without Liger, and with it where it works; where not, its refusal is recorded. In fp32 the losses of all steps must
agree, or the exit code is 1.

With 2 responses both sides compute DPO. With more, ours is `mdpo` over each prompt's list and TRL's is DPO on the
pairs that the list expands to (--pairs): the loss of both is the mean over the same pairs. TRL runs 2 sequences a pair
through both models, we run each response once.

Before the first update both losses are ln 2 whatever the rows, so the learning rate is large enough to leave that, the
result says how far, and the chosen responses' mean log-probs must agree too.

Rates are of all steps but the first of each turn. Without --trl only our side runs.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.common import SMOLLM2, Place, median, pick_device, refusal, run_child, spread, write_result
from benchmarks.flops import mfu
from benchmarks.runs import LISTS, TRAIN_ROWS, Plan, train, write_rows
from benchmarks.shapes import SHAPES, save_synthetic

PEER = Path(__file__).with_name("peers") / "trl_dpo.py"
TOLERANCE = 1e-4
"""Between our loss of a step and TRL's, in fp32."""
LOGP_TOLERANCE = 1e-5
"""Between the mean log-probs of the chosen responses of a step, relative, in fp32."""
BETA = 0.1
Turn = dict[str, Any]
"""losses, seconds and memory_gib of one process."""


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-step-") as folder:
        bench = Bench(options, Path(folder))
        bench.prepare()
        settings = bench.choose_settings()
        sides = bench.measure(settings)
        result = bench.describe(settings, sides)
    write_result(f"step_{options.name or bench.name}", result, options.out, bench.place.device)
    print(json.dumps(result["ratios"] | result["agreement"], indent=1))
    return int(options.dtype == "fp32" and not agrees(result["agreement"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=Path, help="file of preferences; default: one of launch/data")
    parser.add_argument("--adapter", default="ranked")
    parser.add_argument("--responses", type=int, default=2, help="of each prompt")
    parser.add_argument("--pairs", default="top_vs_rest", choices=("top_vs_rest", "all", "adjacent"))
    parser.add_argument("--trl", help="python of an environment with benchmarks/peers/requirements.txt")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="also where --synthetic takes its tokenizer")
    parser.add_argument("--synthetic", choices=sorted(SHAPES), help="a Llama of this shape with random weights")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=16, help="prompts a step")
    parser.add_argument("--steps", type=int, default=5, help="of each turn, the first of which is not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--micro-batch-tokens", type=int, nargs="+", default=[2048], help="ours; of several, the best")
    parser.add_argument("--per-device", type=int, nargs="+", default=[4], help="TRL's pairs; of several, the best")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--peak-tflops", type=float, help="of the device in this precision, where we do not know it")
    parser.add_argument("--name", help="of the result: benchmarks/results/step_<name>.json")
    parser.add_argument("--out", help="file of the result")
    return parser.parse_args()


class Bench:
    """One comparison, in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.place = Place(threads=options.threads, device=pick_device(options.device))
        self.source = options.rows or (TRAIN_ROWS if options.responses == 2 else LISTS)
        model = folder / "model" if options.synthetic else options.model
        self.plan = Plan(
            model=model,
            rows=folder / "rows.jsonl",
            scratch=folder,
            batch=options.batch,
            steps=options.steps,
            dtype=options.dtype,
            device=self.place.device,
            max_length=options.max_length,
            micro_batch_tokens=options.micro_batch_tokens[0],
            gradient_checkpointing=options.gradient_checkpointing,
            learning_rate=options.learning_rate,
        )
        self.turn = 0

    @property
    def name(self) -> str:
        """Of the result, from what is measured."""
        model = self.options.synthetic or self.options.model.name
        rows = self.source.name.partition(".jsonl")[0]
        length, responses = self.options.max_length, self.options.responses
        return f"{rows}_{model}_{responses}r_{length}_{self.options.dtype}_{self.place.device}"

    @property
    def pairs_a_step(self) -> int:
        """That TRL trains on; ours are prompts of `responses`."""
        return self.plan.batch * len(pairs_of(self.options.responses, self.options.pairs))

    def prepare(self) -> None:
        """Make the model, choose the rows, and write the pairs in the order of our steps."""
        if self.options.synthetic:
            save_synthetic(self.options.synthetic, self.plan.model, self.options.model, dtype=self.options.dtype)
        write_rows(self.plan, self.source, self.options.adapter, self.options.responses)
        self.lists = self._lists()
        expanded = [
            {"prompt_ids": prompt, "chosen_ids": answers[better], "rejected_ids": answers[worse]}
            for prompt, *answers in self.lists
            for better, worse in pairs_of(len(answers), self.options.pairs)
        ]
        (self.folder / "pairs.json").write_text(json.dumps(expanded), encoding="utf-8")

    def _lists(self) -> list[list[list[int]]]:
        """Per prompt, in the order of our steps: its token ids, and those of its responses, best first."""
        import yaml

        from mrpo_ds.config.load import load_config
        from mrpo_ds.material import POLICY, prepare

        config = self.folder / "run.yaml"
        config.write_text(yaml.safe_dump(self._tree("run")), encoding="utf-8")
        material = prepare(load_config(str(config)))
        encodings = material.speakers[POLICY].encodings["train"]
        lists = []
        for batch in material.train_batches(0):
            for rows in (encodings[index] for index in batch.ids):
                prompt = rows[0].ids[: rows[0].prompt_length]
                assert all(row.ids[: len(prompt)] == prompt and not row.earlier for row in rows)
                lists.append([list(prompt), *(list(row.ids[len(prompt) :]) for row in rows)])
        return lists

    def _tree(self, name: str, steps: int | None = None, tokens: int | None = None) -> dict[str, Any]:
        loss: dict[str, Any] = {"name": "dpo", "beta": BETA}
        if self.options.responses > 2:
            loss = {"name": "mdpo", "beta": BETA, "pairs": self.options.pairs, "reduce": "mean"}
        plan = replace(
            self.plan, steps=steps or self.plan.steps, micro_batch_tokens=tokens or self.plan.micro_batch_tokens
        )
        return plan.tree(name, loss, [("start", plan.model)])

    # ---- the sides -------------------------------------------------------------------------------------------------

    def choose_settings(self) -> dict[str, Any]:
        """The best size of the forwards of either side by a turn of two steps, and whether TRL runs with Liger."""
        tokens, per_device = self.options.micro_batch_tokens, self._per_device()
        chosen: dict[str, Any] = {"micro_batch_tokens": best(tokens, lambda size: self.ours(size, 2))}
        if self.options.trl:
            chosen["per_device"] = best(per_device, lambda size: self.theirs(size, False, 2))
            trial = self.theirs(chosen["per_device"], True, 2)
            chosen["liger"] = trial if isinstance(trial, str) else "runs"
        return chosen

    def _per_device(self) -> list[int]:
        sizes = [size for size in self.options.per_device if self.pairs_a_step % size == 0]
        if not sizes:
            raise SystemExit(
                f"--per-device {self.options.per_device}: none divides the {self.pairs_a_step} pairs of a step"
            )
        return sizes

    def measure(self, settings: dict[str, Any]) -> dict[str, list[Turn]]:
        """Every side in turn, as often as asked."""
        runs: dict[str, Callable[[], Turn | str]] = {"ours": lambda: self.ours(settings["micro_batch_tokens"])}
        if self.options.trl:
            runs["TRL"] = lambda: self.theirs(settings["per_device"], False)
        if settings.get("liger") == "runs":
            runs["TRL+Liger"] = lambda: self.theirs(settings["per_device"], True)
        sides: dict[str, list[Turn]] = {name: [] for name in runs}
        for number in range(self.options.turns):
            names = list(runs) if number % 2 == 0 else list(reversed(runs))
            for name in names:
                turn = needed(runs[name]())
                sides[name].append(turn)
                seconds = median(turn["seconds"][1:])
                print(f"{name:9s} turn {number + 1}: {seconds:.3f} s a step, {turn['memory_gib']:.2f} GiB", flush=True)
        return sides

    def ours(self, tokens: int, steps: int | None = None) -> Turn:
        """One turn of ours."""
        self.turn += 1
        run = train(self._tree(f"run-{self.turn}", steps, tokens), [self.place])
        rows = run.metrics
        return {
            "losses": [row["loss"] for row in rows],
            "chosen": [row["logps/chosen"] for row in rows],
            "seconds": [row["perf/seconds_per_step"] for row in rows],
            "reference_seconds": [row["perf/reference_wait_seconds"] for row in rows],
            "memory_gib": rows[-1]["perf/memory_gib"],
            "mfu": [row.get("perf/mfu") for row in rows],
        }

    def theirs(self, per_device: int, liger: bool, steps: int | None = None) -> Turn | str:
        """One turn of TRL's, or what it said when it did not run."""
        task = self.folder / "task.json"
        out = self.folder / "peer.json"
        out.unlink(missing_ok=True)
        task.write_text(json.dumps(self.peer_task(per_device, liger, steps, out)), encoding="utf-8")
        done = run_child([self.options.trl, str(PEER), str(task)], self.place)
        if done.code:
            return refusal(done)
        found: Turn = json.loads(out.read_text(encoding="utf-8"))
        return found

    def peer_task(self, per_device: int, liger: bool, steps: int | None, out: Path) -> dict[str, Any]:
        """What peers/trl_dpo.py is told."""
        return {
            "model": str(self.plan.model),
            "pairs": str(self.folder / "pairs.json"),
            "out": str(out),
            "dtype": self.plan.dtype,
            "device": self.plan.device,
            "pairs_a_step": self.pairs_a_step,
            "per_device": per_device,
            "steps": steps or self.plan.steps,
            "max_length": self.plan.max_length,
            "beta": BETA,
            "learning_rate": self.plan.learning_rate,
            "gradient_checkpointing": self.plan.gradient_checkpointing,
            "liger": liger,
        }

    # ---- the result --------------------------------------------------------------------------------------------------

    def describe(self, settings: dict[str, Any], sides: dict[str, list[Turn]]) -> dict[str, Any]:
        """The whole result."""
        prompts = self.plan.batch
        lengths = [[len(part) for part in one] for one in self.lists]
        result: dict[str, Any] = {
            "model": self.options.synthetic or self.options.model.name,
            "rows": self.source.name,
            "dtype": self.plan.dtype,
            "threads": self.options.threads,
            "steps_counted": self.options.steps - 1,
            "settings": settings,
            "work": work(lengths, self.options.pairs) | {"prompts_a_step": prompts, "pairs_a_step": self.pairs_a_step},
            "sides": {name: self._rates(turns) for name, turns in sides.items()},
            "ratios": ratios(sides),
            "agreement": agreement(sides, chosen_too=self.options.pairs == "top_vs_rest"),
            "peer_versions": sides["TRL"][0]["versions"] if "TRL" in sides else None,
            "turns": sides,
        }
        result["sides"]["ours"] |= mfu(self.plan, sides["ours"], lengths, self.options.peak_tflops)
        return result

    def _rates(self, turns: list[Turn]) -> dict[str, Any]:
        seconds = [second for turn in turns for second in turn["seconds"][1:]]
        return {
            "seconds_a_step": spread(seconds),
            "pairs_a_second": spread(self.pairs_a_step / second for second in seconds),
            "prompts_a_second": spread(self.plan.batch / second for second in seconds),
            "memory_gib": spread(turn["memory_gib"] for turn in turns),
        }


def pairs_of(responses: int, kind: str) -> list[tuple[int, int]]:
    """(better, worse) columns that mdpo compares with `pairs: kind`, for responses best first without ties."""
    if kind == "top_vs_rest":
        return [(0, worse) for worse in range(1, responses)]
    if kind == "adjacent":
        return [(better, better + 1) for better in range(responses - 1)]
    return list(combinations(range(responses), 2))


def best(sizes: Sequence[int], run: Callable[[int], "Turn | str"]) -> int:
    """The size with the shortest second step; the only one without a trial."""
    if len(sizes) == 1:
        return sizes[0]
    tried = {size: run(size) for size in sizes}
    seconds = {size: turn["seconds"][-1] for size, turn in tried.items() if not isinstance(turn, str)}
    if not seconds:
        raise SystemExit(f"none of the sizes {list(sizes)} runs: {tried}")
    return min(seconds, key=lambda size: seconds[size])


def needed(turn: "Turn | str") -> Turn:
    """The turn, or the end of the benchmark with what was said in its place."""
    if isinstance(turn, str):
        raise SystemExit(f"TRL does not run: {turn}")
    return turn


def work(lengths: Sequence[Sequence[int]], pairs: str) -> dict[str, float]:
    """Tokens that go through each model in all steps of a turn. lengths: of each prompt and its responses."""
    ours = sum(prompt * len(answers) + sum(answers) for prompt, *answers in lengths)
    once = sum(prompt + sum(answers) for prompt, *answers in lengths)
    theirs = sum(
        2 * prompt + answers[better] + answers[worse]
        for prompt, *answers in lengths
        for better, worse in pairs_of(len(answers), pairs)
    )
    return {
        "prompts": len(lengths),
        "prompt_tokens_mean": sum(prompt for prompt, *_ in lengths) / len(lengths),
        "response_tokens_mean": sum(map(sum, (answers for _, *answers in lengths)))
        / sum(len(answers) for _, *answers in lengths),
        "tokens_ours_without_prefix_sharing": ours,
        "tokens_ours_with_prefix_sharing": once,
        "tokens_TRL_without_padding": theirs,
    }


def ratios(sides: dict[str, list[Turn]]) -> dict[str, dict[str, float]]:
    """Ours against each peer: how many times faster, and our share of its memory; ratios of medians."""

    def seconds(name: str) -> float:
        return median(second for turn in sides[name] for second in turn["seconds"][1:])

    def memory(name: str) -> float:
        return median(turn["memory_gib"] for turn in sides[name])

    return {
        name: {"times_faster": seconds(name) / seconds("ours"), "share_of_memory": memory("ours") / memory(name)}
        for name in sides
        if name != "ours"
    }


def agreement(sides: dict[str, list[Turn]], chosen_too: bool) -> dict[str, float | None]:
    """How far the sides are apart, over all turns and steps; None where there is nothing to compare.

    chosen_too: every pair of a prompt has the same chosen response, so that the means over pairs and prompts agree.
    """
    ours = sides["ours"]
    peers = [turn for name, turns in sides.items() if name != "ours" for turn in turns]

    def largest(name: str, relative: bool) -> float | None:
        rows = [zip(mine[name], peer[name], strict=True) for mine in ours for peer in peers]
        return max((abs(a - b) / (abs(b) if relative else 1.0) for row in rows for a, b in row), default=None)

    return {
        "largest_difference_of_losses": largest("losses", relative=False),
        "largest_relative_difference_of_chosen_logps": largest("chosen", relative=True) if chosen_too else None,
        "largest_distance_from_ln_2": max(abs(loss - math.log(2)) for turn in ours for loss in turn["losses"]),
    }


def agrees(found: dict[str, float | None]) -> bool:
    """Whether losses and log-probs, where they were compared, are within the tolerances."""
    loss, chosen = found["largest_difference_of_losses"], found["largest_relative_difference_of_chosen_logps"]
    return (loss is None or loss <= TOLERANCE) and (chosen is None or chosen <= LOGP_TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
