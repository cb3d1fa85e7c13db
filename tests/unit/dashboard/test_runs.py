"""Reading runs: whole ones, those that go on, torn ones, and what is none."""

import json

import pytest

from mrpo_ds.dashboard.runs import read_runs
from mrpo_ds.errors import ConfigError, DataError
from tests.unit.dashboard.conftest import row


def test_a_finished_run_has_nothing_to_say_about_itself(write_run):
    (run,) = read_runs([str(write_run("mine"))])
    assert (run.name, run.notes) == ("mine", ())
    assert [one["step"] for one in run.rows["train"]] == list(range(1, 11))
    assert run.setting("references.1.name") == "two"
    assert run.setting("loss.beta") == "0.1"
    assert "train/ref/one/weight" in run.metrics and "eval/loss" in run.metrics


def test_a_run_that_goes_on_says_so(write_run):
    (run,) = read_runs([str(write_run(done=False))])
    (note,) = run.notes
    assert "not at its end (there is no summary.json)" in note and "step 10" in note


def test_a_run_that_was_resumed_after_its_end_is_going_on(write_run):
    directory = write_run()
    (directory / "summary.json").write_text('{"steps": 5}')
    (run,) = read_runs([str(directory)])
    assert "summary.json is of step 5" in run.notes[0]


def test_a_run_before_its_first_step_is_no_error(write_run):
    (run,) = read_runs([str(write_run(train=[], evals=[], done=False))])
    assert run.metrics == []
    assert run.notes == ("metrics.jsonl has no row yet: the run has not finished its first step.",)


def test_a_torn_last_line_is_left_out_and_said(write_run):
    directory = write_run()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    (run,) = read_runs([str(directory)])
    assert len(run.rows["train"]) == 10
    assert run.notes == (
        "The last line of metrics.jsonl is torn (a kill, or a run that is writing it); it is left out.",
    )


@pytest.mark.parametrize("line", ['{"step": 1, "lo', "[1, 2]", '{"loss": 1.0}', '{"step": 1.5}', '{"step": "one"}'])
def test_a_broken_line_before_the_last_is_named(write_run, line):
    directory = write_run()
    path = directory / "metrics.jsonl"
    path.write_text(f"{json.dumps(row(1))}\n{line}\n{json.dumps(row(3))}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2 "):
        read_runs([str(directory)])


def test_losses_that_were_not_finite_are_counted(write_run):
    rows = [row(1), row(2) | {"loss": None}, row(3)]
    (run,) = read_runs([str(write_run(train=rows))])
    assert run.notes == ("In 1 of 3 rows of metrics.jsonl the loss is missing or was not finite.",)
    assert len(run.values("train/loss")) == 2


def test_values_that_are_no_numbers_are_named(write_run):
    (run,) = read_runs([str(write_run(train=[row(1) | {"comment": "hello"}]))])
    assert run.notes == ("metrics.jsonl has values that are no numbers, which are not shown: comment.",)


def test_files_beside_the_metrics_that_are_missing_or_broken_are_said(write_run):
    directory = write_run()
    (directory / "config.yaml").write_text("a: [1, 2\nb: }")
    (directory / "summary.json").write_text("[]")
    notes = read_runs([str(directory)])[0].notes
    assert any(note.startswith("config.yaml cannot be read (") for note in notes)
    assert "summary.json is no JSON object, so it is not shown." in notes
    (directory / "config.yaml").unlink()
    assert "There is no config.yaml, so the settings of the run are not shown." in read_runs([str(directory)])[0].notes


def test_what_is_no_run_directory_is_refused_with_what_would_be_one(write_run, tmp_path):
    write_run("sweep/a")
    write_run("sweep/b")
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "missing", "which is not there"),
        (file, "which is a file"),
        (tmp_path / "empty", "which has no metrics.jsonl, so it is no run directory; give the output_dir"),
        (tmp_path / "sweep", f"there are runs in it: {tmp_path}/sweep/a, {tmp_path}/sweep/b; give those."),
    ):
        with pytest.raises(ConfigError) as caught:
            read_runs([str(path)])
        assert said in str(caught.value) and str(path) in str(caught.value)


def test_a_run_that_is_given_twice_is_refused(write_run, tmp_path):
    directory = write_run()
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(ConfigError, match="give each run once"):
        read_runs([str(directory), str(tmp_path / "link")])


def test_runs_are_told_apart_by_the_shortest_names(write_run):
    directories = [write_run(name) for name in ("a/seed-0", "b/seed-0")]
    assert [run.name for run in read_runs([str(one) for one in directories])] == ["a/seed-0", "b/seed-0"]


def test_scores_of_lm_eval_and_of_preferences_are_found(write_run):
    directory = write_run()
    (directory / "eval" / "deep").mkdir(parents=True)
    results = {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.25}}
    results["gsm8k"] = {"exact_match,strict-match": 0.125, "exact_match_stderr,strict-match": "N/A"}
    content = {"results": results, "n-shot": {"arc": 25}}
    (directory / "eval" / "deep" / "cell.json").write_text(json.dumps(content))
    preferences = {"set": "hh", "model": "mine", "metrics": {"objective/accuracy": {"mean": 0.75, "stderr": None}}}
    (directory / "eval" / "set.json").write_text(json.dumps(preferences))
    (directory / "eval" / "torn.json").write_text('{"results": {')
    (run,) = read_runs([str(directory)])
    assert [(one.task, one.shots, one.metric, one.value, one.stderr) for one in run.scores] == [
        ("arc", 25, "acc", 0.5, 0.01),
        ("arc", 25, "acc_norm", 0.25, None),
        ("gsm8k", None, "exact_match, strict-match", 0.125, None),
        ("hh", None, "objective/accuracy", 0.75, None),
    ]
    assert len(run.notes) == 1 and "eval/torn.json cannot be read" in run.notes[0]


def test_scores_of_a_suite_are_found_with_what_limits_them(write_run):
    directory = write_run()
    folder = directory / "eval" / "smoke"
    (folder / "cells" / "mine").mkdir(parents=True)
    (folder / "cells" / "mine" / "arc.json").write_text("a cell is not looked into")
    results = {
        "suite": "smoke",
        "limit": 8,
        "tasks": [{"title": "arc", "metric": "acc", "shots": 25}, {"title": "mmlu", "metric": "acc", "shots": None}],
        "models": [
            {
                "model": "mine",
                "average": {"value": 0.5, "stderr": 0.02},
                "scores": {"arc": {"value": 0.5, "stderr": 0.01, "n": 8}},
            }
        ],
    }
    (folder / "results.json").write_text(json.dumps(results))
    (run,) = read_runs([str(directory)])
    assert [(one.task, one.shots, one.metric, one.value, one.stderr, one.model) for one in run.scores] == [
        ("arc", 25, "acc", 0.5, 0.01, "mine"),
        ("average", None, "smoke", 0.5, 0.02, "mine"),
    ]
    assert run.notes == ("eval/smoke/results.json is of the first 8 documents of each task only.",)
