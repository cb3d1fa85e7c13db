"""Judgments of others: our own records, and the published layouts of FastChat, Arena-Hard and AlpacaEval.

Where a file has the number or the verdict itself, that is taken and its text is not read again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.data.sources import read_rows
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.benchmarks import Benchmark
from mrpo_ds.judged.judgments import case_of, supersedes
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, Case
from mrpo_ds.judged.questions import text_id
from mrpo_ds.judged.verdicts import OUTCOMES, Verdict, read_verdict

Row = Mapping[str, Any]
FASTCHAT_FAILURE = -1
LAYOUT_HELP = (
    "allowed: lines of mrpo-ds judge (key, model, question, judgment), FastChat (question_id, model, turn, score), "
    "Arena-Hard (model, games) with pairs, AlpacaEval (instruction, generator_2, preference) with pairs."
)


def read_verdict_files(benchmark: Benchmark, files: Sequence[str]) -> list[Verdict]:
    """The verdicts of files, in their order. One case may have several: FastChat averages over all of them, as we do.

    Raises DataError when a file cannot be read, or has a row of no known layout.
    """
    found: list[Verdict] = []
    seen: dict[tuple[str, Case], tuple[int, int]] = {}
    for file in files:
        for number, row in read_rows(SourceConfig(source=file)):
            for verdict in _read(benchmark, row, f"{file} row {number}"):
                ours = (str(row.get("key", "")), verdict.case)
                if ours[0] and ours in seen:  # of our own records: asked for once more, or a copy of the file
                    rank, place = seen[ours]
                    if supersedes(row) > rank:
                        found[place], seen[ours] = verdict, (supersedes(row), place)
                    continue
                seen[ours] = supersedes(row), len(found)
                found.append(verdict)
    return found


def _read(benchmark: Benchmark, row: Row, place: str) -> Iterable[Verdict]:
    try:
        if "lost" in row:
            return []
        if "key" in row and "judgment" in row:
            return [_own(benchmark, row)]
        if benchmark.is_scores and "score" in row and "question_id" in row:
            return [_fastchat(benchmark, row)]
        if not benchmark.is_scores and "games" in row:
            return list(_arena_hard(benchmark, row))
        if not benchmark.is_scores and "preference" in row and "instruction" in row:
            return [_alpaca_eval(row)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place} lacks something: {type(error).__name__} {error}; {LAYOUT_HELP}") from error
    raise DataError(f"{place} is no verdict with protocol {benchmark.protocol}; {LAYOUT_HELP}")


def _own(benchmark: Benchmark, row: Row) -> Verdict:
    case = case_of(dict(row))
    if benchmark.is_scores == bool(case.order):
        raise ValueError(f"order {case.order!r} with protocol {benchmark.protocol}")
    return read_verdict(benchmark, case, row)


def _fastchat(benchmark: Benchmark, row: Row) -> Verdict:
    """A line of model_judgment/*_single.jsonl; the score -1 says that FastChat found none."""
    case = Case(str(row["model"]), str(row["question_id"]), int(row["turn"]))
    score = float(row["score"])
    if score == FASTCHAT_FAILURE:
        return Verdict(case, None, failure="no verdict")
    if not benchmark.lowest <= score <= benchmark.highest:
        return Verdict(case, None, failure=f"out of range: {score:g}")
    return Verdict(case, score)


def _arena_hard(benchmark: Benchmark, row: Row) -> Iterator[Verdict]:
    """A line of model_judgment/*/<model>.jsonl: two games, the baseline first in the first one."""
    question = str(row["uid"] if "uid" in row else row["question_id"])
    for game, order in zip(row["games"], (BASELINE_FIRST, MODEL_FIRST), strict=False):
        case = Case(str(row["model"]), question, 1, order)
        label = game["score"] if game else None
        meaning = benchmark.labels.get(str(label).strip().removeprefix("[[").removesuffix("]]"))
        if meaning is None:
            yield Verdict(case, None, failure="no verdict" if label is None else f"unknown verdict {label!r}")
            continue
        value = OUTCOMES[meaning.removesuffix("_much")]
        yield Verdict(case, 1.0 - value if order == BASELINE_FIRST else value, meaning.endswith("_much"))


def _alpaca_eval(row: Row) -> Verdict:
    """An annotation: preference from 1, output_1 is better for sure, to 2, output_2 is, which is the model's."""
    case = Case(str(row["generator_2"]), text_id(row["instruction"]), 1, MODEL_FIRST)
    if row["preference"] is None:
        return Verdict(case, None, failure="no verdict")
    preference = float(row["preference"])
    if preference == 0:  # the first versions wrote ties so
        return Verdict(case, 0.5)
    if not 1 <= preference <= 2:
        return Verdict(case, None, failure=f"out of range: {preference:g}")
    return Verdict(case, preference - 1)


def models_of(verdicts: Sequence[Verdict], asked: Sequence[str]) -> list[str]:
    """The models of files, or those that were asked for. Raises ConfigError for one that is not there."""
    known = list(dict.fromkeys(verdict.case.model for verdict in verdicts))
    missing = next((name for name in asked if name not in known), None)
    if missing is not None:
        raise ConfigError(f"MODEL is {missing!r}; allowed with --verdicts: those of the files, {', '.join(known)}.")
    return list(asked) or known
