"""What every benchmark needs: the machine and the commit in words, child processes, medians, and the result's file.

Standard library only, and psutil where children are watched: peers' environments import it too.
"""

import importlib.metadata
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / ".cache" / "models"
SMOLLM2 = MODELS / "SmolLM2-135M-Instruct"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC", "SLURM_", "OMP_", "MKL_", "MRPO_DS_")
"""How the variables begin that a child must not inherit: another run's place, threads, checks and cache."""
SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "WANDB_MODE": "disabled",
}


# ---- what stands in every result -------------------------------------------------------------------------------------


def commit() -> str:
    """The commit that was measured, "-dirty" behind it when the tree has changes; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The machine: CPU, cores and memory, and with device "cuda" the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
    }
    if device == "cuda":
        import torch

        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def versions(*packages: str) -> dict[str, str]:
    """Versions of the installed ones of these packages, Python's own first."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def spread(values: Iterable[float], digits: int = 6) -> dict[str, float]:
    """Median, least, largest and number of the values; at least one."""
    numbers = sorted(values)
    shown = {"median": statistics.median(numbers), "least": numbers[0], "largest": numbers[-1]}
    return {name: float(f"{value:.{digits}g}") for name, value in shown.items()} | {"count": len(numbers)}


def median(values: Iterable[float]) -> float:
    """The median of at least one value."""
    return statistics.median(list(values))


def write_result(name: str, result: dict[str, Any], out: str | None = None, device: str = "cpu") -> Path:
    """Print a result and write it to benchmarks/results/<name>.json, or to the file `out`.

    The command, the commit and the hardware come before the result's own entries.
    """
    head = {
        "command": " ".join(["python -m", _module(), *map(_short, sys.argv[1:])]),
        "commit": commit(),
        "hardware": hardware(device),
        "versions": versions("torch", "deepspeed", "transformers"),
    }
    path = Path(out) if out else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head | result, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}", flush=True)
    return path


def _module() -> str:
    """'benchmarks.bench_step' for the program that runs."""
    return ".".join(Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("").parts)


def _short(word: str) -> str:
    """A word of the command; of a path, what stands below this repository, or else its last part."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where and as what a child runs."""

    threads: int = 1
    cores: tuple[int, ...] = ()
    """The cores that it is kept to; none: all that this process has."""
    device: str = "cpu"
    """cpu (no GPU is visible to it) or cuda."""
    variables: tuple[tuple[str, str], ...] = ()
    """Further variables of its environment."""

    def environment(self) -> dict[str, str]:
        """This process's environment without what belongs to another run, and with what this place says."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        devices = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        own = {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT), **devices}
        return {**kept, **SWITCHES, **own, **dict(self.variables)}


@dataclass(frozen=True)
class Finished:
    """What became of a child."""

    code: int
    output: str
    errors: str
    seconds: float
    peak_gib: float
    """Largest resident memory of the process, imports included."""


class Child:
    """A process of a benchmark."""

    def __init__(self, command: Sequence[str], place: Place) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mrpo-ds-child-")
        self._files = [Path(self._folder.name) / name for name in ("output", "errors")]
        self._started = time.perf_counter()
        with self._files[0].open("w") as output, self._files[1].open("w") as errors:
            self._process = subprocess.Popen(command, cwd=ROOT, env=place.environment(), stdout=output, stderr=errors)
        if place.cores:
            os.sched_setaffinity(self._process.pid, place.cores)  # before it has any thread to leave behind

    def wait(self) -> Finished:
        """Wait for its end."""
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        texts = [file.read_text(errors="replace") for file in self._files]
        self._folder.cleanup()
        return Finished(code, texts[0], texts[1], time.perf_counter() - self._started, used.ru_maxrss / 2**20)


def run_child(command: Sequence[str], place: Place) -> Finished:
    """Run a command to its end, whatever comes of it."""
    return Child(command, place).wait()


def run_or_exit(command: Sequence[str], place: Place) -> Finished:
    """Run a command to its end; when it fails, end this benchmark with what it said."""
    return succeed(run_child(command, place), command)


def succeed(done: Finished, command: Sequence[str]) -> Finished:
    """The same, or the end of this benchmark."""
    if done.code:
        raise SystemExit(f"{' '.join(command)} ended with {done.code}:\n{done.output[-2000:]}\n{done.errors[-4000:]}")
    return done


def rank_place(place: Place, rank: int, size: int, port: int) -> Place:
    """The same place for one of the ranks of a run that a benchmark starts itself."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    named = tuple((name, str(value)) for name, value in variables.items())
    return Place(place.threads, place.cores, place.device, place.variables + named)


def free_port() -> int:
    """A port that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(done: Finished) -> str:
    """The last line of what a child that failed has said: the message of its exception."""
    lines = [line.strip() for line in (done.errors or done.output).splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with {done.code}"


def pick_device(name: str) -> str:
    """cpu or cuda for 'auto' | 'cpu' | 'cuda'; deepspeed is told, before it is imported and guesses."""
    if name == "auto":
        import torch

        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    return name
