"""The tasks of the lm-eval that is installed: what names stand for, and that no group shrinks unseen."""

import random
from pathlib import Path

import pytest
import yaml

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.suites import OURS, load_suite
from mrpo_ds.leaderboard.tasks import (
    Leaf,
    Resolved,
    as_record,
    check_imports,
    check_loaded,
    files_digest,
    from_record,
    load_tasks,
    make_manager,
    resolve_in,
    resolve_suite,
    write_overrides,
)


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resolved]:
    """What every task of every suite of the repository stands for, and a task of one's own."""
    root = tmp_path_factory.mktemp("suite")
    tasks = {}
    for path in sorted(OURS.glob("*.yaml")):
        for task in yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]:
            tasks.setdefault(task["task"], task | {"name": task["task"]})
    (root / "tasks").mkdir()
    own = {"task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "x.jsonl"}}}
    (root / "tasks" / "mine.yaml").write_text(
        yaml.safe_dump(own | {"output_type": "multiple_choice"}), encoding="utf-8"
    )
    suite = {"task_dir": "tasks", "tasks": [*tasks.values(), {"task": "mine", "metric": "acc"}]}
    (root / "all.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    return {one.task: one for one in resolve_suite(load_suite(str(root / "all.yaml")))}


def test_mmlu_is_57_tasks_and_one_data_set(resolved):
    leaves = resolved["mmlu"].leaves
    assert len(leaves) == len({leaf.data_config for leaf in leaves}) == 57
    assert {leaf.data_path for leaf in leaves} == {"cais/mmlu"}


def test_tasks_of_ones_own_need_no_hub(resolved):
    assert resolved["mine"].data == []
    assert resolved["mine"].leaves[0].is_local


def test_a_package_that_a_tasks_code_lacks_is_named(resolved, tmp_path):
    check_imports([resolved["hellaswag"], resolved["winogrande"]])
    (tmp_path / "utils.py").write_text("import math_verify.nowhere\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("task: own\nprocess_docs: !function utils.process\n", encoding="utf-8")
    own = Leaf("own", str(tmp_path / "own.yaml"), None, None, False)
    with pytest.raises(ConfigError, match=r"task 'own' needs the package 'math_verify': pip install 'math-verify"):
        check_imports([Resolved("own", [own], [str(tmp_path)])])


def test_a_record_is_the_same_again(resolved):
    assert from_record(as_record(resolved["mmlu"])) == resolved["mmlu"]


def test_the_small_index_knows_the_whole_group(resolved):
    index = make_manager(resolved["mmlu"], None).task_index
    assert {leaf.name for leaf in resolved["mmlu"].leaves} <= set(index)
    assert "hellaswag" not in index


def members(manager: object, name: str) -> list[str]:
    entry = manager.task_index[name]  # type: ignore[attr-defined]
    if entry.kind.name == "TASK":
        return [name]
    children = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg["task"]
    return [leaf for child in children for leaf in members(manager, child)]


def test_with_every_leaf_overridden_the_group_stays_whole(resolved, tmp_path):
    mmlu = resolved["mmlu"]
    write_overrides([mmlu], Path("/data/mirror"), tmp_path)
    assert len(list(tmp_path.glob("*.yaml"))) == 57
    manager = make_manager(mmlu, str(tmp_path))
    check_loaded(mmlu, members(manager, "mmlu"))
    assert manager.task_index["mmlu_anatomy"].cfg["dataset_path"] == "/data/mirror/cais/mmlu"


def test_with_some_leaves_overridden_the_group_shrinks_and_that_is_an_error(resolved, tmp_path):
    """What happens to who overrides two subjects by hand: lm-eval's tag is replaced, and says nothing."""
    mmlu = resolved["mmlu"]
    few = [leaf for leaf in mmlu.leaves if leaf.name in ("mmlu_anatomy", "mmlu_astronomy")]
    write_overrides([Resolved("mmlu", few, mmlu.folders)], Path("/data/mirror"), tmp_path)
    found = members(make_manager(mmlu, str(tmp_path)), "mmlu")
    assert len(found) < 57
    with pytest.raises(ConfigError, match=r"loads \d+ tasks for 'mmlu' instead of 57; lacking: mmlu_"):
        check_loaded(mmlu, found)


WRONG = {
    "{task: arc_chalenge, metric: acc}": "'arc_chalenge', which lm-eval does not have; did you mean arc_challenge",
    "{task: mmlu, metric: acc, subtasks: 56}": "'mmlu' has 57 subtasks in the lm-eval that is installed",
    "{task: mmlu, metric: acc}": "and the suite says 1",
    "{task: truthfulqa_mc2, metric: acc, shots: 5}": "0 or null: lm-eval fixes truthfulqa_mc2 at 0 shots",
    "{task: arc_easy, metric: acc, subtasks: 1, baselines: {arc: 1/4}}": "allowed: subtasks of the group",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_lm_eval_would_ignore_or_misread_is_an_error(resolved, tmp_path, line):
    index = {}  # the index of all takes seconds: that of the parts is enough
    for name in ("mmlu", "truthfulqa_mc2", "arc_easy"):
        index |= make_manager(resolved[name], None).task_index
    (tmp_path / "wrong.yaml").write_text(f"tasks: [{line}]", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve_in(index, load_suite(str(tmp_path / "wrong.yaml")))
    assert WRONG[line] in str(caught.value)


def test_the_digest_of_own_tasks_changes_with_them(tmp_path):
    assert files_digest(None) is None
    (tmp_path / "a.yaml").write_text("task: a", encoding="utf-8")
    before = files_digest(str(tmp_path))
    (tmp_path / "a.yaml").write_text("task: b", encoding="utf-8")
    assert files_digest(str(tmp_path)) != before


def own_suite(root: Path, name: str, **more: object) -> Resolved:
    """Two tasks with the tag `both`, in a folder each, with rows of their own."""
    from lm_eval.tasks import TaskManager

    for folder in ("one", "two"):
        (root / folder).mkdir()
        rows = "".join(f'{{"q": "{folder} {number}", "choices": ["a", "b"], "gold": 0}}\n' for number in range(20))
        (root / folder / "rows.jsonl").write_text(rows, encoding="utf-8")
        task = {"task": folder, "tag": "both", "output_type": "multiple_choice", "doc_to_text": "q"}
        task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": f"{root / folder}/rows.jsonl"}}}
        task |= {"test_split": "test", "doc_to_choice": "choices", "doc_to_target": "gold"}
        (root / folder / "task.yaml").write_text(yaml.safe_dump(task | more), encoding="utf-8")
    subtasks = {"both": 2}.get(name, 1)
    (root / "own.yaml").write_text(f"tasks: [{{task: {name}, metric: acc, subtasks: {subtasks}}}]", encoding="utf-8")
    index = TaskManager(include_defaults=False, include_path=str(root)).task_index
    (resolved,) = resolve_in(index, load_suite(str(root / "own.yaml")))
    return resolved


def test_a_tag_whose_members_lie_in_several_folders_is_whole(tmp_path):
    assert load_tasks(own_suite(tmp_path, "both"), None).documents == {"one": 20, "two": 20}


def test_answers_that_are_shuffled_while_they_load_are_those_of_lm_evals_seed(tmp_path):
    code = "import random\ndef mix(data):\n    return data.map(lambda row: {'mixed': random.random()})\n"
    resolved = own_suite(tmp_path, "one")
    (tmp_path / "one/utils.py").write_text(code, encoding="utf-8")
    yaml_file = tmp_path / "one/task.yaml"
    yaml_file.write_text(
        yaml_file.read_text(encoding="utf-8") + "process_docs: !function utils.mix\n", encoding="utf-8"
    )
    random.seed(0)
    expected = [random.random() for _ in range(20)]
    for _ in range(2):
        random.seed(7)
        (task,) = load_tasks(resolved, None).tasks
        assert [row["mixed"] for row in task.eval_docs] == expected


def test_a_table_of_sentences_that_is_not_there_is_told_before_anything_is_generated(resolved, tmp_path, monkeypatch):
    nltk = tmp_path / "modules/nltk"
    nltk.mkdir(parents=True)
    find = "class data:\n    @staticmethod\n    def find(name):\n        raise LookupError(name)\n"
    (nltk / "__init__.py").write_text(find, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "utils.py").write_text("NEEDED = 'tokenizers/punkt_tab'\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("task: own\n", encoding="utf-8")
    own = Leaf("own", str(tmp_path / "own.yaml"), None, None, False)
    with pytest.raises(ConfigError, match="task 'own' needs nltk's table of sentence ends, punkt_tab"):
        check_imports([Resolved("own", [own], [str(tmp_path)])])
