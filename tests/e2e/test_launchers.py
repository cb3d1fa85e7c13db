"""One run under other launchers than ours: the numbers are the same to the last bit.

Without a launcher a run is started in test_training.py, and by srun in test_slurm.py.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    ROOT,
    base_config,
    command_environment,
    free_port,
    read_metrics,
    without_clock,
    write_config,
)
from tests.warm import Warm

RANKS = 3
"""Two of the policy, one of the reference."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launchers")
    settings = base_config(root, references=1)
    settings["topology"] |= {"policy": 2}
    settings["train"] |= {"max_steps": 3}
    return write_config(root / "config.yaml", settings)


def deepspeed(config: Path, output: str) -> tuple[int, str]:
    return script("deepspeed_one_node.sh", config, output)


def torchrun(config: Path, output: str) -> tuple[int, str]:
    return script("torchrun.sh", config, output)


def script(name: str, config: Path, output: str) -> tuple[int, str]:
    """One of launch/, on this machine."""
    environment = command_environment(PYTHON=sys.executable, RANKS=str(RANKS))
    environment["MASTER_PORT"] = str(free_port())
    done = subprocess.run(
        [ROOT / "launch" / name, str(config), output],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr


Launcher = Callable[[Path, str], tuple[int, str]]
Launched = Callable[[Launcher], tuple[Path, str]]
LAUNCHERS: list[Launcher] = [deepspeed, torchrun]


@pytest.fixture(scope="module")
def alone(config: Path, warm: Warm) -> Path:
    """The directory of the run whose ranks were given their places by the test."""
    directory = config.parent / "alone"
    run = warm("train", str(config), f"output_dir={directory}")
    assert run.returncode == 0, run.stderr[-6000:]
    return directory


@pytest.fixture(scope="module")
def launched(config: Path) -> Iterator[Launched]:
    """The run directory and the console of the run under each launcher. They begin at once."""
    directories = {launcher: config.parent / launcher.__name__ for launcher in LAUNCHERS}
    with ThreadPoolExecutor() as pool:
        runs = {one: pool.submit(one, config, f"output_dir={where}") for one, where in directories.items()}

        def result(launcher: Launcher) -> tuple[Path, str]:
            code, console = runs[launcher].result()
            assert code == 0, console[-6000:]
            return directories[launcher], console

        yield result


def numbers(directory: Path) -> list[list[dict[str, Any]]]:
    return [without_clock(read_metrics(directory, name)) for name in ("metrics.jsonl", "evals.jsonl")]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_numbers_do_not_depend_on_the_launcher(alone: Path, launched: Launched, launcher: Launcher) -> None:
    directory, _ = launched(launcher)
    assert [row["step"] for row in numbers(alone)[0]] == [1, 2, 3]
    assert numbers(directory) == numbers(alone)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_process_speaks_and_none_complains(launched: Launched, launcher: Launcher) -> None:
    _, console = launched(launcher)
    for once in ("roles: policy: ranks 0-1, ref/ref1: rank 2", "step 3: held-out accuracy"):
        assert console.count(once) == 1
    assert "error" not in console.lower() and "Traceback" not in console


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_weights_do_not_depend_on_the_launcher(alone: Path, launched: Launched, launcher: Launcher) -> None:
    directory, _ = launched(launcher)
    for path in sorted((alone / "model").glob("*.safetensors")):
        assert (directory / "model" / path.name).read_bytes() == path.read_bytes()
