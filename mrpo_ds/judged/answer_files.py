"""Answers that others have made, in the published layouts of FastChat, Arena-Hard and AlpacaEval, or in our own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.data.sources import read_rows
from mrpo_ds.errors import DataError
from mrpo_ds.judged.questions import numbered, text_id
from mrpo_ds.judged.records import Answer, Question

LAYOUT_HELP = (
    "allowed: FastChat (question_id, choices[0].turns), Arena-Hard (uid, messages), AlpacaEval (instruction, output), "
    "or answers/NAME.jsonl of mrpo-ds judge (question, turns)."
)
Row = Mapping[str, Any]


def read_answers(file: str, questions: Sequence[Question]) -> list[Answer]:
    """The answers of a file to the questions, in their order. Answers to other questions are left out.

    Raises DataError when the file cannot be read, has a row of no known layout, or lacks a question or a turn.
    """
    found: dict[str, Answer] = {}
    seen: dict[str, int] = {}
    for number, row in read_rows(SourceConfig(source=file)):
        try:
            answer = _read(row)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{file} row {number} is no answer ({type(error).__name__} {error}); {LAYOUT_HELP}"
            ) from error
        if answer is not None and "instruction" in row:  # named by its text, which may come twice, as in the questions
            seen[answer.question] = seen.get(answer.question, 0) + 1
            answer = replace(answer, question=numbered(answer.question, seen[answer.question]))
        if answer is not None and found.setdefault(answer.question, answer).turns != answer.turns:
            raise DataError(f"{file} row {number} is a second answer to question {answer.question}; keep one.")
    missing = [one.id for one in questions if len(found.get(one.id, Answer(one.id, ())).turns) < len(one.turns)]
    if missing:
        raise DataError(
            f"{file} has no whole answer to {len(missing)} of {len(questions)} questions (first: {missing[0]}); give "
            "the file that belongs to the questions, or fewer questions with --limit."
        )
    return [_cut(found[one.id], len(one.turns)) for one in questions]


def _read(row: Row) -> Answer | None:
    if "settings" in row and "question" not in row:  # the first line of our own files
        return None
    if "question" in row and "turns" in row:
        return Answer(
            str(row["question"]), _texts(row["turns"]), tuple(row.get("tokens", ())), tuple(row.get("finished", ()))
        )
    if "messages" in row:
        said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        name = row["uid"] if "uid" in row else row["question_id"]
        return Answer(str(name), _texts(one["answer"] if isinstance(one, Mapping) else one for one in said))
    if "choices" in row:
        turns = row["choices"][0]["turns"]
        return Answer(
            str(row["question_id"]), _texts(one["content"] if isinstance(one, Mapping) else one for one in turns)
        )
    return Answer(text_id(row["instruction"]), _texts([row["output"]]))


def _texts(values: Any) -> tuple[str, ...]:
    texts = tuple(values)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("an answer is no text")
    return texts


def _cut(answer: Answer, turns: int) -> Answer:
    return Answer(answer.question, answer.turns[:turns], answer.tokens[:turns], answer.finished[:turns])
