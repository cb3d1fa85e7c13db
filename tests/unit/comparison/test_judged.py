"""compare beside a judge: runs that were judged by the real command, their table, and what must not share one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_ds.cli import main
from mrpo_ds.comparison.command import compare
from mrpo_ds.comparison.judged import read_judged
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.benchmarks import OURS
from tests.support import make_model, write_jsonl
from tests.unit.comparison.directories import evaluation, make_run
from tests.unit.judged.loopback import COMPLETION, ok, serving

MARKS = {"dpo": (2, 4, 6, 4), "mrpo": (8, 4, 7, 7)}
"""Two turns each of two questions."""


def table(out: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / f"{name}.json").read_text())["rows"]
    return rows


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with models, and the folder of `mrpo-ds judge mt_bench` over both."""
    root = tmp_path_factory.mktemp("judged")
    for seed, name in enumerate(MARKS):
        run = make_run(root / name, name, 0, [evaluation(0, 0.0), evaluation(4, 0.5)])
        make_model(run / "model", seed=seed)
    content = yaml.safe_load((OURS / "mt_bench.yaml").read_text(encoding="utf-8"))
    content["generation"]["max_new_tokens"] = 4
    (root / "mt_bench.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    rows = [{"question_id": n, "category": "stem", "turns": ["Which colour?", "And then?"]} for n in (1, 2)]
    rows[1]["turns"][0] = "Which number?"
    questions = write_jsonl(root / "q.jsonl", rows)
    answers = [
        ok({**COMPLETION, "choices": [{"message": {"content": f"[[{mark}]]"}, "finish_reason": "stop"}]})
        for marks in MARKS.values()
        for mark in marks
    ]
    with serving(*answers) as (url, seen):
        judge = {"base_url": url, "model": "j", "concurrency": 1, "retries": 0}
        (root / "judge.yaml").write_text(yaml.safe_dump(judge), encoding="utf-8")
        words = ["judge", str(root / "mt_bench.yaml"), str(root / "dpo"), str(root / "mrpo")]
        words += ["--questions", str(questions), "--judge", str(root / "judge.yaml"), "--device", "cpu"]
        assert main([*words, "--out", str(root / "results"), "--resamples", "20"]) == 0
        assert len(seen) == 8
    return root


def test_judged_scores_stand_beside_each_other(judged: Path, tmp_path: Path) -> None:
    """Question 1: 3 and 6; question 2: 5 and 7. The difference is 3 and 2: 2.5, error 0.5."""
    out = tmp_path / "out"
    compare([str(judged / "dpo"), str(judged / "mrpo")], out, results=[str(judged / "results")])
    dpo, mrpo = table(out, "judged")
    assert (dpo["mt_bench (score)"], mrpo["mt_bench (score)"]) == pytest.approx((4.0, 6.5))
    assert mrpo["mt_bench (score) stderr"] == pytest.approx(0.5)
    (paired,) = table(out, "judged_paired")
    assert paired["mt_bench (score)"] == pytest.approx(2.5)
    assert paired["mt_bench (score) stderr"] == pytest.approx(0.5)
    page = (out / "comparison.md").read_text()
    assert "6.500 +- 0.500" in page and "Judge: j." in page
    assert not (out / "benchmarks.json").exists() and not (out / "preferences.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"judge": {"model": "other", "temperature": 0.0, "max_tokens": 9, "logprobs": False}}, "judge is"),
        ({"single_order": True}, "single_order is"),
        ({"benchmark": {"prompts": "other"}}, "benchmark file is"),
    ],
)
def test_scores_of_another_judge_or_benchmark_are_refused(
    judged: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    results = json.loads((judged / "results/results.json").read_text(encoding="utf-8"))
    for name, models in (("a", results["models"][:1]), ("b", results["models"][1:])):
        (tmp_path / name).mkdir()
        settings = results["settings"] | (change if name == "b" else {})
        changed = {**results, "models": models, "settings": settings}
        (tmp_path / name / "results.json").write_text(json.dumps(changed), encoding="utf-8")
    runs = [str(judged / "dpo"), str(judged / "mrpo")]
    with pytest.raises(ConfigError, match=f"cannot be compared: .*{said}"):
        compare(runs, tmp_path / "out", results=[str(tmp_path)])


def test_other_tables_are_left_alone_and_damaged_ones_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"suite": "smoke"}', encoding="utf-8")
    assert read_judged(tmp_path) == []
    (tmp_path / "results.json").write_text('{"kind": "judged"}', encoding="utf-8")
    with pytest.raises(DataError, match="has no 'benchmark': it is no result of `mrpo-ds judge`"):
        read_judged(tmp_path)
