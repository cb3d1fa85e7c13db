"""One run under every launcher: the numbers are the same to the last bit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_support import two_node_slurm
from tests.support import (
    ROOT,
    base_config,
    command_environment,
    free_port,
    mrpo_ds,
    read_metrics,
    without_clock,
    write_config,
)

RANKS = 4
"""Two of the policy, one of each reference."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launchers")
    settings = base_config(root)
    settings["topology"] |= {"policy": 2}
    settings["train"] |= {"max_steps": 3}
    return write_config(root / "config.yaml", settings)


def without_launcher(config: Path, output: str) -> tuple[int, str]:
    done = mrpo_ds("train", str(config), output)
    return done.returncode, done.stderr


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


def srun(config: Path, output: str) -> tuple[int, str]:
    """Two nodes of two tasks: the policy on the first, a reference each on the second."""
    script = (
        "export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu\n"
        # The names of nodes lead to them on a cluster; these two are this host.
        f"export MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}\n"
        f"srun --kill-on-bad-exit=1 {sys.executable} -m mrpo_ds train {config} {output}\n"
    )
    with two_node_slurm(config.parent / "slurm") as slurm:
        return slurm.batch(script, "--nodes=2", "--ntasks-per-node=2", "--distribution=block")


Launcher = Callable[[Path, str], tuple[int, str]]
_made: dict[tuple[Path, str], tuple[Path, str]] = {}


def run_under(launcher: Launcher, config: Path) -> tuple[Path, str]:
    """The run directory and the console of the one run under a launcher; made at the first call."""
    key = (config, launcher.__name__)
    if key not in _made:
        directory = config.parent / launcher.__name__
        code, console = launcher(config, f"output_dir={directory}")
        assert code == 0, console[-6000:]
        _made[key] = directory, console
    return _made[key]


def numbers(directory: Path) -> list[list[dict[str, Any]]]:
    return [without_clock(read_metrics(directory, name)) for name in ("metrics.jsonl", "evals.jsonl")]


@pytest.mark.parametrize("launcher", [deepspeed, torchrun, srun])
def test_the_numbers_do_not_depend_on_the_launcher(config: Path, launcher: Launcher) -> None:
    alone, _ = run_under(without_launcher, config)
    directory, _ = run_under(launcher, config)
    assert [row["step"] for row in numbers(alone)[0]] == [1, 2, 3]
    assert numbers(directory) == numbers(alone)


@pytest.mark.parametrize("launcher", [without_launcher, deepspeed, torchrun, srun])
def test_one_process_speaks_and_none_complains(config: Path, launcher: Launcher) -> None:
    _, console = run_under(launcher, config)
    for once in ("roles: policy: ranks 0-1, ref/ref1: rank 2, ref/ref2: rank 3", "step 3: held-out accuracy"):
        assert console.count(once) == 1
    assert "error" not in console.lower() and "Traceback" not in console


def test_the_weights_do_not_depend_on_the_launcher(config: Path) -> None:
    alone, _ = run_under(without_launcher, config)
    directory, _ = run_under(srun, config)
    for path in sorted((alone / "model").glob("*.safetensors")):
        assert (directory / "model" / path.name).read_bytes() == path.read_bytes()
