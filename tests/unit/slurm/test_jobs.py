"""Which jobs a command line means, and which it refuses before anything is submitted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.cli import main
from mrpo_ds.errors import ConfigError
from mrpo_ds.slurm.jobs import Job, Request, jobs_of
from mrpo_ds.slurm.site import Site
from tests.support import ROOT

CONFIG = str(ROOT / "launch/configs/mrpo.yaml")
"""Two policy ranks and two references: four ranks."""
SITE = Site(templates=str(ROOT / "launch/slurm"))


def jobs(*words: str, site: Site = SITE, **request: Any) -> list[Job]:
    return jobs_of(Request(words=words or (CONFIG,), **{"kind": "train", **request}), site)


def test_a_training_on_two_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    site = replace(SITE, partition="gpu", account="us", qos="high", memory_per_node="0", time="02:00:00")
    (job,) = jobs(CONFIG, "train.seed=3", nodes=2, site=site)
    assert job.kind == "train" and job.options == {
        "job-name": "mrpo",
        "nodes": 2,
        "ntasks-per-node": 2,
        "partition": "gpu",
        "account": "us",
        "qos": "high",
        "gpus-per-node": 2,
        "mem": "0",
        "cpus-per-task": 8,
        "requeue": None,
        "open-mode": "append",
        "output": "runs/slurm/%x-%j.out",
        "time": "02:00:00",
        "signal": "B:USR1@300",
    }
    assert job.variables == {"config": CONFIG, "overrides": ["train.seed=3"], "sweep": [], "max_requeues": 20}


def test_it_says_that_tasks_and_ranks_agree(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["launch", "slurm", CONFIG, "--nodes", "2", "--site", str(ROOT / "launch/site.yaml"), "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "nodes 2 x tasks 2 = 4 ranks, as the topology has (policy: ranks 0-1, ref/smollm2: rank 2, " in said.err
    assert said.out.startswith("#!/usr/bin/env bash\n") and "#SBATCH --ntasks-per-node=2\n" in said.out


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            {"nodes": 2, "tasks_per_node": 3},
            "--nodes 2 x --tasks-per-node 3 = 6 processes, but the topology has 4 ranks",
        ),
        ({"nodes": 3}, "--nodes is 3; allowed: a number that divides the 4 ranks of the topology (policy: ranks 0-1,"),
        ({"nodes": 0}, "--nodes is 0; allowed: >= 1."),
        ({"time": "5"}, "time is '5', but the run is told to stop 300 s before its end"),
        ({"time": "soon"}, "time is 'soon'; allowed: a time as sbatch takes it"),
        ({"suite": "quick"}, "--suite is 'quick'; allowed: with --kind eval alone."),
        ({"shards": 2}, "--shards is 2; allowed: with --kind score or eval alone."),
        ({"kind": "score", "sweep": "x"}, "--sweep is 'x'; allowed: with --kind train alone."),
        ({"kind": "eval"}, "--suite is None; allowed: the name of a suite"),
        ({"kind": "eval", "suite": "quick"}, "--suite is 'quick'; allowed: "),
        ({"kind": "eval", "nodes": 2}, "--nodes is 2; allowed: with --kind train or score alone."),
        ({"kind": "eval", "tasks_per_node": 8}, "--tasks-per-node is 8; allowed: with --kind train or score alone."),
        ({"kind": "compare", "gpus_per_node": 8}, "--gpus-per-node is 8; allowed: with --kind train or score or eval"),
        ({"kind": "score", "out": "x"}, "--out is 'x'; allowed: with --kind eval or compare, or with --sweep, alone."),
        ({"dtype": "bf16"}, "--dtype is 'bf16'; allowed: with --kind eval alone."),
        ({"chat_template": False}, "--chat-template is False; allowed: with --kind eval alone."),
        ({"redo": True}, "--redo is True; allowed: with --kind eval alone."),
        ({"sweep": "none.txt"}, "the sweep file 'none.txt' cannot be read: No such file or directory."),
    ],
)
def test_what_it_refuses(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs(**request_)
    assert says in str(caught.value)


def test_roles_share_gpus_only_when_the_configuration_says_so() -> None:
    (job,) = jobs(CONFIG, "topology.share_gpus=true", nodes=2, gpus_per_node=1)
    assert job.options["gpus-per-node"] == 1
    with pytest.raises(ConfigError, match="1 GPUs a node for 2 tasks. Use at most 1 tasks a node, or set topology.sha"):
        jobs(CONFIG, "topology.share_gpus=false", nodes=2, gpus_per_node=1)


def test_no_gpus_at_all() -> None:
    for kind, more in (("train", {}), ("score", {}), ("eval", {"suite": "smoke"})):
        words = ("Org/Model",) if kind == "eval" else ()
        (job,) = jobs(*words, kind=kind, site=replace(SITE, gpus_per_node=0), **more)
        assert "gpus-per-node" not in job.options


def test_a_sweep_is_an_array_and_a_comparison_of_its_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.txt"
    lines = [
        "# seeds",
        "",
        "train.seed=0",
        " train.seed=1  train.learning_rate=1e-6",
        "output_dir=runs/own loss.beta=0.2",
    ]
    sweep.write_text("\n".join(lines))
    train, compare = jobs(sweep=str(sweep), nodes=2)
    assert train.options["array"] == "0-2" and train.options["output"] == "runs/slurm/%x-%A_%a.out"
    assert train.variables["sweep"] == [
        "train.seed=0 output_dir=runs/mrpo/0-seed=0",
        "train.seed=1 train.learning_rate=1e-6 output_dir=runs/mrpo/1-seed=1,learning_rate=1e-6",
        "output_dir=runs/own loss.beta=0.2",
    ]
    runs = ["runs/mrpo/0-seed=0", "runs/mrpo/1-seed=1,learning_rate=1e-6", "runs/own"]
    assert compare.kind == "compare" and compare.variables == {"runs": runs, "out": "runs/mrpo/compare"}
    assert compare.options["job-name"] == "mrpo-compare" and "gpus-per-node" not in compare.options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# nothing\n", "is 'empty'; allowed: a line of key=value overrides for each run."),
        ("train.seed=0\ntrain.sede=1\n", "train.sede: unknown key; did you mean 'seed'?"),
        ("topology.policy=2\ntopology.policy=4\n", "= 4 processes, but the topology has 6 ranks"),
        ("output_dir=a\noutput_dir=a\n", "output_dir is 'a'; allowed: another one in each line of the sweep."),
    ],
)
def test_a_sweep_that_could_not_run_is_refused_at_once(tmp_path: Path, text: str, says: str) -> None:
    sweep = tmp_path / "sweep.txt"
    sweep.write_text(text)
    with pytest.raises(ConfigError) as caught:
        jobs(sweep=str(sweep), nodes=2)
    assert says in str(caught.value)


def test_scoring_in_shards() -> None:
    (job,) = jobs(CONFIG, "topology.store=runs/store", kind="score", shards=3, tasks_per_node=2)
    assert job.options["array"] == "0-2" and job.options["ntasks-per-node"] == job.options["gpus-per-node"] == 2
    assert job.variables == {"config": CONFIG, "overrides": ["topology.store=runs/store"], "shards": 3}


def test_a_shard_of_one_task_does_not_start_the_ranks_of_the_topology() -> None:
    (job,) = jobs(kind="score", shards=3)
    assert job.variables["overrides"] == ["topology.placement=stored", "topology.policy=1"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A run of a sweep that has its model, as far as a login node looks."""
    directory = tmp_path / "0-seed=0" / "model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    return str(directory.parent)


def test_evaluations_of_two_models(model: str) -> None:
    (job,) = jobs(model, "Org/Model", kind="eval", suite="smoke")
    assert job.options["array"] == "0-1" and job.options["gpus-per-node"] == 1
    assert job.variables == {
        "models": [model, "Org/Model"],
        "suite": "smoke",
        "out": "runs/eval/smoke",
        "options": [],
        "shards": 2,
    }


def test_an_evaluation_gets_the_options_of_eval(model: str, tmp_path: Path) -> None:
    (tmp_path / "mirror.json").write_text('{"format": 1, "data_sets": {}, "files": {}}')
    more = {"limit": 10, "batch_size": 4, "devices": "cpu", "dtype": "fp32", "chat_template": True, "redo": True}
    (job,) = jobs(model, kind="eval", suite="smoke", offline=str(tmp_path), **more)
    words = f"--offline {tmp_path} --limit 10 --batch-size 4 --dtype fp32 --chat-template --redo --devices cpu"
    assert job.variables["options"] == words.split()
    assert "gpus-per-node" not in job.options, "a CPU is all that it asks for"


@pytest.mark.parametrize(
    ("word", "more", "says"),
    [
        ("runs/nothing/model", {}, "model path 'runs/nothing/model' does not exist"),
        ("a b=Org/Model", {}, "the name of a model is 'a b'; allowed: letters"),
        ("Org/Model", {"offline": "nowhere"}, "there is no mirror in 'nowhere'"),
        ("Org/Model", {"dtype": "fp16"}, "--dtype is 'fp16'; allowed: checkpoint | bf16 | fp32."),
        ("Org/Model", {"limit": 0}, "--limit is 0; allowed: >= 1 document"),
        ("Org/Model", {"devices": "gpu"}, "--devices is 'gpu'; allowed: cpu, or numbers of GPUs, each once"),
        ("Org/Model", {"devices": "1,1"}, "--devices is '1,1'; allowed: cpu, or numbers of GPUs, each once"),
        (
            "Org/Model",
            {"devices": "0,3", "gpus_per_node": 2},
            "--devices is '0,3'; allowed: 0 to 1, the GPUs of a node",
        ),
    ],
)
def test_an_evaluation_that_would_fail_on_every_node_is_refused(word: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs(word, kind="eval", **{"suite": "smoke", **more})
    assert says in str(caught.value)


def test_the_command_line_has_the_options_of_eval(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "slurm", "Org/Model", "--kind", "eval", "--suite", "smoke", "--dtype", "bf16", "--redo"]
    more = ["--batch-size", "8", "--devices", "0,1", "--no-chat-template"]
    assert main([*words, *more, "--site", str(ROOT / "launch/site.yaml"), "--dry-run"]) == 0
    told = "options=(--batch-size 8 --dtype bf16 --no-chat-template --redo --devices 0,1)"
    said = capsys.readouterr().out
    assert told in said
    assert "#SBATCH --gpus-per-node=2" in said, "as many as it names"


def test_where_there_is_no_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"scripts: {tmp_path / 'scripts'}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main(["launch", "slurm", CONFIG, "--site", str(site)]) == 2
    assert "sbatch cannot be run here" in capsys.readouterr().err
    assert len(list((tmp_path / "scripts").glob("mrpo-*.sbatch"))) == 1, "the script is there to be looked at"
