"""compare over run directories: numbers by hand, and everything that must not stand in one table."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds.comparison.command import compare
from mrpo_ds.comparison.held_out import curves
from mrpo_ds.comparison.methods import methods_of
from mrpo_ds.comparison.runs import read_runs
from mrpo_ds.errors import ConfigError, DataError
from tests.unit.comparison.directories import evaluation, make_run, put_cell

PNG = b"\x89PNG\r\n\x1a\n"


def table(out: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / f"{name}.json").read_text())["rows"]
    return rows


@pytest.fixture
def four(tmp_path: Path) -> list[str]:
    """Two methods of two seeds each."""
    numbers = {("dpo", 0): 0.5, ("dpo", 1): 0.7, ("mrpo", 0): 0.8, ("mrpo", 1): 0.9}
    runs = []
    for (loss, seed), accuracy in numbers.items():
        ties = 1.0 if loss == "dpo" else 0.0
        evals = [evaluation(0, 0.0, ties=ties), evaluation(4, 0.5, 0.1), evaluation(8, accuracy, 2 * accuracy)]
        runs.append(str(make_run(tmp_path / f"{loss}-{seed}", loss, seed, evals)))
    return runs


def test_seeds_become_a_mean_and_a_standard_deviation(four: list[str], tmp_path: Path) -> None:
    """0.5 and 0.7: mean 0.6, std sqrt(0.02); 0.8 and 0.9: 0.85, sqrt(0.005); d = 0.25 / sqrt(0.0125)."""
    out = tmp_path / "out"
    compare(four, out)
    base, dpo, mrpo = table(out, "held_out")
    assert (base["method"], base["accuracy"], base["log-prob accuracy"]) == ("base", None, 0.5)
    assert (dpo["method"], dpo["seeds"], dpo["step"]) == ("dpo", "0, 1", 8)
    assert (dpo["accuracy"], dpo["accuracy std"]) == pytest.approx((0.6, math.sqrt(0.02)))
    assert (mrpo["accuracy"], mrpo["accuracy std"]) == pytest.approx((0.85, math.sqrt(0.005)))
    assert mrpo["d of accuracy"] == pytest.approx(0.25 / math.sqrt(0.0125)) and dpo["d of accuracy"] is None
    assert "**85.0 +- 7.1**" in (out / "comparison.md").read_text()
    for name in ("accuracy", "margin"):
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(PNG)
    assert {path.suffix for path in out.glob("held_out.*")} == {".md", ".csv", ".json", ".tex"}


def test_curves_begin_where_rewards_are_more_than_rounding(four: list[str]) -> None:
    """DPO starts at its reference; MRPO does not, if it has a second one."""
    methods = methods_of(read_runs(four))
    assert [curve.steps for curve in curves(methods, "rewards/margins")] == [[0, 4, 8], [0, 4, 8]]
    assert [curve.steps for curve in curves(methods, "rewards/accuracies")] == [[4, 8], [4, 8]], "one reference each"
    second = [{"name": "one", "path": "models/base"}, {"name": "two", "path": "other"}]
    for method in methods:
        for run in method.runs:
            run.config["references"] = second
    assert [curve.steps for curve in curves(methods, "rewards/accuracies")] == [[4, 8], [0, 4, 8]]
    spreads = curves(methods, "rewards/accuracies")[0].spreads
    assert (spreads[1].mean, spreads[1].std) == pytest.approx((0.6, math.sqrt(0.02)))


def test_the_baseline_can_be_any_run(four: list[str], tmp_path: Path) -> None:
    compare(four, tmp_path / "out", baseline=four[3])
    effects = [row["d of accuracy"] for row in table(tmp_path / "out", "held_out")]
    assert effects == [None, pytest.approx(-0.25 / math.sqrt(0.0125)), None]
    with pytest.raises(ConfigError, match="--baseline is 'elsewhere'; allowed: one of the runs"):
        compare(four, tmp_path / "out", baseline="elsewhere")


def test_settings_that_change_numbers_make_methods_and_are_listed(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", evals=[evaluation(8, 0.5)])
    same = make_run(tmp_path / "b", seed=1, evals=[evaluation(8, 0.5)], model={"attention": "eager"},
                    train={"seed": 1, "micro_batch_size": 2})  # fmt: skip
    other = make_run(tmp_path / "c", evals=[evaluation(8, 0.5)], train={"learning_rate": 2e-6})
    compare([str(run) for run in (one, same, other)], tmp_path / "out")
    methods = [row["method"] for row in table(tmp_path / "out", "held_out")]
    assert methods == ["dpo train.learning_rate=1e-06", "dpo train.learning_rate=2e-06"]
    (difference,) = table(tmp_path / "out", "settings")
    assert list(difference.values()) == ["train.learning_rate", "1e-06", "2e-06"]


def test_the_same_seed_twice_is_no_second_sample(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, evals=[evaluation(8, 0.5)])) for name in "ab"]
    with pytest.raises(ConfigError, match=r"same train.seed \(0\), so they are one sample"):
        compare(runs, tmp_path / "out")
    with pytest.raises(ConfigError, match="every run once"):
        compare([runs[0], f"{runs[0]}/../a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_held_out_rows_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / loss, loss, evals=[evaluation(8, 0.5)]) for loss in ("dpo", "mrpo")]
    (runs[1] / "summary.json").write_text('{"rows": {"train": "40 rows, SHA-256 aa", "eval": "9 rows, SHA-256 cc"}}')
    with pytest.raises(ConfigError, match="10 rows, SHA-256 bb, .* are 9 rows, SHA-256 cc: .*eval-preferences"):
        compare([str(run) for run in runs], tmp_path / "out")


def test_seeds_that_ended_at_different_steps_are_refused(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / f"s{seed}", seed=seed, evals=[evaluation(8 - seed, 0.5)])) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="s0' at step 8, .*s1' at step 7. Finish them with --resume auto"):
        compare(runs, tmp_path / "out")


def test_a_run_that_is_not_finished_is_shown_and_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / loss, loss, evals=[evaluation(8, 0.5)]) for loss in ("dpo", "mrpo")]
    (runs[1] / "summary.json").unlink()
    compare([str(run) for run in runs], tmp_path / "out")
    assert [row["finished"] for row in table(tmp_path / "out", "runs")] == ["yes", "no, step 8"]
    assert f"{runs[1]} is not finished" in (tmp_path / "out" / "held_out.md").read_text()


def test_directories_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory: there is no such directory"):
        compare([str(tmp_path / "nowhere")], tmp_path / "out")
    with pytest.raises(ConfigError, match="it has no config.yaml; allowed"):
        compare([str(tmp_path)], tmp_path / "out")
    empty = make_run(tmp_path / "empty")
    with pytest.raises(DataError, match="has nothing to compare: evals.jsonl has no rows"):
        compare([str(empty)], tmp_path / "out")
    (empty / "evals.jsonl").unlink()
    with pytest.raises(DataError, match="has nothing to compare"):
        compare([str(empty)], tmp_path / "out")


def test_torn_and_damaged_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evals=[evaluation(0, 0.4), evaluation(8, 0.5)])
    path = run / "evals.jsonl"
    with path.open("a") as file:
        file.write('{"step": 16, "rew')
    compare([str(run)], tmp_path / "out")
    assert table(tmp_path / "out", "held_out")[1]["step"] == 8, "a kill tears the last line, and it is left out"
    path.write_text('{"step": 0, "rew\n' + path.read_text())
    with pytest.raises(DataError, match=r"evals.jsonl line 1 cannot be read: .*Remove that line"):
        compare([str(run)], tmp_path / "out")
    path.write_text('{"loss": 1.0}\n')
    with pytest.raises(DataError, match="row 1 has no step"):
        compare([str(run)], tmp_path / "out")
    (run / "summary.json").write_text('{"rows": ')
    path.write_text('{"step": 1, "rewards/accuracies": 0.5}\n')
    with pytest.raises(DataError, match="summary.json cannot be read"):
        compare([str(run)], tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evals=[evaluation(8, 0.5)])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory; make room or choose another"):
        compare([str(run)], tmp_path / "file" / "out")


# ---- document by document --------------------------------------------------------------------------------------------


def two(root: Path, dpo: list[Any], mrpo: list[Any], **changes: Any) -> list[str]:
    """A run of each method with a cell; changes: of the second's."""
    runs = [make_run(root / loss, loss) for loss in ("dpo", "mrpo")]
    put_cell(runs[0], dpo)
    put_cell(runs[1], mrpo, **changes)
    return [str(run) for run in runs]


def test_paired_difference_on_the_same_documents(tmp_path: Path) -> None:
    """Differences 1, 0, 0, -1, of which the error is sqrt(2 / 3) / 2; and the base, 0 -1 -1 0 with 0.2887."""
    runs = two(tmp_path, [0, 1, 0, 1], [1, 1, 0, 0])
    put_cell(Path(runs[0]), [0, 0, 0, 0], "base")
    compare(runs, tmp_path / "out")
    key = "arc_easy (acc, 0-shot)"
    base, mrpo = table(tmp_path / "out", "benchmarks_paired")
    assert mrpo["method"] == "mrpo" and mrpo[key] == 0
    assert mrpo[f"{key} stderr"] == pytest.approx(math.sqrt(2 / 3) / 2)
    assert base["method"] == "base" and base[key] == -0.5 and base[f"{key} stderr"] == pytest.approx(1 / math.sqrt(12))
    rows = table(tmp_path / "out", "benchmarks")
    assert [(row["method"], row[key], row[f"{key} stderr"]) for row in rows] == [
        ("base", 0, 0.1), ("dpo", 0.5, 0.1), ("mrpo", 0.5, 0.1),
    ]  # fmt: skip
    assert (tmp_path / "out" / "plots" / "benchmarks.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "out" / "plots" / "accuracy.png").exists(), "these runs evaluated nothing while training"


def test_documents_are_averaged_over_seeds_before_they_are_paired(tmp_path: Path) -> None:
    """dpo 0 1 0 1; mrpo's seeds 1 1 0 0 and 1 1 1 0, so 1 1 0.5 0: differences 1 0 0.5 -1 with mean 0.125."""
    runs = two(tmp_path, [0, 1, 0, 1], [1, 1, 0, 0])
    more = make_run(tmp_path / "mrpo-1", "mrpo", seed=1)
    put_cell(more, [1, 1, 1, 0])
    compare([*runs, str(more)], tmp_path / "out")
    key = "arc_easy (acc, 0-shot)"
    (mrpo,) = table(tmp_path / "out", "benchmarks_paired")
    squares = 0.875**2 + 0.125**2 + 0.375**2 + 1.125**2
    assert (mrpo[key], mrpo[f"{key} stderr"]) == pytest.approx((0.125, math.sqrt(squares / 3) / 2))
    seeds = table(tmp_path / "out", "benchmarks_seeds")
    assert (seeds[1][key], seeds[1][f"{key} std"]) == pytest.approx((0.625, math.sqrt(2 * 0.125**2)))
    assert seeds[1][f"d of {key}"] is None, "the baseline has one seed"


def test_a_value_over_something_else_than_documents_is_said_beside_its_difference(tmp_path: Path) -> None:
    """As IFEval's of instructions, 0.9 of them: by prompts 0.5 and 1 against 0 and 0.5."""
    runs = two(tmp_path, [0, 0.5], [0.5, 1], value=0.9)
    compare(runs, tmp_path / "out")
    (row,) = table(tmp_path / "out", "benchmarks_paired")
    assert row["arc_easy (acc, 0-shot)"] == 0.5
    page = (tmp_path / "out" / "benchmarks_paired.md").read_text()
    assert "arc_easy (acc, 0-shot): the value is no mean over documents" in page and "each document (prompt)" in page
    put_cell(Path(runs[1]), [0.5, 1])
    compare(runs, tmp_path / "out")
    assert "no mean over documents" not in (tmp_path / "out" / "benchmarks_paired.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 4}, "limit is None and 4"),
        ({"versions": {"lm_eval": "0.4.12"}}, "versions.lm_eval is '0.4.13' and '0.4.12'"),
        ({"seed": 1}, "seed is 1234 and 1"),
        ({"settings": {"data": "other", "weights": "any"}}, "data is None and 'other'"),
    ],
)
def test_results_of_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    runs = two(tmp_path, [0, 1], [1, 1], **changes)
    with pytest.raises(ConfigError, match=f"cannot be compared: {said}. Evaluate both again"):
        compare(runs, tmp_path / "out")


def test_other_prompts_and_other_documents_are_refused(tmp_path: Path) -> None:
    samples = [{"doc_id": number, "prompt_hash": f"p{number}", "target_hash": "t", "value": 1} for number in range(3)]
    samples[1]["prompt_hash"] = "with a chat template"
    runs = two(tmp_path, [0, 1, 0], [1, 1, 1], samples=samples)
    with pytest.raises(ConfigError, match=r"1 of 3 documents have another prompt or target \(first: 1\)"):
        compare(runs, tmp_path / "out")
    put_cell(Path(runs[1]), [1, 1, None])
    with pytest.raises(ConfigError, match=r"1 documents are in one of them only \(first: 2\)"):
        compare(runs, tmp_path / "out")


def test_tasks_that_a_run_lacks_are_shown_as_missing(tmp_path: Path) -> None:
    runs = two(tmp_path, [0, 1], [1, 1])
    for run, values in zip(runs, ([0, 0], [1, 0]), strict=True):
        put_cell(Path(run), values, task="hellaswag", metric="acc_norm", shots=10)
    put_cell(Path(runs[0]), [1, 1], task="gsm8k", metric="exact_match", filter="strict-match", shots=5)
    compare(runs, tmp_path / "out")
    dpo, mrpo = table(tmp_path / "out", "benchmarks")
    assert dpo["gsm8k (exact_match strict-match, 5-shot)"] == 1
    assert mrpo["gsm8k (exact_match strict-match, 5-shot)"] is None
    assert not [key for key in dpo if "average" in key], "no suite is known"


def test_results_may_lie_elsewhere_and_only_once(tmp_path: Path) -> None:
    runs = two(tmp_path, [0, 1], [1, 1])
    (Path(runs[1]) / "eval").rename(tmp_path / "suite")
    with pytest.raises(DataError, match="mrpo' has nothing to compare"):
        compare(runs, tmp_path / "out")
    compare(runs, tmp_path / "out", results=[str(tmp_path / "suite")])
    assert [row["method"] for row in table(tmp_path / "out", "benchmarks")] == ["dpo", "mrpo"]
    put_cell(Path(runs[1]), [1, 0])
    with pytest.raises(DataError, match=r"model of the run .* two results of arc_easy \(acc, 0-shot\): .*keep the one"):
        compare(runs, tmp_path / "out", results=[str(tmp_path / "suite")])
    with pytest.raises(ConfigError, match="--results is 'nowhere'; allowed: a folder"):
        compare(runs, tmp_path / "out", results=["nowhere"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"model": ', "cannot be read"),
        ("[]", "is no JSON object"),
        ('{"model": "x"}', "has no 'model_path': it is no result of `mrpo-ds eval`"),
    ],
)
def test_a_damaged_cell_is_named(tmp_path: Path, content: str, said: str) -> None:
    runs = two(tmp_path, [0, 1], [1, 1])
    path = put_cell(Path(runs[0]), [1, 1], task="other")
    path.write_text(content)
    with pytest.raises(DataError, match=f"other.json.* ?{said}"):
        compare(runs, tmp_path / "out")


def test_a_cell_without_a_number_or_with_half_documents_is_named(tmp_path: Path) -> None:
    runs = two(tmp_path, [0, 1], [1, 1], value=None)
    with pytest.raises(DataError, match="value is None; allowed: a number"):
        compare(runs, tmp_path / "out")
    put_cell(Path(runs[1]), [1, 1], samples=[{"doc_id": 0, "value": 1}])
    with pytest.raises(DataError, match="has a document without 'prompt_hash'"):
        compare(runs, tmp_path / "out")


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def test_tables_go_to_wandb_where_the_baseline_run_used_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracked = {"wandb": {"mode": "auto", "project": "mrpo-ds", "entity": None, "group": None}}
    run = make_run(tmp_path / "run", evals=[evaluation(0, 0.4), evaluation(8, 0.5)], tracking=tracked)
    compare([str(run)], tmp_path / "out")
    (logged,) = (tmp_path / "out" / "wandb").glob("offline-run-*/files/media/table/held_out_*.table.json")
    content = json.loads(logged.read_text())
    assert content["columns"] == list(table(tmp_path / "out", "held_out")[0])
    assert content["data"][1][3:5] == [0.5, None]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    compare([str(run)], tmp_path / "quiet")
    assert not (tmp_path / "quiet" / "wandb").exists()
