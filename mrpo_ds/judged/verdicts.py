"""What a judgment says: a number, or which of two answers is better. Words without a verdict are never scored."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_ds.judged.benchmarks import Benchmark
from mrpo_ds.judged.prompts import BASELINE_FIRST, Case

OUTCOMES = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""For the answer A."""
LABELS_SHARE = 0.5
"""Of the first token's probability: the labels must have more of it, or the judge did not begin with its verdict."""
THOUGHT_END = "</think>"
_THOUGHT = re.compile(r"^\s*<think>", re.MULTILINE)
"""Where a line begins: amid a sentence a judge speaks of an answer that has the tag."""
_ENDINGS = " \t\r\n.*_`'\""
"""May stand behind the verdict of a judgment that was cut at its very end."""


@dataclass(frozen=True)
class Verdict:
    """A judgment, read."""

    case: Case
    value: float | None
    """scores: the number. pairs: 1 where the model's answer is better, 0 where the baseline's is, 0.5 for a tie, or
    what lies between where the verdict is weighed. None: there is no verdict in it."""
    much: bool = False
    """pairs: better by much."""
    failure: str = ""
    """Why there is no value."""


def read_verdict(benchmark: Benchmark, case: Case, record: Mapping[str, Any]) -> Verdict:
    """The verdict of a judgment's record.

    Args:
        benchmark: where verdicts stand and which are some.
        case: what it is about.
        record: `judgment`, its words; `finish_reason` and `first_token` where they are known.
    """
    words = str(record.get("judgment") or "")
    said = words.rpartition(THOUGHT_END)[2]  # what was weighed in a thought is no verdict
    found = _verdicts_in(benchmark, said)
    begun = label_of(benchmark.labels, _first_line(words))
    if begun is not None and record.get("first_token") and {value for value, _ in found} <= {benchmark.labels[begun]}:
        share = weighed(benchmark.labels, record["first_token"])
        if share is not None:
            return Verdict(case, _for_model(case, share))
    is_cut = record.get("finish_reason") == "length"
    failure = _failure(benchmark, said, found, is_cut)
    if failure:
        return Verdict(case, None, failure=failure + (" (cut at max_tokens of the judge)" if is_cut else ""))
    value = found[-1][0]
    if isinstance(value, float):
        return Verdict(case, value)
    return Verdict(case, _for_model(case, OUTCOMES[value.removesuffix("_much")]), value.endswith("_much"))


def weighed(labels: Mapping[str, str], first_token: Mapping[str, float]) -> float | None:
    """The judge's probability that A is better, ties half, given that it answers with one of the labels.

    Args:
        labels: label -> meaning, see Benchmark.labels.
        first_token: candidate -> log-prob, nats.

    Returns:
        None where the candidates that are labels have no more than half of the probability: what the judge began with
        was then no verdict.
    """
    total = better = 0.0
    for candidate, logp in first_token.items():
        label = label_of(labels, candidate)
        if label is not None:
            share = math.exp(min(logp, 0.0))
            total += share
            better += OUTCOMES[labels[label].removesuffix("_much")] * share
    return better / total if total > LABELS_SHARE else None


def label_of(labels: Mapping[str, str], text: str) -> str | None:
    """The label that a text is, or None. Case counts only where two labels differ by it alone."""
    if text in labels:
        return text
    folded = {label.casefold(): label for label in labels}
    return folded.get(text.casefold()) if len(folded) == len(labels) else None


def failures_of(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those that say nothing."""
    return [verdict for verdict in verdicts if verdict.value is None]


def _verdicts_in(benchmark: Benchmark, said: str) -> list[tuple[float | str, re.Match[str]]]:
    """(number, or meaning of a label; where it stands) of all that is a verdict.

    Judges quote what they judge, and code is full of [[...]]: all that could be no verdict is passed over.
    """
    found: list[tuple[float | str, re.Match[str]]] = []
    for match in re.finditer(benchmark.verdict, said):
        text = (match[1] or "").strip()
        if not benchmark.is_scores:
            label = label_of(benchmark.labels, text)
            found += [] if label is None else [(benchmark.labels[label], match)]
        elif re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            found.append((float(text), match))
    return found


def _failure(benchmark: Benchmark, said: str, found: Sequence[tuple[float | str, re.Match[str]]], is_cut: bool) -> str:
    """Why words have no verdict, or ""."""
    if _THOUGHT.search(said):
        return "a thought without an end"
    if not found:
        other = re.search(benchmark.verdict, said)
        kind = "no number" if benchmark.is_scores else "unknown verdict"
        return f"{kind}: {(other[1] or '').strip()[:40]!r}" if other else "no verdict"
    distinct = {value: match for value, match in found}
    if len(distinct) > 1:
        return f"several verdicts: {', '.join(match[1].strip() for match in list(distinct.values())[:3])}"
    value, last = found[-1]
    if is_cut and said[last.end() :].strip(_ENDINGS):
        return "no verdict at the end"
    if isinstance(value, float) and not benchmark.lowest <= value <= benchmark.highest:
        return f"out of range: {value:g}"
    return ""


def _first_line(text: str) -> str:
    """Without a full stop and the like: "A" may begin a sentence, but not stand there alone."""
    return text.strip().partition("\n")[0].strip(_ENDINGS)


def _for_model(case: Case, value: float) -> float:
    return 1.0 - value if case.order == BASELINE_FIRST else value
