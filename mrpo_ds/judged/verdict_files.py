"""Judgments of others: our own records, and the published layouts of FastChat, Arena-Hard and AlpacaEval.

Where a file has the number or the verdict itself, that is taken and its text is not read again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mrpo_ds.config.schema import SourceConfig
from mrpo_ds.data.sources import read_rows
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.benchmarks import Benchmark
from mrpo_ds.judged.judgments import case_of, supersedes
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, Case
from mrpo_ds.judged.questions import numbered, text_id
from mrpo_ds.judged.verdicts import OUTCOMES, Verdict, label_of, read_verdict

Row = Mapping[str, Any]
FASTCHAT_FAILURE = -1
LAYOUT_HELP = (
    "allowed: lines of mrpo-ds judge (key, model, question, judgment), FastChat (question_id, model, turn, score), "
    "Arena-Hard (model, games) with pairs, AlpacaEval (instruction, generator_2, preference) with pairs."
)


@dataclass(frozen=True)
class Filed:
    """A verdict of a file, and what it must share with all that it is put together with."""

    verdict: Verdict
    baseline: str
    """Whom the model was compared with; "" where the file does not say, or of a single answer."""
    judge: str
    """"" where the file does not say."""


def read_verdict_files(benchmark: Benchmark, files: Sequence[str]) -> list[Filed]:
    """The verdicts of files, in their order. One case may have several: FastChat averages over all of them, as we do.

    An instruction that a file of AlpacaEval has twice is two questions, numbered as in the file of questions.

    Raises DataError when a file cannot be read, or has a row of no known layout, and when there is no verdict.
    """
    found: list[Filed] = []
    seen: dict[tuple[str, Case], tuple[int, int]] = {}
    for file in files:
        named: dict[tuple[Case, str], int] = {}
        for number, row in read_rows(SourceConfig(source=file)):
            baseline, judge = _baseline(row), _judge(row)
            for verdict in _read(benchmark, row, f"{file} row {number}"):
                ours = (str(row.get("key", "")), verdict.case)
                if ours[0] and ours in seen:  # of our own records: asked for once more, or a copy of the file
                    rank, place = seen[ours]
                    if supersedes(row) > rank:
                        found[place], seen[ours] = Filed(verdict, baseline, judge), (supersedes(row), place)
                    continue
                seen[ours] = supersedes(row), len(found)
                if "instruction" in row:  # named by its text, which may come twice, as in the questions
                    named[verdict.case, baseline] = named.get((verdict.case, baseline), 0) + 1
                    verdict = _again(verdict, named[verdict.case, baseline])
                found.append(Filed(verdict, baseline, judge))
    if not found:
        raise DataError(f"{', '.join(files)}: there is no verdict; {LAYOUT_HELP}")
    return found


def _again(verdict: Verdict, occurrence: int) -> Verdict:
    name = numbered(verdict.case.question, occurrence)
    return replace(verdict, case=replace(verdict.case, question=name))


def origin_of(found: Sequence[Filed]) -> tuple[str, str]:
    """The baseline and the judge of verdicts. Raises DataError where they have not one of each."""
    for what, names in (("baseline", {one.baseline for one in found}), ("judge", {one.judge for one in found})):
        if len(names) > 1:
            listed = ", ".join(sorted(name or "one that is not named" for name in names))
            raise DataError(
                f"the verdicts are of more than one {what}: {listed}; allowed in one table: one. Give the files, "
                "MODELs or --questions that have one alone, or take the other rows out."
            )
    return found[0].baseline, found[0].judge


def _baseline(row: Row) -> str:
    """generator_1 of AlpacaEval; our own records and Arena-Hard from version 2 on have a baseline."""
    return str(row.get("generator_1" if "instruction" in row else "baseline") or "")


def _judge(row: Row) -> str:
    """FastChat's judge is its name and its prompt's, of which a model has several; AlpacaEval says annotator."""
    judge = row.get("annotator" if "instruction" in row else "judge") or ""
    return str(judge[0]) if isinstance(judge, list) and judge else str(judge)


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
        said = game["score"] if game else None
        label = label_of(benchmark.labels, str(said).strip().removeprefix("[[").removesuffix("]]").strip())
        if said is None or label is None:
            yield Verdict(case, None, failure="no verdict" if said is None else f"unknown verdict: {said!r}")
            continue
        meaning = benchmark.labels[label]
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


def models_of(found: Sequence[Filed], asked: Sequence[str]) -> list[str]:
    """The models of files, or those that were asked for. Raises ConfigError for one that is not there."""
    known = list(dict.fromkeys(one.verdict.case.model for one in found))
    missing = next((name for name in asked if name not in known), None)
    if missing is not None:
        raise ConfigError(f"MODEL is {missing!r}; allowed with --verdicts: those of the files, {', '.join(known)}.")
    return list(asked) or known
