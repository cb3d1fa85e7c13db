"""Judged benchmarks, a YAML each: which questions, how they are answered, what the judge is asked, what its words mean.

Prompts are templates: {question}, {answer} and the other names of PLACEHOLDERS are replaced, all else is sent as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from mrpo_ds.config.load import load_record
from mrpo_ds.config.schema import MISSING
from mrpo_ds.errors import ConfigError, require, require_choice
from mrpo_ds.judged.records import Generation

OURS = Path(__file__).resolve().parents[2] / "eval" / "judged"
"""The benchmarks that come with the repository."""
EXAMPLES = "eval/judged"
SCORES, PAIRS = "scores", "pairs"
LAYOUTS = ("mt_bench", "arena_hard", "alpaca_eval", "hh_rlhf")
MEANINGS = ("a_much", "a", "tie", "b", "b_much")
"""Of a verdict's label: which answer of a pair is better, and whether by much."""
PLACEHOLDERS = {
    "first_turn": ("question_1", "answer_1", "reference_1"),
    "second_turn": ("question_1", "answer_1", "reference_1", "question_2", "answer_2", "reference_2"),
    "pair": ("question", "answer_a", "answer_b"),
}
"""What a template may name. {question} and {answer} mean those of the turn that is judged."""
_NAMED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where questions come from when the command line names no file."""

    layout: str = MISSING
    """How a row is read: mt_bench | arena_hard | alpaca_eval | hh_rlhf, the published files of each."""
    hub: str | None = None
    """A Hub data set, or null: --questions FILE must be given."""
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    first: int | None = None
    """Only the first so many questions, >= 1, or null for all."""

    def __post_init__(self) -> None:
        require_choice("questions.layout", self.layout, LAYOUTS)
        require(self.first is None or self.first >= 1, "questions.first", self.first, ">= 1, or null")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the judge is told. A template that the protocol does not use may be empty."""

    system: str = ""
    """System message, or "" for none; not a template."""
    systems: dict[str, str] = field(default_factory=dict)
    """Template -> its own system message instead, or "" for none."""
    first_turn: str = ""
    """scores: for the first answer."""
    second_turn: str = ""
    """scores: for the second answer, with what went before."""
    first_turn_with_reference: str = ""
    """scores: the same for the categories of reference_categories."""
    second_turn_with_reference: str = ""
    pair: str = ""
    """pairs: for two answers to one question."""

    def system_of(self, template: str) -> str:
        """What goes before a template."""
        return self.systems.get(template, self.system).strip()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A judged evaluation."""

    description: str = ""
    protocol: str = MISSING
    """scores: a number for each answer. pairs: which of two answers is better, the model's or the baseline's."""
    questions: Source = MISSING  # type: ignore[assignment]
    generation: Generation = MISSING  # type: ignore[assignment]
    prompts: Prompts = field(default_factory=Prompts)
    verdict: str = r"\[\[([^\[\]]+)\]\]"
    """Regular expression with one group: where the verdict stands in what the judge says."""
    lowest: float = 1.0
    """scores: smallest verdict that is one."""
    highest: float = 10.0
    reference_categories: list[str] = field(default_factory=list)
    """scores: categories whose answers are judged beside a reference answer."""
    labels: dict[str, str] = field(default_factory=dict)
    """pairs: each verdict that is one -> a_much | a | tie | b | b_much: which answer is better."""
    summary: str = "win_rate"
    """pairs: win_rate, the mean outcome over questions | bradley_terry, by a fit to all games, "much" counted more."""
    much_weight: int = 3
    """bradley_terry: games that a verdict "much better" counts as, >= 1."""
    baseline: str | None = None
    """pairs: NAME=PATH of the baseline when the command line has none, or null."""
    max_parse_failures: float = 0.1
    """Share of judgments without a verdict above which the command fails, 0 <= share <= 1."""

    def __post_init__(self) -> None:
        require_choice("protocol", self.protocol, (SCORES, PAIRS))
        require_choice("summary", self.summary, ("win_rate", "bradley_terry"))
        require(self.lowest < self.highest, "highest", self.highest, f"> lowest, which is {self.lowest:g}")
        require(self.much_weight >= 1, "much_weight", self.much_weight, ">= 1")
        share = self.max_parse_failures
        require(0 <= share <= 1, "max_parse_failures", share, "0 <= share <= 1")
        _check_pattern(self.verdict)
        _check_labels(self)
        _check_templates(self)

    @property
    def is_scores(self) -> bool:
        """Whether single answers get numbers."""
        return self.protocol == SCORES


def load_benchmark(name: str) -> Benchmark:
    """A benchmark by the name of its file in eval/judged (here, or of the repository), or by the path of a YAML.

    Raises ConfigError with the file, the key, the value and what is allowed.
    """
    path = find_benchmark(name)
    try:
        return load_record(Benchmark, str(path), "benchmark file", EXAMPLES)
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"benchmark {str(path)!r}: "
        raise ConfigError(f"{where}{error}") from error


def find_benchmark(name: str) -> Path:
    """The file of a benchmark. Raises ConfigError when there is none."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [Path(EXAMPLES), OURS]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")} - {"judge"})
    raise ConfigError(f"BENCH is {name!r}; allowed: {', '.join(known)}, or the path of a YAML like theirs.")


def templates_of(benchmark: Benchmark) -> Sequence[tuple[str, str]]:
    """(field of Prompts, key of PLACEHOLDERS) of the templates that a benchmark uses."""
    if not benchmark.is_scores:
        return [("pair", "pair")]
    used = [("first_turn", "first_turn"), ("second_turn", "second_turn")]
    if benchmark.reference_categories:
        used += [(f"{name}_with_reference", kind) for name, kind in used]
    return used


def _check_pattern(pattern: str) -> None:
    allowed = "a regular expression with exactly one group"
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"verdict is {pattern!r}; allowed: {allowed} ({error}).") from error
    require(groups == 1, "verdict", pattern, allowed)


def _check_labels(benchmark: Benchmark) -> None:
    if benchmark.is_scores:
        require(
            not benchmark.labels, "labels", benchmark.labels, "none with protocol scores, whose verdicts are numbers"
        )
        return
    for label, meaning in benchmark.labels.items():
        require_choice(f"labels[{label}]", meaning, MEANINGS)
    missing = {"a", "b"} - {meaning.removesuffix("_much") for meaning in benchmark.labels.values()}
    require(not missing, "labels", benchmark.labels, "at least one label for a and one for b")


def _check_templates(benchmark: Benchmark) -> None:
    """Raise ConfigError for a template that is missing, names what there is not, or does not show the answer."""
    used = dict(templates_of(benchmark))
    for name in benchmark.prompts.systems:
        require_choice("prompts.systems", name, tuple(used))
    for item in fields(Prompts):
        text = getattr(benchmark.prompts, item.name)
        kind = used.get(item.name)
        if kind is None:
            continue
        key = f"prompts.{item.name}"
        require(text.strip() != "", key, text, f"a template, since protocol is {benchmark.protocol}")
        allowed = {*PLACEHOLDERS[kind], *(() if kind == "pair" else ("question", "answer"))}
        named = set(_NAMED.findall(text))
        listed = ", ".join(f"{{{name}}}" for name in sorted(allowed))
        unknown = sorted(named - allowed)
        require(not unknown, key, f"{{{unknown[0]}}}" if unknown else "", listed)
        shown = [{"answer_a"}, {"answer_b"}] if kind == "pair" else [{"answer", f"answer_{1 + (kind != 'first_turn')}"}]
        for names in shown:
            if not named & names:
                these = " or ".join(f"{{{name}}}" for name in sorted(names))
                raise ConfigError(f"{key} does not show the judge what it judges; it must name {these}.")


def fill(template: str, values: dict[str, str]) -> str:
    """A template with its names replaced, once: braces inside the values stay as they are."""
    return _NAMED.sub(lambda found: values.get(found[1], found[0]), template)
