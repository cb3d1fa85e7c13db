"""Suites: those of the repository say what their leaderboards say, and a mistake in one is told with its key."""

from pathlib import Path

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.suites import OURS, Call, load_suite

SUITES = sorted(path.stem for path in OURS.glob("*.yaml"))
V1 = {
    "arc_challenge": (25, "acc_norm", "none"),
    "hellaswag": (10, "acc_norm", "none"),
    "mmlu": (5, "acc", "none"),
    "truthfulqa_mc2": (0, "acc", "none"),
    "winogrande": (5, "acc", "none"),
    "gsm8k": (5, "exact_match", "strict-match"),
}
MINE = """\
description: two of mine
tasks:
  - {task: arc_easy, shots: 3, metric: acc}
  - {task: gsm8k, metric: exact_match, filter: strict-match}
"""


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_suites_of_the_issue_are_there():
    assert SUITES == ["mrpo_paper", "open_llm_leaderboard", "open_llm_leaderboard_v2", "smoke", "tpo_paper"]


def test_version_1_has_the_shots_and_metrics_of_its_leaderboard():
    suite = load_suite("open_llm_leaderboard")
    counted = {task.task: (task.shots, task.metric, task.filter) for task in suite.tasks if task.weight}
    assert counted == V1
    mmlu = next(task for task in suite.tasks if task.task == "mmlu")
    assert (mmlu.subtasks, mmlu.group_mean) == (57, "plain")
    assert [task.title for task in suite.tasks if not task.weight] == ["gsm8k_flexible"]


def test_strict_and_flexible_are_one_call():
    calls = load_suite("open_llm_leaderboard").calls()
    assert len(calls) == 6
    assert [column.title for column in calls[Call("gsm8k", 5, None)]] == ["gsm8k", "gsm8k_flexible"]


def test_the_papers_tasks():
    mrpo = {task.task for task in load_suite("mrpo_paper").tasks}
    assert mrpo == {"gsm8k", "truthfulqa_mc2", "hellaswag", "mmlu", "arc_easy", "winogrande"}
    tpo = load_suite("tpo_paper").tasks
    assert [task.title for task in tpo if not task.weight] == ["bb_causal", "bb_sports", "bb_formal", "openbookqa"]
    assert {task.title for task in tpo if task.weight} == {
        "arc_challenge",
        "truthfulqa_mc2",
        "winogrande",
        "hellaswag",
        "mmlu",
    }


def test_version_2_maps_guessing_to_0():
    tasks = {task.title: task for task in load_suite("open_llm_leaderboard_v2").tasks}
    assert sum(task.weight for task in tasks.values()) == 6
    assert len(tasks["bbh"].baselines) == tasks["bbh"].subtasks == 24
    assert tasks["bbh"].chance("leaderboard_bbh_geometric_shapes") == pytest.approx(1 / 11)
    assert tasks["gpqa"].chance() == 0.25
    assert tasks["mmlu_pro"].chance() == 0.1
    assert not tasks["ifeval_prompt"].is_normalized


def test_a_suite_of_ones_own_is_a_few_lines(tmp_path):
    suite = load_suite(write(tmp_path / "mine.yaml", MINE))
    assert [(task.task, task.shots) for task in suite.tasks] == [("arc_easy", 3), ("gsm8k", None)]


def test_tasks_of_ones_own_are_found_beside_the_suite(tmp_path):
    (tmp_path / "tasks").mkdir()
    suite = load_suite(write(tmp_path / "mine.yaml", "task_dir: tasks\n" + MINE))
    assert suite.task_dir == str((tmp_path / "tasks").resolve())


FAULTS = [
    ("tasks: []", "tasks is []; allowed: at least one task."),
    ("tasks: [{task: a}]", "metric"),
    ("tasks: [{task: a, metric: acc, shot: 3}]", "did you mean 'shots'?"),
    ("tasks: [{task: a, metric: acc, shots: -1}]", "tasks[a].shots is -1; allowed: >= 0, or null."),
    ("tasks: [{task: a, metric: acc, shots: many}]", "shots is 'many'; allowed: a whole number or null."),
    ("tasks: [{task: a, metric: acc, weight: -1}]", "tasks[a].weight is -1"),
    ("tasks: [{task: a, metric: acc, weight: 0}]", "one that counts in the average"),
    ("tasks: [{task: a, metric: acc, name: a/b}]", "tasks[a/b].name is 'a/b'; allowed: letters, digits"),
    ("tasks: [{task: a, metric: acc, name: ..}]", "tasks[..].name is '..'"),
    ("tasks: [{task: a, metric: acc, group_mean: median}]", "allowed: by_size | plain."),
    ("tasks: [{task: a, metric: acc, baseline: 1}]", "tasks[a].baseline is '1'; allowed: 0 <= value < 1"),
    ("tasks: [{task: a, metric: acc, baseline: 1/0}]", "tasks[a].baseline is '1/0'"),
    ("tasks: [{task: a, metric: acc, subtasks: 2, baselines: {b: 1/2}}]", "allowed: one for each of 2."),
    ("tasks: [{task: a, metric: acc, max_new_tokens: 0}]", "tasks[a].max_new_tokens is 0"),
    (
        "tasks: [{task: a, metric: acc}, {task: a, metric: acc_norm}]",
        "allowed: every name once. Give one of them a `name`",
    ),
    ("task_dir: nowhere\n" + MINE, "task_dir is 'nowhere'; allowed: a folder beside the suite's file."),
    ("tasks: [", "cannot be read"),
]


@pytest.mark.parametrize(("text", "told"), FAULTS, ids=[told for _, told in FAULTS])
def test_a_mistake_is_told_with_file_key_and_what_is_allowed(tmp_path, text, told):
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_suite(path)
    assert told in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="mrpo_paper, open_llm_leaderboard, open_llm_leaderboard_v2, smoke"):
        load_suite("open_llm")


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"suite 'nowhere.yaml' does not exist; see eval/suites"):
        load_suite("nowhere.yaml")
