"""What the judge is asked: one call for each answer, or for each pair of answers in each order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrpo_ds.errors import DataError
from mrpo_ds.judged.benchmarks import Benchmark, fill
from mrpo_ds.judged.records import Answer, Question
from mrpo_ds.types import Message

MODEL_FIRST, BASELINE_FIRST = "model_first", "baseline_first"
MOST_TURNS = 2
SPEAKERS = {"user": "Person", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True)
class Case:
    """What one judgment is about."""

    model: str
    question: str
    turn: int
    """From 1; of a pair always 1."""
    order: str = ""
    """Of a pair: model_first, when the model's answer is A, or baseline_first; "" of a single answer."""


@dataclass(frozen=True)
class Call:
    """One question to the judge."""

    case: Case
    messages: tuple[Message, ...]


def score_calls(
    benchmark: Benchmark, model: str, questions: Sequence[Question], answers: Mapping[str, Answer]
) -> list[Call]:
    """A call for each turn of each question. Raises DataError for questions of more than two turns.

    Args:
        benchmark: its templates.
        model: whose answers they are.
        questions: the reference decides between the templates with and without.
        answers: by question.
    """
    calls = []
    for question in questions:
        if len(question.turns) > MOST_TURNS:
            raise DataError(
                f"question {question.id} has {len(question.turns)} turns; allowed with protocol scores: 1 or 2."
            )
        values = _values(question, answers[question.id])
        suffix = "_with_reference" if question.reference else ""
        for turn, name in enumerate(("first_turn", "second_turn")[: len(question.turns)], start=1):
            here = {"question": values[f"question_{turn}"], "answer": values[f"answer_{turn}"]}
            calls.append(_call(benchmark, Case(model, question.id, turn), name + suffix, {**values, **here}))
    return calls


def pair_calls(
    benchmark: Benchmark,
    model: str,
    questions: Sequence[Question],
    answers: Mapping[str, Answer],
    others: Mapping[str, Answer],
    single_order: bool,
) -> list[Call]:
    """A call for each question in both orders, or with the model's answer first alone.

    Args:
        benchmark: its template.
        model: whose answers they are.
        questions: of one turn each. Raises DataError for others.
        answers: the model's, by question.
        others: the baseline's, by question.
        single_order: the model's answer is always A, as in the MRPO paper.
    """
    calls = []
    for question in questions:
        if len(question.turns) > 1:
            raise DataError(f"question {question.id} has {len(question.turns)} turns; allowed with protocol pairs: 1.")
        ours, theirs = answers[question.id].turns[0], others[question.id].turns[0]
        shown = {"question": conversation(question)}
        for order in (MODEL_FIRST,) if single_order else (MODEL_FIRST, BASELINE_FIRST):
            first, second = (ours, theirs) if order == MODEL_FIRST else (theirs, ours)
            values = {**shown, "answer_a": first, "answer_b": second}
            calls.append(_call(benchmark, Case(model, question.id, 1, order), "pair", values))
    return calls


def conversation(question: Question) -> str:
    """What the judge sees of a question: the text itself, or with earlier turns who said what."""
    if not question.history:
        return question.turns[0]
    messages = (*question.history, Message("user", question.turns[0]))
    return "\n\n".join(f"{SPEAKERS[message.role]}: {message.content}" for message in messages)


def _values(question: Question, answer: Answer) -> dict[str, str]:
    values: dict[str, str] = {}
    for turn, (asked, said) in enumerate(zip(question.turns, answer.turns, strict=True), start=1):
        values |= {f"question_{turn}": asked, f"answer_{turn}": said}
        if question.reference:
            values[f"reference_{turn}"] = question.reference[turn - 1]
    return values


def _call(benchmark: Benchmark, case: Case, template: str, values: dict[str, str]) -> Call:
    prompts = benchmark.prompts
    system = prompts.system_of(template)
    text = fill(getattr(prompts, template), values).strip()
    return Call(case, (*((Message("system", system),) if system else ()), Message("user", text)))
