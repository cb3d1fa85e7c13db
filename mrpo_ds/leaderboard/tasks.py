"""The tasks of lm-eval: what a name of a suite stands for, and how its data are read from a mirror.

lm-eval loads fewer tasks than a group names without a word: a tag of which only some members are overridden shrinks to
those, and YAMLs that cannot be read are skipped. So the leaves are listed from its own index, every one of them gets a
YAML for the mirror, and what was loaded is compared with the list.
"""

import difflib
import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mrpo_ds.errors import ConfigError, require
from mrpo_ds.leaderboard.mirror import DataSet
from mrpo_ds.leaderboard.suites import Suite, SuiteTask

PACKAGES = {
    "langdetect": "langdetect",
    "immutabledict": "immutabledict",
    "nltk": "nltk",
    "math_verify": "'math-verify[antlr4_11_0]'",
    "antlr4": "antlr4-python3-runtime==4.11",
    "sympy": "sympy",
    "pkg_resources": "'setuptools<81'",
}
"""Module that a task's code imports -> what to install, where lm-eval's own dependencies lack it."""
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
"""lm-eval's own defaults, said so that they cannot drift. They decide which examples a prompt gets."""


@dataclass(frozen=True)
class Leaf:
    """A task of lm-eval that is no group."""

    name: str
    yaml: str
    """Its file."""
    data_path: str | None
    """Data set on the Hub; None for tasks made by Python code."""
    data_config: str | None
    fixed_zero: bool
    """Its YAML says 0 shots, which lm-eval lets nothing override."""

    @property
    def is_local(self) -> bool:
        """Whether it reads files by itself (dataset_path: json and the like), and needs no Hub."""
        return self.data_path in ("json", "csv", "parquet", "arrow", "text") or Path(self.data_path or "").is_dir()


@dataclass(frozen=True)
class Resolved:
    """What a task's name in a suite stands for."""

    task: str
    leaves: list[Leaf]
    folders: list[str]
    """Where the YAMLs are of all that it consists of."""

    @property
    def data(self) -> list[DataSet]:
        """What it needs from the Hub."""
        return [
            DataSet(leaf.data_path, (leaf.data_config,)) for leaf in self.leaves if leaf.data_path and not leaf.is_local
        ]


def resolve_suite(suite: Suite) -> list[Resolved]:
    """What every task of a suite consists of, in order, each once.

    Raises ConfigError for a task that lm-eval does not have, shots that it would ignore, and a group of another size.
    """
    from lm_eval.tasks import TaskManager

    return resolve_in(TaskManager(include_path=suite.task_dir).task_index, suite)


def resolve_in(index: dict[str, Any], suite: Suite) -> list[Resolved]:
    """As resolve_suite, in an index of lm-eval's."""
    resolved: dict[str, Resolved] = {}
    for task in suite.tasks:
        if task.task not in resolved:
            resolved[task.task] = _resolve(index, task.task)
        _check_fits(task, resolved[task.task])
    return list(resolved.values())


def _resolve(index: dict[str, Any], name: str) -> Resolved:
    if name not in index:
        near = difflib.get_close_matches(name, index, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks` for all of them."
        raise ConfigError(f"task is {name!r}, which lm-eval does not have; {hint}")
    leaves: dict[str, Leaf] = {}
    folders: dict[str, None] = {}
    _walk(index, name, leaves, folders)
    return Resolved(name, list(leaves.values()), list(folders))


def _walk(index: dict[str, Any], name: str, leaves: dict[str, Leaf], folders: dict[str, None]) -> None:
    entry = index[name]
    if entry.yaml_path is not None:
        folders[str(Path(entry.yaml_path).parent)] = None
    if entry.kind.name in ("TASK", "PY_TASK"):
        config = entry.cfg or {}
        path = config.get("dataset_path")
        leaves[name] = Leaf(
            name, str(entry.yaml_path), path, config.get("dataset_name"), config.get("num_fewshot") == 0
        )
        return
    members = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg.get("task") or []
    for member in members:
        child = member if isinstance(member, str) else member.get("group") or member.get("task")
        if child not in index:
            raise ConfigError(f"task {name!r} has a member {child!r} of its own; name its tasks one by one instead.")
        _walk(index, child, leaves, folders)


def _check_fits(task: SuiteTask, resolved: Resolved) -> None:
    key, count = f"tasks[{task.title}]", len(resolved.leaves)
    if count != task.subtasks:
        raise ConfigError(
            f"{key}: {task.task!r} has {count} subtasks in the lm-eval that is installed, and the suite says "
            f"{task.subtasks}; set subtasks: {count} if that is meant."
        )
    fixed = [leaf.name for leaf in resolved.leaves if leaf.fixed_zero]
    if fixed and task.shots:
        require(False, f"{key}.shots", task.shots, f"0 or null: lm-eval fixes {fixed[0]} at 0 shots")
    unknown = sorted(set(task.baselines) - {leaf.name for leaf in resolved.leaves})
    require(not unknown, f"{key}.baselines", unknown[:1], "subtasks of the group")


def check_imports(resolved: Iterable[Resolved]) -> None:
    """Import the code that comes with the tasks. Raises ConfigError with what to install for it."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for one in resolved:
        for leaf in _one_of_each_folder(one):
            try:
                load_yaml(leaf.yaml, resolve_func=True)
            except ModuleNotFoundError as error:
                module = (error.name or "").partition(".")[0]
                package = PACKAGES.get(module, module)
                raise ConfigError(f"task {leaf.name!r} needs the package {module!r}: pip install {package}") from error
            _check_sentences(leaf)


def _one_of_each_folder(resolved: Resolved) -> Iterable[Leaf]:
    return {Path(leaf.yaml).parent: leaf for leaf in resolved.leaves}.values()


def _check_sentences(leaf: Leaf) -> None:
    """Without this table IFEval's code is imported all the same, and fails when every answer has been generated."""
    if not any("punkt_tab" in code.read_text(encoding="utf-8") for code in Path(leaf.yaml).parent.glob("*.py")):
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise ConfigError(
            f"task {leaf.name!r} needs nltk's table of sentence ends, punkt_tab: where there is a network, run python "
            f"-c \"import nltk; nltk.download('punkt_tab')\"; elsewhere copy nltk_data there and name it in NLTK_DATA."
        ) from error


def write_overrides(resolved: Iterable[Resolved], mirror: Path, folder: Path) -> None:
    """One YAML for every leaf, which is the task itself with the data of the mirror. Raises ConfigError, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in resolved:
        for leaf in one.leaves:
            if leaf.data_path is None:
                raise ConfigError(
                    f"task {leaf.name!r} loads its data by code of its own, so --offline cannot serve it."
                )
            if not leaf.is_local:
                content = {"include": leaf.yaml, "task": leaf.name, "dataset_path": str(mirror / leaf.data_path)}
                (folder / f"{leaf.name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data."""

    tasks: list[Any]
    """lm-eval's objects: a task, a group, or the tasks of a tag."""
    manager: Any
    """Its TaskManager, which knows no others."""

    @property
    def leaves(self) -> list[Any]:
        """All tasks, those of a group too."""
        return [
            leaf for one in self.tasks for leaf in (one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one])
        ]

    @property
    def documents(self) -> dict[str, int]:
        """How many documents each leaf has."""
        return {leaf.task_name: len(leaf.eval_docs) for leaf in self.leaves}


def load_tasks(resolved: Resolved, overrides: str | None) -> Loaded:
    """What a name of a suite stands for, data loaded.

    Args:
        resolved: what the name stands for.
        overrides: the folder of write_overrides, or None for the data that the tasks themselves name.

    Raises ConfigError when another set of tasks comes than was listed, or something is lacking that scoring needs.
    """
    for leaf in _one_of_each_folder(resolved):  # again: what a suite consists of may have been looked up elsewhere
        _check_sentences(leaf)
    manager = make_manager(resolved, overrides)
    random.seed(SEEDS["random_seed"])  # GPQA's answers are shuffled while it loads, and kept so in the prepared tables
    # Of the folders of a tag's members, lm-eval's index keeps the last one's alone.
    is_tag = manager.task_index[resolved.task].kind.name == "TAG"
    loaded = manager.load([leaf.name for leaf in resolved.leaves] if is_tag else [resolved.task])
    check_loaded(resolved, list(loaded["tasks"]))
    group = loaded.get("groups", {}).get(resolved.task)
    return Loaded(list(loaded["tasks"].values()) if group is None else [group], manager)


def make_manager(resolved: Resolved, overrides: str | None) -> Any:
    """A TaskManager that knows what a name consists of and no more: it need not read thirteen thousand YAMLs."""
    from lm_eval.tasks import TaskManager

    folders = resolved.folders + ([overrides] if overrides else [])
    return TaskManager(include_defaults=False, include_path=list(folders))


def check_loaded(resolved: Resolved, names: list[str]) -> None:
    """Raise ConfigError unless exactly the listed leaves were loaded."""
    expected = [leaf.name for leaf in resolved.leaves]
    if sorted(names) == sorted(expected):
        return
    lacking = sorted(set(expected) - set(names))
    raise ConfigError(
        f"lm-eval loads {len(names)} tasks for {resolved.task!r} instead of {len(expected)}; lacking: "
        f"{', '.join(lacking[:3]) or 'none'}{' ...' if len(lacking) > 3 else ''}. Its score would be of another test."
    )


def as_record(resolved: Resolved) -> dict[str, Any]:
    """Plain values, for JSON."""
    return asdict(resolved)


def from_record(record: dict[str, Any]) -> Resolved:
    """A Resolved from what as_record made."""
    return Resolved(record["task"], [Leaf(**leaf) for leaf in record["leaves"]], record["folders"])


def files_digest(folder: str | None) -> str | None:
    """Changes with any file of a folder of task YAMLs; None without one."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and re.search(r"\.(ya?ml|py)$", path.name):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return f"SHA-256 {digest.hexdigest()}"
