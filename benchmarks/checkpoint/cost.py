"""What a checkpoint costs: how long training waits for it, how long the write takes, and how many bytes it has.

    .venv/bin/python benchmarks/checkpoint/cost.py [--model .cache/models/SmolLM2-135M-Instruct] [--ranks 2]

Starts the ranks itself: ZeRO-3 on this machine, real steps, checkpoints in the background and in the foreground by
turns in one run. Writes benchmarks/results/checkpoint_cost.json.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TURNS = 4
"""Checkpoints of each kind."""
PLAIN_STEPS = 2
"""Steps without a checkpoint before each one."""
ROWS, TOKENS = 2, 128
"""Of a rank's forward."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(ROOT / ".cache/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--directory", help="of the disk to write to; by default the one for temporary files")
    options = parser.parse_args()
    if "RANK" in os.environ:
        return be_a_rank(options)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    directory = tempfile.mkdtemp(prefix="mrpo-ds-checkpoint-", dir=options.directory)
    shared = {**os.environ, "WORLD_SIZE": str(options.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.ranks)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *sys.argv, "--directory", directory]
    try:
        ranks = [
            subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(options.ranks)
        ]
        return max(abs(rank.wait()) for rank in ranks)
    finally:
        shutil.rmtree(directory)


def be_a_rank(options: argparse.Namespace) -> int:
    """Measure; the first rank writes the result."""
    import torch

    from mrpo_ds.config.ds_config import read_ds_config
    from mrpo_ds.config.schema import ModelConfig, OptimizationConfig
    from mrpo_ds.distributed.launch import read_launch
    from mrpo_ds.distributed.topology import Role, Topology
    from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
    from mrpo_ds.engine import DeepSpeedEngine
    from mrpo_ds.models import load_scorer, resolve_dtype

    launch = read_launch(os.environ)
    assert launch is not None
    topology = Topology((Role("policy", 0, options.ranks),))
    rendezvous = open_rendezvous(launch, 600)
    world = split(topology, rendezvous, share_gpus=False)
    dtype = resolve_dtype(options.dtype, world.device)
    model = ModelConfig(path=options.model, dtype=options.dtype)
    scorer = load_scorer(model, dtype, trainable=True)
    sharding = read_ds_config(str(ROOT / "ds_configs" / "zero3.json"))
    engine = DeepSpeedEngine(scorer, sharding, OptimizationConfig(), world.device)
    rows = measure(engine, Path(options.directory), world.is_leader, stepper(engine, world.device))
    if world.is_leader:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
        result = {
            "command": f"benchmarks/checkpoint/cost.py --ranks {options.ranks} --dtype {options.dtype}",
            "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip(),
            "machine": f"{platform.machine()}, {machine}",
            "model": Path(options.model).name,
            "dtype": str(dtype).removeprefix("torch."),
            "ranks": options.ranks,
            "tokens_per_rank_and_step": ROWS * TOKENS,
            **summarize(rows),
            "checkpoints": rows,
        }
        print(json.dumps(result, indent=1))
        (ROOT / "benchmarks/results/checkpoint_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    leave()
    return 0


def stepper(engine: Any, device: Any) -> Callable[[], float]:
    """A function that makes one optimizer step on the same random tokens, and says how many seconds it took."""
    import torch

    from mrpo_ds.data.batching import Layout
    from mrpo_ds.data.rendering import Encoded

    ids = torch.randint(100, 1000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    batch = Layout(0).collate([[Encoded(row, 1)] for row in ids]).to(device)

    def step() -> float:
        started = time.perf_counter()
        engine.backward(-engine.forward(batch).mean() / TOKENS, last=True)
        engine.step(1e-5)
        return time.perf_counter() - started

    return step


def measure(engine: Any, directory: Path, is_main: bool, step: Callable[[], float]) -> list[dict[str, Any]]:
    """A row per checkpoint, background and foreground by turns; seconds."""
    from mrpo_ds.checkpoint import Checkpoints, TrainState

    checkpoints = Checkpoints(directory / "checkpoints", keep=1, settings={}, is_main=is_main, on_failure="stop")
    rows = []
    done = 1
    step()
    for turn in range(2 * TURNS):
        plain = [step() for _ in range(PLAIN_STEPS)]
        done += PLAIN_STEPS
        checkpoints.background = turn % 2 == 0
        started = time.perf_counter()
        checkpoints.begin(engine, TrainState(done))
        held = time.perf_counter() - started
        meanwhile = []
        while checkpoints.pending:
            meanwhile.append(step())
            done += 1
            polled = time.perf_counter()
            checkpoints.poll()
            held += time.perf_counter() - polled
        files = [path for path in (directory / "checkpoints").rglob("*") if is_main and path.is_file()]
        rows.append(
            {
                "background": checkpoints.background,
                "bytes": sum(path.stat().st_size for path in files),
                "training_waited": round(held, 3),
                "until_published": round(time.perf_counter() - started, 3),
                "plain_step": round(statistics.mean(plain), 3),
                "step_meanwhile": round(statistics.mean(meanwhile), 3) if meanwhile else None,
                "steps_meanwhile": len(meanwhile),
            }
        )
    return rows


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of both kinds. extra_seconds: all that a checkpoint adds, slower steps meanwhile included."""
    plain = statistics.median(row["plain_step"] for row in rows)
    result: dict[str, Any] = {"bytes": rows[-1]["bytes"], "plain_step_seconds": plain}
    for name, kind in (("background", True), ("foreground", False)):
        of_kind = [row for row in rows if row["background"] is kind]
        extra = [
            row["training_waited"] + row["steps_meanwhile"] * ((row["step_meanwhile"] or plain) - plain)
            for row in of_kind
        ]
        result[name] = {
            "training_waited_seconds": statistics.median(row["training_waited"] for row in of_kind),
            "until_published_seconds": statistics.median(row["until_published"] for row in of_kind),
            "extra_seconds": round(statistics.median(extra), 3),
        }
    return result


if __name__ == "__main__":
    sys.exit(main())
