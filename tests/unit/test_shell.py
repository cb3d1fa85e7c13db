"""Every shell script of the repository, and every script that is made from a template, as shellcheck sees it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo_ds.slurm.jobs import Request, jobs_of
from mrpo_ds.slurm.script import fill, read_template
from mrpo_ds.slurm.site import Site
from tests.support import ROOT, need

NOT_OURS = {".venv", ".cache", ".git", "runs", "build"}
FULL = Site(
    partition="gpu",
    account="us",
    sbatch=["--exclusive", "--constraint=h100"],
    modules=["cuda/12.8", "nccl"],
    environment=['export HF_HOME="$HOME/hf"'],
    srun=["--container-image=/data/mrpo.sqsh", "--container-mounts=/data,$PWD"],
    container=["apptainer", "exec", "--nv", "/data/my image.sif"],
    python="/opt/env/bin/python",
    templates=str(ROOT / "launch/slurm"),
)
CONFIG = str(ROOT / "launch/configs/mrpo.yaml")
REQUESTS = {
    "train": Request(words=(CONFIG, "train.seed=1", "loss.beta=0.2"), kind="train", nodes=2),
    "score": Request(words=(CONFIG,), kind="score", shards=4),
    "eval": Request(words=("runs/a b/model", "Org/Model"), kind="eval", suite="smoke"),
    "compare": Request(words=("runs/one", "runs/two"), kind="compare"),
}


def scripts() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        for path in (Path(folder) / name for name in files):
            if path.suffix in (".sh", ".sbatch") or (not path.suffix and says_shell(path)):
                yield path


def says_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"#!.*\b(ba)?sh\b", file.readline(200)) is not None


def shellcheck(*files: Path) -> str:
    need(shutil.which("shellcheck") is not None, "shellcheck (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_scripts_of_the_repository() -> None:
    found = sorted(scripts())
    names = {str(path.relative_to(ROOT)) for path in found}
    assert {".ci/run", "launch/torchrun.sh", "launch/slurm/train.sbatch"} <= names
    assert shellcheck(*found) == ""


def test_those_to_be_run_can_be_run() -> None:
    assert not [path for path in scripts() if path.suffix != ".sbatch" and not os.access(path, os.X_OK)]


@pytest.mark.parametrize("site", [FULL, replace(Site(), templates=FULL.templates)], ids=["full", "defaults"])
@pytest.mark.parametrize("kind", [*REQUESTS, "sweep"])
def test_filled_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, site: Site) -> None:
    (tmp_path / "runs/a b/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.txt").write_text("train.seed=0\ntrain.seed=1\n")
    request = REQUESTS["train" if kind == "sweep" else kind]
    request = replace(request, sweep=str(tmp_path / "sweep.txt") if kind == "sweep" else None)
    for number, job in enumerate(jobs_of(request, site)):
        path = tmp_path / f"{number}.sbatch"
        path.write_text(fill(read_template(site, job.kind), job.options, job.variables, site))
        assert shellcheck(path) == ""
        subprocess.run(["bash", "-n", path], check=True)
