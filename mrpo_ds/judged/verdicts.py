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
    if benchmark.labels and record.get("first_token"):
        share = weighed(benchmark.labels, record["first_token"])
        if share is not None:
            return Verdict(case, _for_model(case, share))
    text = str(record.get("judgment") or "")
    found = list(dict.fromkeys(match.strip() for match in re.findall(benchmark.verdict, text)))
    failure = _failure(benchmark, found)
    if failure:
        cut = " (cut at max_tokens of the judge)" if record.get("finish_reason") == "length" else ""
        return Verdict(case, None, failure=failure + cut)
    if benchmark.is_scores:
        return Verdict(case, float(found[0]))
    meaning = benchmark.labels[found[0]]
    value = OUTCOMES[meaning.removesuffix("_much")]
    return Verdict(case, _for_model(case, value), meaning.endswith("_much"))


def weighed(labels: Mapping[str, str], first_token: Mapping[str, float]) -> float | None:
    """The judge's probability that A is better, ties half, given that it answers with one of the labels.

    Args:
        labels: label -> meaning, see Benchmark.labels.
        first_token: candidate -> log-prob, nats.

    Returns:
        None where no candidate is a label.
    """
    known = {label: first_token[label] for label in labels if label in first_token}
    if not known:
        return None
    largest = max(known.values())
    weights = {label: math.exp(value - largest) for label, value in known.items()}
    better = sum(OUTCOMES[labels[label].removesuffix("_much")] * weight for label, weight in weights.items())
    return better / sum(weights.values())


def failures_of(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those that say nothing."""
    return [verdict for verdict in verdicts if verdict.value is None]


def _failure(benchmark: Benchmark, found: Sequence[str]) -> str:
    """Why what was found is no verdict, or ""."""
    if not found:
        return "no verdict"
    if len(found) > 1:
        return f"several verdicts: {', '.join(found[:3])}"
    if not benchmark.is_scores:
        return "" if found[0] in benchmark.labels else f"unknown verdict {found[0][:40]!r}"
    if not re.fullmatch(r"\d+(\.\d+)?", found[0]):
        return f"no number: {found[0][:40]!r}"
    return "" if benchmark.lowest <= float(found[0]) <= benchmark.highest else f"out of range: {found[0][:40]}"


def _for_model(case: Case, value: float) -> float:
    return 1.0 - value if case.order == BASELINE_FIRST else value
