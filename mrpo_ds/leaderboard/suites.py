"""Suites: which tasks of lm-eval, with how many shots, by which metric, and what their average is. A YAML each."""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from mrpo_ds.config.load import load_record
from mrpo_ds.config.schema import MISSING
from mrpo_ds.errors import ConfigError, require, require_choice
from mrpo_ds.model_names import NAME_CHARACTERS, is_name

OURS = Path(__file__).resolve().parents[2] / "eval" / "suites"
"""The suites that come with the repository."""


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One column of the table: a task, group or tag of lm-eval, and what counts of it."""

    task: str = MISSING
    """Its name in lm-eval."""
    metric: str = MISSING
    """What counts, as lm-eval names it: acc, acc_norm, exact_match, ..."""
    filter: str = "none"
    """Which of the task's filters makes an answer of what the model said: none, strict-match, ..."""
    name: str | None = None
    """Heading of the column and name of the cell's file, or null for the task's name. Unique in the suite."""
    shots: int | None = None
    """Examples in the prompt, >= 0, or null for as many as the task itself says."""
    weight: float = 1.0
    """In the average, >= 0; at 0 the score is only shown."""
    subtasks: int = 1
    """Tasks that a group consists of, >= 1: another number is an error, since groups shrink without a word."""
    group_mean: str = "by_size"
    """A group's score: by_size, each document counts alike | plain, each subtask counts alike."""
    baseline: str | None = None
    """What guessing gets, 0 <= value < 1 (or 1/4): (score - baseline) / (1 - baseline), at least 0, is averaged."""
    baselines: dict[str, str] = field(default_factory=dict)
    """The same for each subtask; their plain mean is averaged."""
    max_new_tokens: int | None = None
    """Longest answer of a generative task, >= 1 token, or null for the task's own."""

    def __post_init__(self) -> None:
        key = f"tasks[{self.title}]"
        require(is_name(self.title), f"{key}.name", self.title, NAME_CHARACTERS)
        require(self.shots is None or self.shots >= 0, f"{key}.shots", self.shots, ">= 0, or null")
        require(0 <= self.weight < float("inf"), f"{key}.weight", self.weight, ">= 0")
        require(self.subtasks >= 1, f"{key}.subtasks", self.subtasks, ">= 1")
        require_choice(f"{key}.group_mean", self.group_mean, ("by_size", "plain"))
        longest = self.max_new_tokens
        require(longest is None or longest >= 1, f"{key}.max_new_tokens", longest, ">= 1 token, or null")
        require(self.baseline is None or not self.baselines, f"{key}.baselines", self.baselines, "{} beside a baseline")
        for name, text in {"baseline": self.baseline, **self.baselines}.items():
            require(
                text is None or 0 <= _number(text) < 1, f"{key}.{name}", text, "0 <= value < 1, such as 1/4 or 0.25"
            )
        count = len(self.baselines)
        require(count in (0, self.subtasks), f"{key}.baselines", f"{count} of them", f"one for each of {self.subtasks}")

    @property
    def title(self) -> str:
        """The name of column and cell."""
        return self.task if self.name is None else self.name

    @property
    def is_normalized(self) -> bool:
        """Whether guessing counts as 0."""
        return self.baseline is not None or bool(self.baselines)

    def chance(self, subtask: str | None = None) -> float:
        """What guessing gets: in the whole, or in a subtask."""
        text = self.baseline if subtask is None else self.baselines.get(subtask)
        return float(_number(text)) if text is not None else 0.0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that make one table and one average."""

    description: str = ""
    """A few words for the head of the table."""
    tasks: list[SuiteTask] = field(default_factory=list)
    """The columns, in order."""
    chat_template: bool = False
    """Wrap prompts in the model's chat template, examples as turns. False is comparable with base models."""
    task_dir: str | None = None
    """A folder with task YAMLs of your own, relative to the suite's file."""

    def __post_init__(self) -> None:
        require(len(self.tasks) > 0, "tasks", [], "at least one task")
        titles = [task.title for task in self.tasks]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        require(twice is None, "tasks", twice, "every name once", "Give one of them a `name` of its own.")
        require(any(task.weight for task in self.tasks), "tasks", "all of weight 0", "one that counts in the average")

    def calls(self) -> "dict[Call, list[SuiteTask]]":
        """What is computed in one go, and the columns that come of it, in order."""
        grouped: dict[Call, list[SuiteTask]] = {}
        for task in self.tasks:
            grouped.setdefault(Call(task.task, task.shots, task.max_new_tokens), []).append(task)
        return grouped


@dataclass(frozen=True)
class Call:
    """One call of lm-eval for a model: everything that changes what is computed, and nothing that only selects."""

    task: str
    shots: int | None
    max_new_tokens: int | None


def load_suite(name: str) -> Suite:
    """A suite by the name of its file in eval/suites (here, or of the repository), or by the path of a YAML.

    Raises ConfigError with the file, the key, the value and what is allowed.
    """
    path = find_suite(name)
    try:
        suite = load_record(Suite, str(path), "suite", "eval/suites")
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"suite {str(path)!r}: "
        raise ConfigError(f"{where}{error}") from error
    if suite.task_dir is None:
        return suite
    folder = path.parent / suite.task_dir
    require(folder.is_dir(), f"suite {str(path)!r}: task_dir", suite.task_dir, "a folder beside the suite's file")
    return replace(suite, task_dir=str(folder.resolve()))


def find_suite(name: str) -> Path:
    """The file of a suite. Raises ConfigError when there is none."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [Path("eval/suites"), OURS]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigError(f"--suite is {name!r}; allowed: {', '.join(known)}, or the path of a YAML like theirs.")


def _number(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return Fraction(-1)  # out of every range: the message says what is allowed
