"""Sweeps by the real command, without a network: against plain lm_eval, through kills, with what goes wrong.

The tests marked `leaderboard` take a real model and the published rows beside the repository, for minutes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub_server import hub
from tests.leaderboard_support import LIMIT, SUBJECTS, SUITE, World, environment, run
from tests.support import ROOT, base_config, free_port, make_model, need, write_config

ROWS = (ROOT / "../shared/data/eval").resolve()
SMOLLM2 = ROOT / ".cache/models/SmolLM2-135M-Instruct"
CELL_KEYS = {"model", "model_path", "task", "shots", "metric", "filter", "value", "stderr", "n", "samples", "versions"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(tmp_path_factory.mktemp("leaderboard"))


@pytest.fixture(scope="module")
def whole(world: World) -> str:
    """A sweep that nothing happened to. A launcher's variables were left over, as after a training."""
    leaked = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return world.sweep("whole", **leaked, MASTER_PORT=str(free_port()))


def plain_lm_eval(world: World, model: str, tasks: str, *more: str) -> dict[str, Any]:
    """What `lm_eval` itself says of a model on the same local tasks, fp32 log-softmax as ours."""
    overrides = world.root / "overrides"
    write_overrides(world, overrides)
    out = world.root / f"plain-{model}-{tasks.replace(',', '-')}"
    arguments = f"pretrained={world.models[model]},softmax_dtype=float32"
    done = run(
        world.root,
        *["lm_eval", "run", "--model", "hf", "--model_args", arguments, "--device", "cpu", "--batch_size", "16"],
        *["--tasks", tasks, "--include_path", str(overrides), "--output_path", str(out), *more],
        HF_HUB_OFFLINE="1",
        timeout=1800,
    )
    (file,) = out.rglob("results_*.json")
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(file.read_text(encoding="utf-8"))["results"])


def write_overrides(world: World, folder: Path) -> None:
    """The YAMLs with which lm_eval reads the mirror, written here from its own."""
    from importlib.metadata import distribution

    tasks = Path(str(distribution("lm_eval").locate_file("lm_eval"))) / "tasks"
    files = {
        "arc_easy": ("arc/arc_easy.yaml", "allenai/ai2_arc"),
        "arc_challenge": ("arc/arc_challenge.yaml", "allenai/ai2_arc"),
        "hellaswag": ("hellaswag/hellaswag.yaml", "Rowan/hellaswag"),
        "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa/truthful_qa"),
        "winogrande": ("winogrande/default.yaml", "allenai/winogrande"),
        "gsm8k": ("gsm8k/gsm8k.yaml", "openai/gsm8k"),
        "openbookqa": ("openbookqa/openbookqa.yaml", "allenai/openbookqa"),
    }
    files |= {path.stem: (f"mmlu/default/{path.name}", "cais/mmlu") for path in tasks.glob("mmlu/default/mmlu_*.yaml")}
    folder.mkdir(exist_ok=True)
    for name, (file, data) in files.items():
        content = {"include": str(tasks / file), "task": name, "dataset_path": str(world.mirror / data)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


# ---- a tiny model ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_plain_lm_eval(world: World, whole: str) -> None:
    more = ["--num_fewshot", "2", "--limit", str(LIMIT), "--gen_kwargs", "max_gen_toks=8"]
    theirs = plain_lm_eval(world, "base", "arc_easy,mmlu_social_sciences,gsm8k", *more)
    ours = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in world.cells("whole").items()}
    pairs = [("arc_easy", "arc_easy", "acc_norm,none"), ("gsm8k", "gsm8k", "exact_match,strict-match")]
    pairs += [("flexible", "gsm8k", "exact_match,flexible-extract")]
    for column, task, key in pairs:
        cell = ours[f"base/{column}"]
        assert cell["value"] == pytest.approx(theirs[task][key], abs=1e-6)
        metric, filter_name = key.split(",")
        assert cell["stderr"] == pytest.approx(theirs[task][f"{metric}_stderr,{filter_name}"], abs=1e-6)
    subjects = {name: entry for name, entry in theirs.items() if name in ours["base/mmlu"]["computed"]}
    assert len(subjects) == SUBJECTS
    for name, entry in subjects.items():
        found = ours["base/mmlu"]["computed"][name]["scores"]["acc,none"]
        assert found == pytest.approx([entry["acc,none"], entry["acc_stderr,none"]], abs=1e-6)
    mean = sum(entry["acc,none"] for entry in subjects.values()) / SUBJECTS
    assert ours["base/mmlu"]["value"] == pytest.approx(mean, abs=1e-6)


def test_a_cell_has_what_a_comparison_needs(world: World, whole: str) -> None:
    assert len(world.cells("whole")) == 4
    for name, path in world.cells("whole").items():
        cell = json.loads(path.read_text(encoding="utf-8"))
        assert cell.keys() >= CELL_KEYS, name
        assert f"{cell['model']}/{cell['task']}" == name
        assert (cell["limit"], cell["seed"]) == (LIMIT, 1234)
        assert cell["versions"].keys() >= {"lm_eval", "transformers", "torch", "datasets"}
        assert len(cell["samples"]) == cell["n"] == (SUBJECTS * LIMIT if cell["task"] == "mmlu" else LIMIT)
        assert len({sample["doc_id"] for sample in cell["samples"]}) == cell["n"]
        assert all(sample.keys() >= {"doc_id", "prompt_hash", "target_hash", "value"} for sample in cell["samples"])
        mean = sum(sample["value"] for sample in cell["samples"]) / cell["n"]
        assert mean == pytest.approx(cell["value"], abs=1e-6)  # every subject has as many documents here


def test_the_table_is_on_the_console_and_in_three_files(world: World, whole: str) -> None:
    text = (world.root / "whole" / "results.md").read_text(encoding="utf-8")
    assert text in whole
    assert "mmlu (2-shot acc)" in text
    assert "not the figures of the benchmarks" in text
    assert len((world.root / "whole" / "results.csv").read_text(encoding="utf-8").splitlines()) == 1 + 5
    averages = {row["model"]: row["average"]["value"] for row in world.results("whole")["models"]}
    for row in world.results("whole")["models"]:
        counted = [row["scores"][name]["value"] for name in ("arc_easy", "mmlu", "gsm8k")]
        assert averages[row["model"]] == pytest.approx(sum(counted) / 3)
    assert "sweep: " in whole  # the progress of the whole


def kill_at(world: World, out: str, process: subprocess.Popen[bytes], cells: int, patience: float = 300) -> bool:
    """kill -9 as soon as there are so many cells. False if it has ended before."""
    deadline = time.monotonic() + patience
    while len(world.cells(out)) < cells and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)  # unshare and the sweep; its workers are in sessions of their own
    process.wait()
    return killed


def survives_kills(world: World, out: str, kills_at: list[int]) -> None:
    """Kill a sweep with -9 at so many cells each time, and let it end: nothing is written or computed twice."""
    kept: dict[str, tuple[int, int]] = {}
    for cells in [*kills_at, None]:
        if cells is None:
            world.sweep(out)
        else:
            assert kill_at(world, out, world.start(out), cells)
        now = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in world.cells(out).items()}
        assert now.items() >= kept.items(), "a finished cell was written again"
        kept = now
    computed = world.computed(out)
    assert len(computed) == len(set(computed)), "a cell was computed twice"


@pytest.mark.leaderboard
def test_killed_in_the_middle_it_goes_on_and_says_the_same(world: World, whole: str) -> None:
    short = World(world.root)  # the same but for MMLU, whose tables take most of the time
    short.models, short.suite = world.models, world.root / "short.yaml"
    short.suite.write_text("".join(line for line in SUITE.splitlines(True) if "mmlu" not in line), encoding="utf-8")
    survives_kills(short, "killed", [1])
    (row,), (expected,) = short.results("killed")["models"], world.results("whole")["models"]
    assert row["scores"] == {name: score for name, score in expected["scores"].items() if name != "mmlu"}


@pytest.mark.leaderboard
def test_a_failed_cell_does_not_lose_the_others(world: World, whole: str) -> None:
    shutil.copytree(world.root / "whole", world.root / "failing")
    bad = world.root / "bad.yaml"
    lines = [line for line in SUITE.splitlines(keepends=True) if "mmlu" not in line]
    bad.write_text("".join(lines) + "  - {task: arc_easy, name: bad, shots: 1, metric: nonsense}\n", encoding="utf-8")
    said = world.sweep("failing", "--suite", str(bad), code=1)
    assert "failed: base/bad: RuntimeError: no usable score: arc_easy has no 'nonsense,none'; it has acc,none" in said
    assert "1 of 4 cells failed" in said
    assert (world.root / "failing/failures/base/bad.txt").read_text(encoding="utf-8").count("Traceback")
    results = world.results("failing")
    assert results["missing"] == ["base/bad"]
    assert [row["average"] for row in results["models"]] == [None]
    assert results["models"][0]["scores"]["gsm8k"] == world.results("whole")["models"][0]["scores"]["gsm8k"]


@pytest.mark.leaderboard
def test_a_full_disk_costs_the_cells_that_do_not_fit(world: World, whole: str) -> None:
    """92 KiB: room for the log and MMLU's cell or for the small ones, not for all."""
    kept, all_of_mmlu = world.root / "full-kept", world.root / "all_of_mmlu.yaml"
    all_of_mmlu.write_text(
        SUITE.replace("mmlu_social_sciences, name: mmlu", "mmlu").replace("subtasks: 12", "subtasks: 57")
    )
    (world.root / "full").mkdir()
    words = " ".join([sys.executable, "-m", *world.arguments("full", "--suite", str(all_of_mmlu))])
    out = world.root / "full"
    script = f"mount -t tmpfs -o size=92k tmpfs {out} && {words}; code=$?; cp -r {out} {kept}; exit $code"
    cut = ["unshare", "-Urm", "sh", "-c"]
    may = subprocess.run([*cut, "mount -t tmpfs tmpfs /mnt"], capture_output=True)
    need(may.returncode == 0, "leave to mount a tmpfs in a namespace")
    env = environment(world.root)
    done = subprocess.run([*cut, script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode in (1, 2), done.stderr[-4000:]  # 2 when the table has no room either
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    files = {path.name: path for path in (kept / "cells" / "base").iterdir()}
    names = {f"{name}.json" for name in ("arc_easy", "mmlu", "gsm8k", "flexible")}
    assert files and files.keys() < names, "some cells are there, and nothing that is torn"
    for path in files.values():
        assert json.loads(path.read_text(encoding="utf-8"))["samples"]
    for name in names - files.keys():
        assert f"base/{Path(name).stem}" in done.stderr  # in a line "failed: ..."


@pytest.mark.leaderboard
def test_cells_of_other_settings_are_not_mixed_in(world: World, whole: str) -> None:
    said = world.sweep("whole", code=2, limit=2)
    assert "4 cells in" in said and "limit 3 then, 2 now" in said and "--redo" in said
    assert len(world.cells("whole")) == 4


@pytest.mark.leaderboard
def test_another_metric_of_what_is_there_is_not_computed_anew(world: World, whole: str) -> None:
    shutil.copytree(world.root / "whole", world.root / "metric")
    other = world.root / "other.yaml"
    other.write_text(SUITE.replace("acc_norm", "acc").replace("plain", "by_size"), encoding="utf-8")
    before = world.computed("metric")
    world.sweep("metric", "--suite", str(other))
    assert world.computed("metric") == before
    cell = json.loads(world.cells("metric")["base/arc_easy"].read_text(encoding="utf-8"))
    assert (cell["metric"], cell["value"]) == ("acc", cell["computed"]["arc_easy"]["scores"]["acc,none"][0])


def test_the_users_mistakes_are_one_line_and_2(world: World, whole: str) -> None:
    lacking = world.root / "lacking.yaml"
    lacking.write_text("tasks: [{task: hellaswag, metric: acc}]", encoding="utf-8")
    raw = world.root / "raw"
    raw.mkdir()
    (raw / "latest").write_text("global_step3", encoding="utf-8")
    mistakes = [
        (world.arguments("mistakes", "--suite", str(lacking)), "has no data set 'Rowan/hellaswag'"),
        (["mrpo_ds", "eval", str(raw), "--suite", "smoke"], "is a raw ZeRO checkpoint"),
        (world.arguments("mistakes", "--shard", "3/3"), "--shard is '3/3'; allowed: I/N with 0 <= I < N"),
    ]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, world.root, *words) for words, _ in mistakes]
    for done, (_, told) in zip(runs, mistakes, strict=True):
        assert done.result().returncode == 2
        assert told in done.result().stderr
        assert "Traceback" not in done.result().stderr


@pytest.mark.leaderboard
def test_prefetch_makes_a_mirror_of_what_the_hub_has(world: World) -> None:
    data = world.mirror / "allenai/ai2_arc"
    files = {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    files |= {"ARC-Challenge/test-00000-of-00001.parquet": b"another configuration", "loader.py": b"raise SystemExit"}
    target = world.root / "fetched"
    suite = world.root / "arc.yaml"
    suite.write_text("tasks: [{task: arc_easy, shots: 2, metric: acc_norm}]", encoding="utf-8")
    with hub({"allenai/ai2_arc": {"main": files}}) as address:
        env = environment(world.root / "login") | {"HF_ENDPOINT": address}
        words = ["-m", "mrpo_ds", "eval-prefetch", "--suite", str(suite), "--to", str(target)]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((target / "mirror.json").read_text(encoding="utf-8"))
    assert len(record["data_sets"]["allenai/ai2_arc"]["commit"]) == 40
    assert {name.removeprefix("allenai/ai2_arc/") for name in record["files"]} == {
        "README.md",
        "ARC-Easy/test-00000-of-00001.parquet",
        "ARC-Easy/train-00000-of-00001.parquet",
    }
    assert "1 tasks with 20 documents load from" in done.stderr


@pytest.mark.leaderboard
def test_train_ends_with_the_suite_its_configuration_names(world: World) -> None:
    suite = world.root / "after.yaml"
    suite.write_text("tasks: [{task: arc_easy, shots: 2, metric: acc_norm}]", encoding="utf-8")
    config = base_config(world.root / "training", references=1)
    config["topology"]["placement"] = "colocated"
    config["train"]["max_steps"] = 1
    config["evaluate"] |= {"suite": str(suite), "suite_limit": 2, "offline": str(world.mirror)}
    path = write_config(world.root / "training.yaml", config)
    done = run(world.root, "mrpo_ds", "train", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    out = Path(config["output_dir"]) / "eval" / "after"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in results["models"]] == ["run"]
    assert results["models"][0]["scores"]["arc_easy"]["n"] == 2
    assert "| run |" in done.stdout


# ---- a real model on published rows ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> World:
    need(SMOLLM2.is_dir(), "the demo models (make models)")
    if not ROWS.is_dir():
        pytest.skip("the public data is not beside the repository")
    world = World(tmp_path_factory.mktemp("real"))
    world.models = {"smollm2": SMOLLM2}
    made = run(world.root, "mrpo_ds", "eval-mirror", "--from", str(ROWS), "--to", str(world.mirror))
    assert made.returncode == 0, made.stderr
    return world


FIVE = {
    "arc_easy": (25, "acc_norm,none"),
    "winogrande": (5, "acc,none"),
    "hellaswag": (10, "acc_norm,none"),
    "truthfulqa_mc2": (0, "acc,none"),
    "openbookqa": (0, "acc_norm,none"),
    "gsm8k": (5, "exact_match,flexible-extract"),
}


@pytest.mark.leaderboard
@pytest.mark.timeout(3600)
def test_real_scores_are_those_of_plain_lm_eval(real: World) -> None:
    tasks = [
        {"task": task, "shots": shots, "metric": key.split(",")[0], "filter": key.split(",")[1]}
        for task, (shots, key) in FIVE.items()
    ]
    real.suite = real.root / "five.yaml"
    real.suite.write_text(yaml.safe_dump({"tasks": tasks}), encoding="utf-8")
    real.sweep("five", limit=8)
    ours = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in real.cells("five").items()}
    for task, (shots, key) in FIVE.items():
        theirs = plain_lm_eval(real, "smollm2", task, "--num_fewshot", str(shots), "--limit", "8")
        assert ours[f"smollm2/{task}"]["value"] == pytest.approx(theirs[task][key], abs=1e-6), task


@pytest.mark.leaderboard
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["open_llm_leaderboard", "tpo_paper", "mrpo_paper"])
def test_the_suites_run_on_a_real_model(real: World, name: str) -> None:
    real.suite = Path(name)
    said = real.sweep(name, "--batch-size", "4", limit=2)  # 16 long prompts take 18 GiB
    print(said)
    assert real.results(name)["missing"] == []
    cell = json.loads(real.cells(name)["smollm2/mmlu"].read_text(encoding="utf-8"))
    assert len(cell["computed"]) == 57


@pytest.mark.leaderboard
@pytest.mark.timeout(3600)
def test_killed_three_times_it_says_the_same(world: World, whole: str) -> None:
    two = World(world.root)
    two.suite = world.suite
    two.models = world.models | {"mrpo": make_model(world.root / "mrpo", seed=2)}
    two.sweep("untouched")
    survives_kills(two, "thrice", [1, 3, 5])
    assert two.results("thrice") == two.results("untouched")


@pytest.mark.leaderboard
@pytest.mark.timeout(1200)
def test_train_under_a_launcher_ends_with_the_suite(world: World) -> None:
    suite = world.root / "launched.yaml"
    suite.write_text("tasks: [{task: arc_easy, shots: 2, metric: acc_norm}]", encoding="utf-8")
    config = base_config(world.root / "launched", references=1)
    config["train"]["max_steps"] = 1
    config["evaluate"] |= {"suite": str(suite), "suite_limit": 2, "offline": str(world.mirror)}
    path = write_config(world.root / "launched-config.yaml", config)
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    env = environment(world.root)
    words = [sys.executable, "-m", *launcher, "-m", "mrpo_ds", "train", str(path)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((Path(config["output_dir"]) / "eval/launched/results.json").read_text(encoding="utf-8"))
    assert results["missing"] == []
