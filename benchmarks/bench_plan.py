"""What `mrpo-ds plan` predicts beside what runs take: memory and seconds of a step, of several real configurations.

    .venv/bin/python -m benchmarks.bench_plan [--models tiny smollm2] [--only NAME ...] [--steps 5] [--measure 30]

Measures this machine once per model, then for each configuration predicts, trains and compares. Give the machine to it
alone: both sides are timed. Writes benchmarks/results/plan.json. Configurations in bf16 are left out, and named, on
a CPU without bf16 instructions, where a run would not choose it: what replaces them is ten times faster in one layout
than in another, which no rate says.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, SMOLLM2, write_result

WARM_STEPS = 1
"""Steps at the start that are left out: caches are cold, and moments are made in the first."""
TINY = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
"""The shape of the tiny model; its vocabulary is that of SmolLM2, whose tokenizer it has."""


def cases() -> dict[str, dict[str, Any]]:
    """Configurations by name: overrides of the base."""

    def case(dtype: str, checkpointing: bool, placement: str, policy: int, tokens: int = 1024) -> dict[str, Any]:
        return {
            "model.dtype": dtype,
            "references.0.dtype": dtype,
            "model.gradient_checkpointing": checkpointing,
            "topology.placement": placement,
            "topology.policy": policy,
            "train.micro_batch_tokens": tokens,
        }

    return {
        "fp32 colocated": case("fp32", False, "colocated", 1),
        "fp32 colocated checkpointing": case("fp32", True, "colocated", 1),
        "bf16 colocated": case("bf16", False, "colocated", 1),
        "fp32 served": case("fp32", False, "served", 1),
        "fp32 stored": case("fp32", False, "stored", 1),
        "fp32 colocated 2 ranks": case("fp32", False, "colocated", 2),
        "bf16 stored 2 ranks checkpointing": case("bf16", True, "stored", 2),
        "fp32 colocated small forwards": case("fp32", False, "colocated", 1, tokens=256),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2"], choices=["tiny", "smollm2"])
    parser.add_argument("--only", nargs="+", help="names of configurations")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="prompts of a step")
    parser.add_argument("--measure", type=float, default=30.0, help="seconds, per model")
    parser.add_argument("--out", help="file of the result")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["PYTHONPATH"] = str(ROOT)
    directory = Path(tempfile.mkdtemp(prefix="mrpo-ds-plan-"))
    try:
        rows = [row for model in options.models for row in of_model(model, directory, options)]
    finally:
        shutil.rmtree(directory)
    print(table(rows))
    result = {
        "within_10_percent_of_memory": sum(abs(row["gib_ratio"] - 1) <= 0.1 for row in rows),
        "within_25_percent_of_time": sum(abs(row["seconds_ratio"] - 1) <= 0.25 for row in rows),
        "configurations": rows,
    }
    write_result("plan", result, options.out, "cpu")
    return 0


def of_model(model: str, directory: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per configuration."""
    from mrpo_ds.config.load import load_config
    from mrpo_ds.models import load_model_config
    from mrpo_ds.plan.measure import measure_machine

    path = SMOLLM2 if model == "smollm2" else make_tiny(directory / "tiny")
    base = directory / f"{model}.yaml"
    base.write_text(json.dumps(base_config(path, options, directory)))
    config = load_config(str(base))
    machine = measure_machine(load_model_config(config.model), config.model, options.measure, config.deepspeed)
    print(machine, flush=True)
    rows = []
    for name, overrides in cases().items():
        if options.only and name not in options.only:
            continue
        if overrides["model.dtype"] == "bf16" and not multiplies_bf16():
            print(f"{model} {name}: left out, this CPU has no bf16 instructions", flush=True)
            continue
        row = {"model": model, "name": name, **compare(base, overrides, machine, directory / "run")}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def multiplies_bf16() -> bool:
    """Whether a run would choose bf16 here by itself."""
    import torch

    from mrpo_ds.models import resolve_dtype

    return resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16


def make_tiny(path: Path) -> Path:
    """A small Llama with random weights and SmolLM2's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(SMOLLM2)
    config.update({**TINY, "num_key_value_heads": 2, "head_dim": 64})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(SMOLLM2).save_pretrained(path)
    return path


def base_config(path: Path, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """The run that all configurations are variants of."""
    return {
        "model": {"path": str(path)},
        "references": [{"name": "start", "path": str(path)}],
        "topology": {"share_gpus": True, "store": str(directory / "store")},
        "loss": {"name": "dpo"},
        "data": {
            "train": [{"source": str(ROOT / "launch/data/quickstart.train.jsonl"), "adapter": "ranked"}],
            "view": "pair",
            "max_length": 512,
            "cache_dir": str(directory / "cache"),
        },
        "train": {"batch_size": options.batch, "max_steps": options.steps, "learning_rate": 1e-5},
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "checkpoint": {"every_steps": 0},
        "evaluate": {"every_steps": 0},
        "tracking": {"wandb": {"mode": "disabled"}, "plots": False},
        "output_dir": str(directory / "run"),
    }


def compare(base: Path, overrides: dict[str, Any], machine: Any, run_dir: Path) -> dict[str, Any]:
    """Predict, train, compare."""
    from mrpo_ds.config.load import load_config
    from mrpo_ds.material import POLICY, prepare
    from mrpo_ds.models import load_model_config
    from mrpo_ds.plan.predict import Prediction

    given = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in overrides.items()]
    if overrides["topology.placement"] == "stored":
        command("score", str(base), *given)
    else:
        given.append("topology.store=null")
    config = load_config(str(base), given)
    models = {POLICY: config.model, **{one.name: one for one in config.references}}
    material = prepare(config)
    configs = {name: load_model_config(model) for name, model in models.items()}
    prediction = Prediction(material, machine, configs)
    memory = prediction.memory()[0]
    parts = prediction.step_parts(config.topology.placement, config.topology.policy, {"start": 1})
    command("train", str(base), *given)
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir)
    seconds = [row["perf/seconds_per_step"] for row in metrics[WARM_STEPS:]]
    took, gib = statistics.median(seconds), metrics[-1]["perf/memory_gib"]
    return {
        "predicted_seconds": round(sum(parts.values()), 3),
        "measured_seconds": round(took, 3),
        "seconds_spread": [round(min(seconds), 3), round(max(seconds), 3)],
        "seconds_ratio": round(sum(parts.values()) / took, 3),
        "predicted_gib": round(memory.gib, 3),
        "measured_gib": round(gib, 3),
        "gib_ratio": round(memory.gib / gib, 3),
        "parts_seconds": {name: round(value, 3) for name, value in parts.items()},
        "parts_gib": {part.name: round(part.bytes / 2**30, 3) for part in memory.parts},
    }


def command(*arguments: str) -> None:
    """Run mrpo-ds; its output is shown if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mrpo_ds", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"mrpo-ds {' '.join(arguments)}:\n{done.stderr[-3000:]}")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| model | configuration | seconds: predicted | measured | ratio | GiB: predicted | measured | ratio |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        values = [row["model"], row["name"]]
        values += [row[f"{what}_{unit}"] for unit in ("seconds",) for what in ("predicted", "measured")]
        values += [row["seconds_ratio"], row["predicted_gib"], row["measured_gib"], row["gib_ratio"]]
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
