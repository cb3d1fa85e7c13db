"""The questions of a judged benchmark, from files in the published layouts or from the Hub, and reference answers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.console import log
from mrpo_ds.data.adapters.hh_rlhf import prompt_of
from mrpo_ds.data.sources import content_key, read_rows
from mrpo_ds.errors import DataError, require
from mrpo_ds.judged.benchmarks import Benchmark, Source
from mrpo_ds.judged.records import Question

ID_DIGITS = 16
"""Of the SHA-256 that names a question whose file gives it no name."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class QuestionSet:
    """The questions that are asked."""

    questions: tuple[Question, ...]
    content: str
    """Changes with the file or data set that they were read from."""
    skipped: int
    """Rows that ask nothing."""


def read_questions(benchmark: Benchmark, file: str | None, limit: int | None) -> QuestionSet:
    """The questions of a benchmark, in the order of their file.

    Args:
        benchmark: its layout, and the data set that is read where there is no file.
        file: a local file, or another data set of the Hub.
        limit: at most so many, or None.

    Raises:
        ConfigError: there is neither a file nor a data set.
        DataError: the file cannot be read, or a row is no question of the layout.
    """
    source = benchmark.questions
    require(
        file is not None or source.hub is not None,
        "--questions",
        file,
        f"a file in the layout of {source.layout}, since the benchmark names no Hub data set",
    )
    read = _READERS[source.layout]
    wanted = min((count for count in (source.first, limit) if count is not None), default=None)
    rows = _source(source, file)
    questions: list[Question] = []
    seen: dict[str, int] = {}
    skipped = 0
    for number, row in read_rows(rows):
        if wanted is not None and len(questions) == wanted:
            break
        question = _checked(read, row, f"{rows.source} row {number}")
        if question is None:
            skipped += 1
            continue
        seen[question.id] = seen.get(question.id, 0) + 1
        questions.append(replace(question, id=numbered(question.id, seen[question.id])))
    if not questions:
        raise DataError(f"{rows.source} has no question in the layout of {source.layout}; see docs/judged.md.")
    if skipped:
        log(f"{rows.source}: {skipped} rows have no question of a user and are left out")
    return QuestionSet(tuple(questions), content_key(rows), skipped)


def text_id(text: str) -> str:
    """The name of a question whose file gives it none: a digest of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def numbered(name: str, occurrence: int) -> str:
    """The name of a question that comes for the first, second, ... time; published files repeat some."""
    return name if occurrence == 1 else f"{name}#{occurrence}"


def with_references(questions: Sequence[Question], file: str | None, categories: Sequence[str]) -> tuple[Question, ...]:
    """The questions, those of the categories with the reference answers of a file, the others with none.

    Args:
        questions: of the benchmark.
        file: reference answers as FastChat stores them: question_id, choices[0].turns.
        categories: which questions are judged beside a reference.

    Raises:
        ConfigError: there is no file, and a question needs one.
        DataError: the file lacks an answer to such a question, or cannot be read.
    """
    needing = [question for question in questions if question.category in categories]
    if not needing:
        return tuple(replace(question, reference=()) for question in questions)
    require(
        file is not None,
        "--reference-answers",
        file,
        f"a file of reference answers: {len(needing)} questions of {', '.join(categories)} are judged beside one",
        "To judge without, empty reference_categories in a benchmark file of yours; scores then mean another thing.",
    )
    assert file is not None
    known = {}
    for number, row in read_rows(SourceConfig(source=file)):
        try:
            known[str(row["question_id"])] = tuple(str(turn) for turn in row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{file} row {number} is no reference answer; allowed: question_id and choices[0].turns, as FastChat "
                "stores them."
            ) from error
    for question in needing:
        if len(known.get(question.id, ())) < len(question.turns):
            raise DataError(
                f"{file} has no reference answer to {len(question.turns)} turns of question {question.id} "
                f"({question.category}); add it, or use the file that belongs to the questions."
            )
    return tuple(
        replace(question, reference=known[question.id] if question.category in categories else ())
        for question in questions
    )


def _source(source: Source, file: str | None) -> SourceConfig:
    if file is not None:
        return SourceConfig(source=file, split=source.split)
    assert source.hub is not None
    return SourceConfig(source=source.hub, split=source.split, subset=source.subset, revision=source.revision)


def _checked(read: "Callable[[Row], Question | None]", row: Row, place: str) -> Question | None:
    try:
        question = read(row)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{place} is no question of the layout: {type(error).__name__} {error}; its columns are "
            f"{', '.join(map(str, row))}. The layouts are in docs/judged.md."
        ) from error
    if question is not None and not all(isinstance(turn, str) and turn.strip() for turn in question.turns):
        raise DataError(f"{place} has an empty question; remove the row.")
    return question


def _mt_bench(row: Row) -> Question:
    """FastChat's question.jsonl, whose question_id its reference answers have too."""
    if "question_id" not in row and "prompt_id" in row:
        raise ValueError("prompt_id is not FastChat's number of a question, by which reference answers are found")
    turns = row["turns"]
    if isinstance(turns, str) or not turns:
        raise ValueError("turns is no list of texts")
    return Question(str(row["question_id"]), tuple(turns), str(row["category"]))


def _arena_hard(row: Row) -> Question:
    """Arena-Hard-Auto's question.jsonl: uid and prompt, or the older question_id and turns[0].content."""
    if "prompt" in row:
        return Question(str(row["uid"]), (row["prompt"],), str(row.get("category", "")))
    return Question(str(row["question_id"]), (row["turns"][0]["content"],), str(row.get("category", "")))


def _alpaca_eval(row: Row) -> Question:
    """AlpacaEval's instructions, with or without somebody's output."""
    instruction = row["instruction"]
    return Question(text_id(instruction), (instruction,), str(row.get("dataset", "")))


def _hh_rlhf(row: Row) -> Question | None:
    """A raw row of HH-RLHF: the chosen transcript up to its last answer."""
    messages = prompt_of(row["chosen"])
    if not messages:
        return None
    name = text_id("\n\n".join(f"{message.role}: {message.content}" for message in messages))
    return Question(name, (messages[-1].content,), history=messages[:-1])


_READERS: dict[str, Callable[[Row], Question | None]] = {
    "mt_bench": _mt_bench,
    "arena_hard": _arena_hard,
    "alpaca_eval": _alpaca_eval,
    "hh_rlhf": _hh_rlhf,
}
