"""How much memory and time a preference file larger than memory takes: the check, the check again, and an epoch.

    .venv/bin/python -m benchmarks.data.large_file --gib 2 [--model .cache/models/SmolLM2-135M-Instruct]

The rows are made here: random words, 2 responses, about 2 KiB a row. Memory is the sum of the proportional set sizes of
all processes of the command (what they would free by ending), as /proc tells it twice a second.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import ROOT, SMOLLM2, write_result

ROW_WORDS = (60, 110, 140)
"""Mean words of the prompt and the two responses."""
EPOCH = """
import sys, time
from mrpo_ds.config.load import load_config
from mrpo_ds.material import POLICY, prepare
import torch
config = load_config(sys.argv[1])
material = prepare(config)
layout = material.speakers[POLICY].layout(config.model)
batcher = material.batcher(layout, 0, 1, torch.device("cpu"))
started = time.perf_counter()
rows = tokens = 0
padding = []
for batch in material.train_batches(0):
    built = batcher.build(batch)
    rows += len(batch.ids)
    tokens += built.tokens
    padding.append(built.padding)
print(rows, tokens, sum(padding) / len(padding), time.perf_counter() - started)
"""


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="mrpo-ds-large-", dir=options.scratch) as folder:
        result = measure(Path(folder), options)
    print(json.dumps(result, indent=1))
    if options.gib >= 2:
        write_result("large_file", result)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--model", default=str(SMOLLM2))
    parser.add_argument("--scratch", default=None, help="a folder with room for about three times the file")
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every part of the benchmark, in one folder."""
    source = folder / "rows.jsonl"
    rows = write_rows(source, int(options.gib * 2**30))
    config = write_config(folder, source, options.model)
    small = write_config(folder, write_first(source, folder / "small.jsonl", 100), options.model, "small.yaml")
    check = [sys.executable, "-m", "mrpo_ds", "check"]
    least = run([*check, str(small)])
    first = run([*check, str(config)])
    again = run([*check, str(config)])
    epoch = run([sys.executable, "-c", EPOCH, str(config)])
    read, tokens, padding, seconds = (float(word) for word in epoch.pop("output").split())
    for one in (least, first, again):
        one.pop("output")
    return {
        "model": Path(options.model).name,
        "file_gib": round(source.stat().st_size / 2**30, 3),
        "rows": rows,
        "check of 100 rows": least,
        "check": first | {"rows_per_second": round(rows / first["seconds"])},
        "check again": again,
        "epoch of batches": epoch
        | {
            "rows": int(read),
            "tokens": int(tokens),
            "padding_fraction": round(padding, 4),
            "rows_per_second": round(read / seconds),
        },
    }


def write_rows(path: Path, size: int) -> int:
    """A .jsonl file of about this many bytes. Returns how many rows it has."""
    maker = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(maker.choices(letters, range(26, 0, -1), k=maker.randint(1, 9))) for _ in range(20_000)]
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            texts = [" ".join(maker.choices(words, k=max(1, int(maker.gauss(n, n / 3))))) for n in ROW_WORDS]
            row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def write_first(source: Path, path: Path, count: int) -> Path:
    with source.open() as lines, path.open("w") as file:
        file.writelines(line for line, _ in zip(lines, range(count), strict=False))
    return path


def write_config(folder: Path, source: Path, model: str, name: str = "run.yaml") -> Path:
    config = {
        "model": {"path": model},
        "references": [{"name": "start", "path": model}],
        "loss": {"name": "dpo"},
        "data": {
            "train": [{"source": str(source)}],
            "max_length": 1024,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"batch_size": 64},
        "deepspeed": str(ROOT / "ds_configs" / "zero3.json"),
        "output_dir": str(folder / "never-written"),
    }
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return path


def run(command: list[str]) -> dict[str, Any]:
    """Run a command; its peak memory and seconds, and what it printed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    peaks = [0, 0]
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    peak = {"peak_mib": peaks[0] >> 20, "processes": peaks[1]}
    return {**peak, "seconds": round(seconds, 1), "output": output}


def watch(process: "subprocess.Popen[str]", peaks: list[int]) -> None:
    """Keep the largest sum over the process and its children, and the most processes."""
    while process.poll() is None:
        sizes = [size for one in family(process.pid) if (size := proportional_set_size(one)) is not None]
        peaks[0] = max(peaks[0], sum(sizes))
        peaks[1] = max(peaks[1], len(sizes))
        time.sleep(0.5)


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def proportional_set_size(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, FileNotFoundError):
        return None


if __name__ == "__main__":
    sys.exit(main())
