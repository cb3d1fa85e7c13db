"""Offline W&B files of real runs read back, jobs by type, requeues, and samples beside an untouched training."""

import json
import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mrpo_ds.wandb_files import history_in, records_in
from tests.conftest import Run, Runs
from tests.faults.live import OTHER_POLICY, POLICY, Fault, watched
from tests.support import base_config, command_environment, read_metrics, without_clock, write_config
from tests.warm import Warm

TEXTS = ["What is the capital of France?"]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Any]]]:
    """An address that W&B is told to be at, and who has come there."""
    visitors: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def wait() -> None:
            try:
                while True:
                    visitors.append(listener.accept()[1])
            except OSError:  # closed
                return

        threading.Thread(target=wait, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", visitors
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, warm: Warm, server: tuple[str, list[Any]]) -> Iterator[Runs]:
    """Runs without a key whose only way to the network is the server."""
    unset = {name: "" for name in command_environment() if name.startswith("WANDB_")}
    home = str(tmp_path_factory.mktemp("home"))

    def command(*arguments: str, timeout: float = 300, **environment: str) -> Any:
        return warm(*arguments, timeout=timeout, **unset, WANDB_BASE_URL=server[0], HOME=home, **environment)

    runs = Runs(tmp_path_factory.mktemp("wandb"), command)
    yield runs
    runs.close()


def settings(root: Path) -> dict[str, Any]:
    """Two policy ranks with everything sharded, a served reference; an evaluation every 3 of 8 steps."""
    config = base_config(root, references=1)
    sharding = root / "zero3.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    sharding.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    config["deepspeed"] = str(sharding)
    config["topology"] |= {"policy": 2}
    config["train"] |= {"max_steps": 8}
    config["checkpoint"] = {"every_steps": 2, "keep": 2}
    config["evaluate"] = {"every_steps": 3, "samples": {"held_out": 2, "prompts": TEXTS, "max_new_tokens": 10}}
    config["tracking"] = {"plots": False, "wandb": {"mode": "auto", "group": "ablation"}}
    return config


@pytest.fixture(scope="module")
def full(here: Runs) -> Run:
    return here.train("full", settings(here.root))


def logged(run_dir: Path) -> tuple[dict[int, dict[str, Any]], Counter[tuple[str, int]]]:
    """Of all offline files of a run: the values of each step, and how often a kind was logged in a step."""
    values: dict[int, dict[str, Any]] = {}
    times: Counter[tuple[str, int]] = Counter()
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    for file in files:
        for step, row in history_in(file):
            assert not row.keys() & values.get(step, {}).keys() - {
                "train/global_step",
                "_step",
                "_runtime",
                "_timestamp",
            }
            values.setdefault(step, {}).update(row)
            times.update({(name.split("/")[0], step) for name in row if "/" in name and name != "train/global_step"})
    return values, times


def check_equal(rows: list[dict[str, Any]], values: dict[int, dict[str, Any]], kind: str) -> None:
    """Every value of a metrics file is in W&B's, and is the same; null is NaN."""
    for row in rows:
        for name, value in row.items():
            if name == "step":
                continue
            theirs = values[row["step"]][f"{kind}/{name}"]
            assert math.isnan(theirs) if value is None else theirs == value, (row["step"], name)


def runs_in(run_dir: Path) -> list[Any]:
    files = run_dir.glob("wandb/offline-run-*/*.wandb")
    return [record.run for file in files for record in records_in(file) if record.HasField("run")]


# ---- the whole run ---------------------------------------------------------------------------------------------------


def test_every_metric_of_the_run_is_in_the_offline_file_with_its_value(full: Run) -> None:
    values, times = logged(full.directory)
    check_equal(full.metrics, values, "train")
    check_equal(full.evals, values, "eval")
    assert len(full.metrics) == 8 and [row["step"] for row in full.evals] == [0, 3, 6, 8]
    assert {"ref/ref1/idle_fraction", "ref/ref1/memory_gib"} <= full.metrics[0].keys()
    assert {step for kind, step in times if kind == "train"} == set(range(1, 9))
    assert {step for kind, step in times if kind == "eval"} == {0, 3, 6, 8}
    assert {step for kind, step in times if kind == "samples"} == {0, 3, 6, 8}
    assert set(times.values()) == {1}


def test_one_rank_logs_one_run_with_its_group_and_type_and_goes_nowhere(
    full: Run, server: tuple[str, list[Any]]
) -> None:
    (run,) = runs_in(full.directory)
    assert (run.run_group, run.job_type, run.display_name) == ("ablation", "train", "full")
    assert not server[1], "somebody went to the network"
    assert full.process.stderr.count("W&B offline; upload with: wandb sync") == 1
    assert "warning" not in full.process.stderr.lower(), full.process.stderr


def test_the_references_memory_is_their_own(full: Run) -> None:
    for row in full.metrics:
        assert 0 <= row["ref/ref1/idle_fraction"] <= 1
        assert 0 < row["ref/ref1/memory_gib"] != row["perf/memory_gib"]


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_training_with_samples_is_training_without_them(here: Runs, full: Run) -> None:
    config = settings(here.root)
    config["evaluate"]["samples"] = {"held_out": 0}
    without = here.train("without", config)
    assert without_clock(without.metrics) == without_clock(full.metrics)
    assert without.evals == full.evals
    weights = "model/model.safetensors"
    assert (without.directory / weights).read_bytes() == (full.directory / weights).read_bytes()
    assert not (without.directory / "samples.jsonl").exists()


def test_the_last_samples_are_what_the_exported_model_says(full: Run) -> None:
    rows = read_metrics(full.directory, "samples.jsonl")
    assert [(row["step"], row["sample"], row["of"]) for row in rows] == [
        (step, sample, 3) for step in (0, 3, 6, 8) for sample in (1, 2, 3)
    ]
    questions = [json.loads(line)["prompt"] for line in (full.directory.parent / "data" / "eval.jsonl").open()]
    assert [row["prompt"] for row in rows[-3:]] == [*TEXTS, *questions[:2]]
    model = AutoModelForCausalLM.from_pretrained(full.directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(full.directory / "model")
    for row in rows[-3:]:
        turns = [{"role": "user", "content": row["prompt"]}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        made = model.generate(torch.tensor([given]), do_sample=False, max_new_tokens=10)[0, len(given) :].tolist()
        finished = made[-1] == tokenizer.eos_token_id
        assert (row["tokens"], row["finished"]) == (len(made), finished)
        assert row["text"] == tokenizer.decode(made[: len(made) - finished])
    assert len({row["text"] for row in rows}) > 3, "the training changes what is said"


# ---- requeues --------------------------------------------------------------------------------------------------------


def check_continued(run_dir: Path, full: Run) -> None:
    """The resumed run has gone on under the same id, and W&B has each step once, with the values of the full run."""
    found = runs_in(run_dir)
    assert len({run.run_id for run in found}) == 1  # a killed process may have left nothing of its own on the disk
    values, times = logged(run_dir)
    assert set(times.values()) == {1}, [key for key, count in times.items() if count > 1]
    assert {step for kind, step in times if kind == "train"} == set(range(1, 9))
    assert {step for kind, step in times if kind == "eval"} == {0, 3, 6, 8}
    assert {step for kind, step in times if kind == "samples"} == {0, 3, 6, 8}
    check_equal(without_clock(full.metrics), values, "train")
    check_equal(full.evals, values, "eval")
    assert without_clock(read_metrics(run_dir)) == without_clock(full.metrics)
    assert (run_dir / "samples.jsonl").read_bytes() == (full.directory / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        ("preempted", Fault("train", 5, POLICY, "SIGUSR1"), 75),
        pytest.param("killed", Fault("train", 6, POLICY), None, marks=pytest.mark.matrix),
        ("killed-while-sampling", Fault("evaluate", 3, OTHER_POLICY, delay=0.14, pause=0.1), None),
    ],
)
def test_a_requeued_run_continues_the_same_wandb_run_with_no_doubled_step(
    here: Runs, full: Run, name: str, fault: Fault, code: int | None
) -> None:
    config = settings(here.root) | {"output_dir": str(here.root / name)}
    path = write_config(here.root / f"{name}.yaml", config)
    with watched(path, fault) as environment:
        broken = here.command("train", str(path), **environment)
    assert broken.returncode == code if code else -9 in broken.codes, broken.stderr[-3000:]
    again = here.command("train", str(path), "--resume", "auto")
    assert again.returncode == 0, again.stderr[-3000:]
    check_continued(here.root / name, full)


# ---- the score job ---------------------------------------------------------------------------------------------------


def test_score_leaves_a_run_of_its_own_type_in_the_group(here: Runs) -> None:
    config = settings(here.root) | {"output_dir": str(here.root / "scored")}
    config["topology"] |= {"store": str(here.root / "store")}
    done = here.command("score", str(write_config(here.root / "scored.yaml", config)))
    assert done.returncode == 0, done.stderr[-3000:]
    left = [path.name for path in (here.root / "scored").iterdir()]
    assert left == ["logs"], "a training there must find it new"
    (run,) = runs_in(here.root / "scored-score")
    assert (run.run_group, run.job_type, run.display_name) == ("ablation", "score", "scored-score")
    (row,) = logged(here.root / "scored-score")[0].values()
    assert row["score/ref/ref1/rows"] == 50 and row["score/ref/ref1/stored_fraction"] == 0
    assert row["score/ref/ref1/tokens_per_second"] > 0
