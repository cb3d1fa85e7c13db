"""Version 2 of the leaderboard from a Hub to the table, on rows written here in the data sets' own columns.

It needs the packages of lm_eval[math,ifeval], which `make test-leaderboard` puts beside the others.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from tests.hub_server import Repository, hub
from tests.leaderboard_support import World, environment, run
from tests.support import ROOT, make_model, need

EXTRAS = ROOT / ".cache/leaderboard-v2"
SHOTLESS = ("leaderboard_gpqa", "leaderboard_ifeval", "leaderboard_musr")
PUNKT = """\
import sys
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
text = " ".join(f"Dr. {name} came. He saw it. They left at 5 p.m. sharp." for name in ("Ann", "Bob", "Eve") * 50)
save_punkt_params(PunktTrainer(text).get_params(), dir=sys.argv[1])
"""
"""A table of sentence ends in nltk's own format: the published one is on no package index."""

pytestmark = [pytest.mark.leaderboard, pytest.mark.timeout(3600)]


def ifeval_rows() -> list[dict[str, Any]]:
    empty = {"num_sentences": None, "relation": None}
    kinds = [
        (["punctuation:no_comma"], [empty]),
        (["length_constraints:number_sentences"], [{"num_sentences": 2, "relation": "at least"}]),
        (["change_case:english_lowercase", "punctuation:no_comma"], [empty, empty]),
    ]
    return [
        {"key": number, "prompt": f"Say {number} things of the sea.", "instruction_id_list": names, "kwargs": values}
        for number, (names, values) in enumerate(kinds)
    ]


def math_rows(subject: str) -> list[dict[str, Any]]:
    return [
        {"problem": f"What is {n} + {n}?", "solution": f"It is $\\boxed{{{2 * n}}}$.", "level": level, "type": subject}
        for n, level in ((3, "Level 5"), (4, "Level 3"), (5, "Level 5"))
    ]


def gpqa_rows(kind: str) -> list[dict[str, Any]]:
    wrong = [f"Incorrect Answer {place}" for place in (1, 2, 3)]
    return [
        {"Question": f"{kind}: which is {n}?", "Correct Answer": f"it is {n}", **{key: f"{key} {n}" for key in wrong}}
        for n in range(12)
    ]


def musr_rows(split: str) -> list[dict[str, Any]]:
    names = ["Ann", "Bob", "Eve", "Max", "Zoe"][: {"object_placements": 5, "team_allocation": 3}.get(split, 2)]
    return [
        {"narrative": f"{split} {n}", "question": "Who?", "choices": str(names), "answer_choice": names[n % len(names)]}
        for n in range(4)
    ]


def mmlu_pro_rows(split: str) -> list[dict[str, Any]]:
    options = [f"option {place}" for place in range(10)]
    return [
        {"question": f"{split} question {n}", "options": options, "answer": "ABCDEFGHIJ"[n], "answer_index": n}
        for n in range(6)
    ]


def bbh_rows() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of each task the examples that its YAML has: they are laid out as the data are."""
    from importlib.metadata import distribution

    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(str(distribution("lm_eval").locate_file("lm_eval"))) / "tasks/leaderboard/bbh_mc"
    for path in sorted(folder.glob("[a-z]*.yaml")):
        task = load_yaml(path, resolve_func=False)
        yield task["dataset_name"], task["fewshot_config"]["samples"]


def repository(tables: dict[str, dict[str, list[dict[str, Any]]]]) -> Repository:
    """A data set's files: configuration -> split -> rows."""
    configs, files = [], {}
    for config, splits in tables.items():
        parts = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        configs.append({"config_name": config, "data_files": parts})
        for split, rows in splits.items():
            sink = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
            files[f"{config}/{split}.parquet"] = sink.getvalue()
    files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
    return {"main": files}


def data_sets() -> dict[str, Repository]:
    subjects = ["algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"]
    subjects += ["prealgebra", "precalculus"]
    stories = ("murder_mysteries", "object_placements", "team_allocation")
    kinds = ("gpqa_diamond", "gpqa_extended", "gpqa_main")
    return {
        "wis-k/instruction-following-eval": repository({"default": {"train": ifeval_rows()}}),
        "DigitalLearningGmbH/MATH-lighteval": repository(
            {name: {"train": math_rows(name), "test": math_rows(name)} for name in subjects}
        ),
        "Idavidrein/gpqa": repository({name: {"train": gpqa_rows(name)} for name in kinds}),
        "TAUR-Lab/MuSR": repository({"default": {name: musr_rows(name) for name in stories}}),
        "TIGER-Lab/MMLU-Pro": repository({"default": {name: mmlu_pro_rows(name) for name in ("test", "validation")}}),
        "SaylorTwift/bbh": repository({name: {"test": rows} for name, rows in bbh_rows()}),
    }


@pytest.fixture(scope="module")
def extras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment with which lm-eval's extra packages are found, and nltk's table."""
    need((EXTRAS / ".installed").is_file(), "lm-eval's extra packages (make test-leaderboard)")
    data = tmp_path_factory.mktemp("nltk")
    found = {"PYTHONPATH": str(EXTRAS), "NLTK_DATA": str(data)}
    table = data / "tokenizers/punkt_tab/english"
    table.parent.mkdir(parents=True)
    env = environment(data) | found
    subprocess.run([sys.executable, "-c", PUNKT, str(table)], check=True, env=env, timeout=300)
    return found


@pytest.fixture(scope="module")
def world(extras: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> World:
    """The mirror that eval-prefetch makes of a Hub on this machine, and a tiny model that takes long prompts."""
    world = World(tmp_path_factory.mktemp("v2"))
    world.suite = Path("open_llm_leaderboard_v2")
    world.models = {"tiny": make_model(world.root / "tiny", seed=1)}
    config = world.models["tiny"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}), encoding="utf-8")
    with hub(data_sets()) as address:
        env = environment(world.root / "login") | extras | {"HF_ENDPOINT": address}
        words = ["-m", "mrpo_ds", "eval-prefetch", "--suite", str(world.suite), "--to", str(world.mirror)]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "39 tasks with" in done.stderr
    return world


@pytest.fixture(scope="module")
def swept(world: World, extras: dict[str, str]) -> str:
    return world.sweep("swept", limit=12, **extras)


def test_all_of_it_is_scored(world: World, swept: str) -> None:
    results = world.results("swept")
    assert results["missing"] == []
    (row,) = results["models"]
    assert row["scores"].keys() == {
        *("ifeval_prompt", "ifeval_instruction", "bbh", "math_hard", "gpqa", "musr", "mmlu_pro"),
    }
    assert row["scores"]["math_hard"]["n"] == 7 * 2, "level 5 alone"
    assert row["scores"]["bbh"]["n"] == 24 * 3
    assert 0.0 <= row["average"]["value"] <= 1.0


def test_scores_and_shuffled_answers_are_those_of_plain_lm_eval(
    world: World, swept: str, extras: dict[str, str]
) -> None:
    """GPQA's choices are shuffled while its data load, by the seed of the process."""
    overrides, out = world.root / "overrides", world.root / "plain"
    write_overrides(world, overrides)
    arguments = f"pretrained={world.models['tiny']},softmax_dtype=float32"
    done = run(
        world.root / "other",
        *["lm_eval", "run", "--model", "hf", "--model_args", arguments],
        *["--device", "cpu", "--batch_size", "16", "--limit", "12", "--include_path", str(overrides)],
        *["--tasks", ",".join(SHOTLESS), "--output_path", str(out), "--log_samples"],
        **extras,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = out.rglob("results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"]
    cells = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in world.cells("swept").items()}
    compared = 0
    for name in ("gpqa", "ifeval_prompt", "musr"):
        for leaf, found in cells[f"tiny/{name}"]["computed"].items():
            for key, (value, _) in found["scores"].items():
                assert value == pytest.approx(theirs[leaf][key], abs=1e-6), (leaf, key)
                compared += 1
    assert compared >= 3 + 4 + 3
    hashes = [sample["prompt_hash"] for sample in cells["tiny/gpqa"]["samples"]]
    logged = [path for path in out.rglob("samples_leaderboard_gpqa_*.jsonl")]
    plain = {json.loads(line)["prompt_hash"] for path in logged for line in path.read_text().splitlines()}
    assert len(hashes) == len(plain) == 36 and set(hashes) == plain


def write_overrides(world: World, folder: Path) -> None:
    """The YAMLs with which lm_eval reads the mirror, written here from its own."""
    from importlib.metadata import distribution

    tasks = Path(str(distribution("lm_eval").locate_file("lm_eval"))) / "tasks/leaderboard"
    data = {"gpqa": "Idavidrein/gpqa", "ifeval": "wis-k/instruction-following-eval", "musr": "TAUR-Lab/MuSR"}
    folder.mkdir()
    for name, path in data.items():
        for file in tasks.glob(f"{name}/*.yaml"):
            task = next((line[6:] for line in file.read_text().splitlines() if line.startswith("task: ")), None)
            if task:
                content = {"include": str(file), "task": task, "dataset_path": str(world.mirror / path)}
                (folder / f"{task}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def test_without_the_table_of_sentences_nothing_is_computed(world: World, extras: dict[str, str]) -> None:
    nowhere = world.root / "nowhere"
    nowhere.mkdir()
    more = extras | {"NLTK_DATA": str(nowhere), "HOME": str(nowhere)}
    needs = "leaderboard_ifeval' needs nltk's table of sentence ends, punkt_tab"
    assert needs in world.sweep("refused", code=2, **more, MRPO_DS_CACHE=str(nowhere / "cache"))
    assert not world.cells("refused")
    only = world.root / "only.yaml"  # what it consists of was looked up where the table is
    only.write_text("tasks: [{task: leaderboard_ifeval, shots: 0, metric: prompt_level_strict_acc}]", encoding="utf-8")
    cache = {"MRPO_DS_CACHE": str(world.root / "looked-up")}
    world.sweep("there", "--suite", str(only), limit=1, **extras, **cache)
    said = world.sweep("not-there", "--suite", str(only), code=1, limit=1, **more, **cache)
    assert f"failed: tiny/leaderboard_ifeval: task '{needs}" in said
