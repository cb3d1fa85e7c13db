"""The scripts of launch/slurm on a real Slurm of two nodes: they finish, stop, are requeued, lose a node, go on."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds.checkpoint import list_checkpoints
from tests.leaderboard_support import SUITE, World
from tests.slurm_support import Slurm, two_node_slurm
from tests.support import ROOT, base_config, make_model, read_metrics, without_clock, write_config
from tests.warm import Warm

STEPS = 40
ROLES = "roles: policy: ranks 0-1, ref/ref1: rank 2, ref/ref2: rank 3"
SECONDS = 300.0
"""A job of these may wait or run so long."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
TASK = """#!/bin/sh
# In place of python: what a task knows of itself, and what it was asked to run.
exec {python} -c '
import os, sys
from mrpo_ds.distributed.launch import read_launch
print("task", os.environ["SLURMD_NODENAME"], read_launch(os.environ), *sys.argv[1:])' "$@"
"""


@dataclass(frozen=True)
class Cluster:
    """Two nodes, a tiny training for four ranks, and a site file."""

    slurm: Slurm
    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    def site(self, name: str = "site", **settings: Any) -> str:
        """A site file for these nodes, whose names lead nowhere: their MASTER_ADDR is this host's."""
        values: dict[str, Any] = {
            "gpus_per_node": 0,
            "cpus_per_task": 1,
            "time": "01:00:00",
            "environment": ["export DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1"],
            "python": sys.executable,
            "templates": str(ROOT / "launch/slurm"),
            "scripts": str(self.root / "scripts"),
            **settings,
        }
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    def launch(self, *words: str, site: str, environment: dict[str, str] | None = None) -> list[str]:
        """The ids of the jobs that `mrpo-ds launch slurm` submits."""
        done = subprocess.run(
            [sys.executable, "-m", "mrpo_ds", "launch", "slurm", *words, "--site", site],
            cwd=ROOT,
            env={**self.slurm.environment, "PYTHONPATH": str(ROOT), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ids = done.stdout.split()
        assert [f"submitted job {one}: " in done.stderr for one in ids] == [True] * len(ids)
        return ids

    def train(self, name: str, *words: str, site: str | None = None) -> tuple[str, Path]:
        """Submit the training on both nodes: the job's id, and the run's directory."""
        directory = self.root / name
        overrides = [f"output_dir={directory}", *(word for word in words if "=" in word)]
        options = [word for word in words if "=" not in word]
        (job,) = self.launch(
            str(self.config), *overrides, "--nodes", "2", "--name", name, *options, site=site or self.site()
        )
        return job, directory

    def records(self, job: str) -> list[dict[str, str]]:
        """What scontrol says of a job, or of each task of an array."""
        said = self.slurm.run("scontrol", "--oneliner", "show", "job", job).stdout
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in said.splitlines() if line.startswith("JobId=")]

    def output(self, job: str) -> str:
        """What a job has written so far, all tasks of an array in order."""
        files = sorted((self.root / "scripts").glob(f"*-{job}.out")) or sorted(
            (self.root / "scripts").glob(f"*-{job}_*.out")
        )
        return "".join(file.read_text(encoding="utf-8") for file in files)

    def wait(self, job: str, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}: {self.records(job)}\n{self.output(job)[-4000:]}"
            time.sleep(0.1)

    def over(self, job: str) -> list[str]:
        """Wait until a job, or every task of an array, is over: the states."""

        def ended() -> bool:
            records = self.records(job)
            return bool(records) and all(one["JobState"] in OVER for one in records)

        self.wait(job, ended, "it is not over")
        return [one["JobState"] for one in self.records(job)]

    def reaches(self, job: str, directory: Path, step: int) -> None:
        """Wait until a training has done so many steps."""
        file = directory / "metrics.jsonl"
        self.wait(job, lambda: file.exists() and file.read_text().count("\n") >= step, f"step {step} is not reached")

    def again(self, job: str, restarts: int) -> None:
        """Wait until a job is back in the queue, and spare it the two minutes that Slurm lets it wait there."""

        def queued() -> bool:
            (record,) = self.records(job)
            assert record["JobState"] not in OVER, self.output(job)[-4000:]
            return record["JobState"] == "PENDING" and record["Restarts"] == str(restarts)

        self.wait(job, queued, "it is not requeued")
        time.sleep(1.5)  # started in the second of its requeue, it would be taken for the start that was revoked
        assert self.slurm.run("scontrol", "update", f"jobid={job}", "starttime=now").returncode == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("cluster")
    settings = base_config(root)
    settings["topology"] |= {"policy": 2}
    settings["train"] |= {"max_steps": STEPS, "epochs": 99}
    write_config(root / "config.yaml", settings)
    with two_node_slurm(root / "slurm") as slurm:
        yield Cluster(slurm, root)


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster, warm: Warm) -> Path:
    """The directory of the same run without Slurm, to which nothing happens."""
    directory = cluster.root / "uninterrupted"
    run = warm("train", str(cluster.config), f"output_dir={directory}")
    assert run.returncode == 0, run.stderr[-4000:]
    return directory


def same_numbers(directory: Path, other: Path) -> None:
    """Every step once, and the numbers and weights of the other run to the bit."""
    assert [row["step"] for row in read_metrics(directory)] == list(range(1, STEPS + 1))
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert without_clock(read_metrics(directory, name)) == without_clock(read_metrics(other, name))
    weights = "model/model.safetensors"
    assert (directory / weights).read_bytes() == (other / weights).read_bytes()


def test_each_task_gets_a_rank_of_its_own(cluster: Cluster) -> None:
    """From srun, not from the shell that submits: its variables, of an earlier run, reach no task."""
    script = cluster.root / "task"
    script.write_text(TASK.format(python=sys.executable))
    script.chmod(0o755)
    site = cluster.site("tasks", python=str(script), environment=[])
    left_over = {"RANK": "7", "WORLD_SIZE": "9", "LOCAL_RANK": "5", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"}
    arguments = (str(cluster.config), "train.seed=5", "--nodes", "2")
    (job,) = cluster.launch(*arguments, site=site, environment=left_over)
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)
    said = sorted(line for line in cluster.output(job).splitlines() if line.startswith("task "))
    port = 20000 + int(job) % 12000
    launches = [
        f"task {node} Launch(rank={rank}, world_size=4, local_rank={local}, master_addr='n1', master_port={port}, "
        f"store_prefix=None, node='{int(node[1:]) - 1}')"
        for rank, (node, local) in enumerate((("n1", 0), ("n1", 1), ("n2", 0), ("n2", 1)))
    ]
    asked = f"-m mrpo_ds train {cluster.config} train.seed=5 --resume auto"
    assert said == [f"{launch} {asked}" for launch in launches]


def test_a_job_can_ask_when_its_time_is_over(cluster: Cluster) -> None:
    """With that, a run stops before (tests/faults/test_signals.py)."""
    ask = "import os, time; from mrpo_ds.budget import slurm_end; print('left', slurm_end(os.environ) - time.time())"
    code, output = cluster.slurm.batch(f'{sys.executable} -c "{ask}"\n', "--nodes=2", "--ntasks=3", "--time=3")
    assert code == 0, output
    assert 120 < float(output.split("left ")[1].split()[0]) < 180, output


@pytest.mark.cluster
def test_two_nodes_train_to_the_end(cluster: Cluster, uninterrupted: Path) -> None:
    job, directory = cluster.train("to-the-end")
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    output = cluster.output(job)
    assert output.count(ROLES) == 1 and "Traceback" not in output
    same_numbers(directory, uninterrupted)


def test_a_signal_saves_the_run_and_requeues_the_job(cluster: Cluster, uninterrupted: Path) -> None:
    """As --signal sends it before the end of the time: to the batch script, which passes it on."""
    job, directory = cluster.train("signalled")
    cluster.reaches(job, directory, 4)
    assert cluster.slurm.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    cluster.again(job, 1)
    assert len(list_checkpoints(directory / "checkpoints")) == 1
    assert 4 <= len(read_metrics(directory)) < STEPS
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    output = cluster.output(job)
    assert "Exited with exit code 75" in output and "requeue 1 of 20" in output and f"job {job}, start 2: " in output
    assert output.count(ROLES) == 2 and "Traceback" not in output
    same_numbers(directory, uninterrupted)


@pytest.mark.cluster
def test_a_signal_to_the_tasks_themselves(cluster: Cluster, uninterrupted: Path) -> None:
    job, directory = cluster.train("told")
    cluster.reaches(job, directory, 4)
    assert cluster.slurm.run("scancel", "--signal=USR1", job).returncode == 0
    cluster.again(job, 1)
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    same_numbers(directory, uninterrupted)


@pytest.mark.cluster
@pytest.mark.parametrize("node", ["n2", "n1"], ids=["of the references", "of the policy and the batch script"])
def test_a_lost_node(cluster: Cluster, uninterrupted: Path, node: str) -> None:
    job, directory = cluster.train(f"lost-{node}", "checkpoint.every_steps=3")
    cluster.reaches(job, directory, 8)
    cluster.slurm.lose(node)
    cluster.slurm.restore(node)
    cluster.again(job, 1)
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    assert "resuming from " in cluster.output(job)
    same_numbers(directory, uninterrupted)


@pytest.mark.cluster
def test_a_more_urgent_job_preempts_the_run(cluster: Cluster, uninterrupted: Path) -> None:
    job, directory = cluster.train("preempted")
    cluster.reaches(job, directory, 4)
    urgent = ("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    assert cluster.slurm.run(*urgent).returncode == 0
    cluster.again(job, 1)
    assert list_checkpoints(directory / "checkpoints")
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    same_numbers(directory, uninterrupted)


@pytest.mark.cluster
def test_no_more_requeues_than_the_site_allows(cluster: Cluster) -> None:
    job, directory = cluster.train("no-budget", site=cluster.site("no-budget", max_requeues=0))
    cluster.reaches(job, directory, 4)
    assert cluster.slurm.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    assert cluster.over(job) == ["FAILED"]
    (record,) = cluster.records(job)
    assert record["ExitCode"] == "75:0" and record["Restarts"] == "0"
    assert "the budget of 0 requeues is used up; submit the same script again" in cluster.output(job)
    assert list_checkpoints(directory / "checkpoints")


@pytest.mark.cluster
def test_a_cancelled_job_saves_its_step_and_stays_cancelled(cluster: Cluster) -> None:
    job, directory = cluster.train("cancelled")
    cluster.reaches(job, directory, 4)
    assert cluster.slurm.run("scancel", job).returncode == 0
    assert cluster.over(job) == ["CANCELLED"]
    cluster.wait(job, lambda: "cancelled, or requeued by Slurm" in cluster.output(job), "the script has not ended")
    assert list_checkpoints(directory / "checkpoints") and cluster.records(job)[0]["Restarts"] == "0"


@pytest.mark.cluster
def test_the_end_of_the_time_comes_with_a_signal(cluster: Cluster) -> None:
    """Slurm counts in minutes, and may send the signal a minute early: 90 to 150 seconds after the start."""
    site = cluster.site("short", signal_seconds=90)
    job, directory = cluster.train("short", "train.max_steps=100000", "train.epochs=99999", "--time", "4", site=site)
    cluster.again(job, 1)
    assert "SIGUSR1" in cluster.output(job) and list_checkpoints(directory / "checkpoints")
    assert cluster.slurm.run("scancel", job).returncode == 0
    assert cluster.over(job) == ["CANCELLED"]


@pytest.mark.cluster
def test_an_array_fills_the_store_and_a_training_reads_it(cluster: Cluster) -> None:
    store = f"topology.store={cluster.root / 'store'}"
    site = cluster.site()
    asked = (str(cluster.config), store, "--kind", "score", "--shards", "3", "--tasks-per-node", "2")
    (job,) = cluster.launch(*asked, site=site)
    assert cluster.over(job) == ["COMPLETED"] * 3, cluster.output(job)[-6000:]
    stored = ["topology.placement=stored", store, "topology.store_check_fraction=0", "train.max_steps=3"]
    job, directory = cluster.train("stored", *stored, site=site)
    assert cluster.over(job) == ["COMPLETED"], cluster.output(job)[-4000:]
    assert "50 of 50 rows are stored" in cluster.output(job)
    assert all(row["ref/ref2/stored_fraction"] == 1 for row in read_metrics(directory))


@pytest.fixture(scope="module")
def sweep(cluster: Cluster) -> tuple[Path, str, str]:
    """Two seeds, each requeued once: the runs' directory, the array's id and that of the comparison."""
    lines, directory = cluster.root / "sweep.txt", cluster.root / "sweep"
    lines.write_text("train.seed=0\ntrain.seed=1 train.learning_rate=1e-4\n")
    asked = (str(cluster.config), f"output_dir={directory}", "--nodes", "2", "--sweep", str(lines), "--name", "sweep")
    array, compare = cluster.launch(*asked, site=cluster.site())
    first = directory / "0-seed=0"
    cluster.reaches(array, first, 4)
    assert cluster.slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_0").returncode == 0
    cluster.again(f"{array}_0", 1)
    assert cluster.records(compare)[0]["JobState"] == "PENDING", "a requeued run is not over"
    assert cluster.over(array) == ["COMPLETED"] * 2, cluster.output(array)[-6000:]
    return directory, array, compare


@pytest.mark.cluster
def test_a_sweep_has_a_run_per_line(cluster: Cluster, sweep: tuple[Path, str, str], uninterrupted: Path) -> None:
    directory, array, _ = sweep
    second = directory / "1-seed=1,learning_rate=1e-4"
    same_numbers(directory / "0-seed=0", uninterrupted)
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert (config["train"]["seed"], config["train"]["learning_rate"]) == (1, 1e-4)
    assert config["tracking"]["wandb"]["group"] == "config"
    assert len(read_metrics(second)) == STEPS


@pytest.mark.cluster
def test_the_comparison_comes_after_all_runs(cluster: Cluster, sweep: tuple[Path, str, str]) -> None:
    _, array, compare = sweep
    cluster.over(compare)
    (record,) = cluster.records(compare)
    assert all(record["StartTime"] >= one["EndTime"] for one in cluster.records(array))


@pytest.mark.cluster
def test_the_comparison_is_made(cluster: Cluster, sweep: tuple[Path, str, str]) -> None:
    directory, _, compare = sweep
    assert cluster.over(compare) == ["COMPLETED"], cluster.output(compare)
    assert any((directory / "compare").iterdir())


@pytest.mark.cluster
def test_a_run_that_did_not_finish_is_left_out_of_the_comparison(cluster: Cluster, uninterrupted: Path) -> None:
    """The job fails, so that somebody looks; what there is has been asked for."""
    script = cluster.root / "asked"
    script.write_text('#!/bin/sh\necho "asked for: $*"\n')
    script.chmod(0o755)
    site = cluster.site("asked", python=str(script))
    runs = (str(uninterrupted), str(cluster.root / "nowhere"))
    (job,) = cluster.launch(*runs, "--kind", "compare", "--out", "somewhere", site=site)
    assert cluster.over(job) == ["FAILED"]
    assert f"asked for: -m mrpo_ds compare {runs[0]} --out somewhere\n" in cluster.output(job)
    assert f"{runs[1]} has no summary.json: it did not finish, and is left out" in cluster.output(job)


@pytest.mark.cluster
def test_the_tasks_of_an_array_share_an_evaluation(cluster: Cluster) -> None:
    """Two models and two tasks by lm-eval itself: the table is that of one command."""
    (cluster.root / "evaluation").mkdir()
    world = World.made(cluster.root / "evaluation")
    world.models["mrpo"] = make_model(world.root / "mrpo", seed=2)
    world.suite.write_text("".join(line for line in SUITE.splitlines(True) if "mmlu" not in line), encoding="utf-8")
    scratch = f"export DS_ACCELERATOR=cpu HF_HOME={world.root}/hf HF_DATASETS_CACHE={world.root}/hf/datasets"
    words = world.arguments("shared", "--batch-size", "4")[2:]
    (job,) = cluster.launch(*words, "--kind", "eval", "--shards", "2", site=cluster.site("eval", environment=[scratch]))
    assert cluster.over(job) == ["COMPLETED"] * 2, cluster.output(job)[-4000:]
    assert sorted(world.computed("shared")) == ["base/arc_easy", "base/gsm8k", "mrpo/arc_easy", "mrpo/gsm8k"]
    assert {path.name for path in (world.root / "shared/logs").iterdir()} == {
        "shard-0-of-2-worker-0.log",
        "shard-1-of-2-worker-0.log",
    }
    world.sweep("alone", "--batch-size", "4")
    assert world.results("shared")["missing"] == []
    assert world.results("shared") == world.results("alone")


def test_what_sbatch_refuses_is_one_line(cluster: Cluster) -> None:
    site = cluster.site("wrong", partition="nowhere")
    done = cluster.slurm.run(
        *(sys.executable, "-m", "mrpo_ds", "launch", "slurm", str(cluster.config), "--nodes", "2", "--site", site)
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: sbatch refuses " in done.stderr and "invalid partition specified: nowhere" in done.stderr
