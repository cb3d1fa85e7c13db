"""DPO on the same rows by us and by TRL's DPOTrainer, by turns in one run: pairs a second and peak memory.

    .venv/bin/python benchmarks/step/compare.py --trl .cache/trl/bin/python ROWS [--adapter hh_rlhf]

Both train the same model in fp32 on the CPU, with all threads, a live reference, AdamW and the same pairs in the same
order; each turn is a process of its own. The losses of all steps must agree. Ratios are of medians over all steps but
the first of each turn. Writes benchmarks/results/step_<name of the rows>.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from mrpo_ds.config.load import load_config
from mrpo_ds.material import POLICY, prepare

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
"""Between our loss of a step and TRL's."""


def main() -> int:
    options = parse_arguments()
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    with tempfile.TemporaryDirectory() as scratch:
        config = write_config(options, Path(scratch))
        pairs = write_pairs(config, Path(scratch))
        sides: dict[str, list[dict[str, Any]]] = {"ours": [], "TRL": []}
        for turn in range(options.turns):
            sides["ours"].append(run_ours(config, Path(scratch) / f"run-{turn}", options.threads))
            sides["TRL"].append(run_trl(options, config, Path(scratch)))
            for side, turns in sides.items():
                seconds = statistics.median(turns[-1]["seconds"][1:])
                print(
                    f"{side:4s} turn {turn + 1}: {seconds:.2f} s a step, {turns[-1]['memory_gib']:.2f} GiB", flush=True
                )
    result = {
        "command": " ".join(["benchmarks/step/compare.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{os.cpu_count()} CPUs ({platform.machine()}), fp32, {options.threads} threads",
        "versions": sides["TRL"][0]["versions"],
        "rows": pairs,
        "pairs_a_step": options.batch,
        **compare(sides, options.batch),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "losses"}, indent=1))
    name = Path(options.rows).name.split(".jsonl")[0]
    (ROOT / f"benchmarks/results/step_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(result["largest_difference_of_losses"] > TOLERANCE)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", help="file of preferences")
    parser.add_argument("--adapter", default="pairs")
    parser.add_argument("--trl", required=True, help="python of an environment with benchmarks/parity/requirements.txt")
    parser.add_argument("--model", default=str(ROOT / ".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--per-device", type=int, default=4, help="pairs of one of TRL's forwards")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="token places of one of our forwards")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5, help="of each turn, the first of which is not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def write_config(options: argparse.Namespace, scratch: Path) -> Path:
    """Our run, and what TRL is told as well."""
    tree = {
        "model": {"path": options.model, "dtype": "fp32", "gradient_checkpointing": False},
        "references": [{"name": "start", "path": options.model, "dtype": "fp32"}],
        "topology": {"policy": 1, "placement": "colocated"},
        "loss": {"name": "dpo", "beta": 0.1},
        "data": {
            "train": [{"source": options.rows, "adapter": options.adapter, "limit": options.batch * options.steps}],
            "max_length": options.max_length,
            "max_dropped_fraction": 1.0,
            "max_cut_fraction": 1.0,
            "cache_dir": str(scratch / "cache"),
        },
        "train": {
            "batch_size": options.batch,
            "micro_batch_tokens": options.micro_batch_tokens,
            "max_steps": options.steps,
            "learning_rate": 1e-6,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
        },
        "tracking": {"wandb": {"mode": "disabled"}, "plots": False},
        "checkpoint": {"every_steps": 0},
        "output_dir": str(scratch / "run"),
    }
    path = scratch / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def write_pairs(path: Path, scratch: Path) -> dict[str, Any]:
    """pairs.json: token ids in the order of our steps. Returns how long they are."""
    material = prepare(load_config(str(path)))
    encodings = material.speakers[POLICY].encodings["train"]
    pairs = []
    for batch in material.train_batches(0):
        for index in batch.ids:
            chosen, rejected = encodings[index]
            prompt = chosen.prompt_length
            assert chosen.ids[:prompt] == rejected.ids[:prompt] and not chosen.earlier
            answers = {"chosen_ids": list(chosen.ids[prompt:]), "rejected_ids": list(rejected.ids[prompt:])}
            pairs.append({"prompt_ids": list(chosen.ids[:prompt]), **answers})
    (scratch / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    prompts = [len(pair["prompt_ids"]) for pair in pairs]
    responses = [len(pair[key]) for pair in pairs for key in ("chosen_ids", "rejected_ids")]
    return {
        "pairs": len(pairs),
        "prompt_tokens": statistics.mean(prompts),
        "response_tokens": statistics.mean(responses),
    }


def run_ours(config: Path, output: Path, threads: int) -> dict[str, Any]:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    command = [sys.executable, "-m", "mrpo_ds", "train", str(config), f"output_dir={output}"]
    run(command, threads, place)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in rows],
        "seconds": [row["perf/seconds_per_step"] for row in rows],
        "memory_gib": rows[-1]["perf/memory_gib"],
    }


def run_trl(options: argparse.Namespace, config: Path, scratch: Path) -> dict[str, Any]:
    script = str(Path(__file__).with_name("peer.py"))
    sizes = [str(options.batch), str(options.per_device), str(options.steps), str(options.max_length)]
    run([options.trl, script, options.model, str(scratch), *sizes], options.threads, {})
    found: dict[str, Any] = json.loads((scratch / "peer.json").read_text())
    return found


def run(command: list[str], threads: int, more: dict[str, str]) -> None:
    switches = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu"}
    environment = {**os.environ, **switches, "OMP_NUM_THREADS": str(threads), **more}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def compare(sides: dict[str, list[dict[str, Any]]], batch: int) -> dict[str, Any]:
    ours, theirs = sides["ours"], sides["TRL"]
    rate = {
        side: [batch / seconds for turn in turns for seconds in turn["seconds"][1:]] for side, turns in sides.items()
    }
    memory = {side: statistics.median(turn["memory_gib"] for turn in turns) for side, turns in sides.items()}
    medians = {side: statistics.median(rates) for side, rates in rate.items()}
    differences = [
        abs(mine - other)
        for our_turn, their_turn in zip(ours, theirs, strict=True)
        for mine, other in zip(our_turn["losses"], their_turn["losses"], strict=True)
    ]
    return {
        "pairs_a_second": medians,
        "spread": {side: [min(rates), max(rates)] for side, rates in rate.items()},
        "memory_gib": memory,
        "times_faster": medians["ours"] / medians["TRL"],
        "share_of_memory": memory["ours"] / memory["TRL"],
        "largest_difference_of_losses": max(differences),
        "losses": {"ours": ours[0]["losses"], "TRL": theirs[0]["losses"]},
    }


if __name__ == "__main__":
    sys.exit(main())
