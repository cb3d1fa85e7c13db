"""The results of a judged evaluation: results.json, and the table of it as markdown."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.statistics import Bootstrap
from mrpo_ds.judged.benchmarks import Benchmark
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, conversation
from mrpo_ds.judged.records import Answer, Question
from mrpo_ds.judged.scoring import Summary, arena, games_of, summarize_pairs, summarize_scores
from mrpo_ds.judged.verdicts import Verdict, failures_of
from mrpo_ds.manifest import write_atomic

Results = dict[str, Any]
KIND = "judged"
SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Judged:
    """One model's verdicts, and what is known of its answers."""

    name: str
    path: str
    """Of the model or its answers; "" with files of verdicts."""
    verdicts: Sequence[Verdict]
    expected: int
    """Judgments that there should be."""
    answers: Sequence[Answer] = ()


@dataclass(frozen=True)
class Report:
    """What a table is made of."""

    name: str
    """Of the benchmark."""
    benchmark: Benchmark
    models: Sequence[Judged]
    baseline: str | None
    questions: Sequence[Question]
    how: Bootstrap
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()
    baseline_answers: Sequence[Answer] = field(default=())


def collect(report: Report) -> Results:
    """results.json: of every model its numbers, question by question too, and what was left out of them."""
    benchmark = report.benchmark
    categories = {question.id: question.category for question in report.questions}
    rows = []
    for judged in report.models:
        if benchmark.is_scores:
            summary = summarize_scores(judged.verdicts, categories, report.how)
        else:
            summary = summarize_pairs(judged.verdicts, report.how)
        rows.append({"model": judged.name, "model_path": judged.path, **summary, **_left_out(judged)})
    if benchmark.summary == "bradley_terry" and not benchmark.is_scores:
        verdicts = [verdict for judged in report.models for verdict in judged.verdicts]
        fitted = arena(games_of(verdicts, benchmark.much_weight), [one.name for one in report.models], report.how)
        rows = [{**row, "bradley_terry": fitted[row["model"]]} for row in rows]
    return {
        "kind": KIND,
        "benchmark": report.name,
        "description": benchmark.description,
        "protocol": benchmark.protocol,
        "summary": benchmark.summary,
        "scale": [benchmark.lowest, benchmark.highest],
        "baseline": report.baseline,
        "baseline_characters": _characters(report.baseline_answers),
        "confidence": report.how.confidence,
        "models": rows,
        "parse_failures": {row["model"]: parse_failures(row) for row in rows},
        "missing": sum(row["missing"] for row in rows),
        "notes": list(report.notes),
        "prompt_hashes": {question.id: prompt_hash(question) for question in report.questions},
        **report.settings,
    }


def parse_failures(row: Mapping[str, Any]) -> float:
    """Share of a model's judgments that have no verdict; 0 where there is none."""
    judgments = row["no_verdict"] + row["judged"]
    return row["no_verdict"] / judgments if judgments else 0.0


def prompt_hash(question: Question) -> str:
    """Digest of what is asked, all turns."""
    return hashlib.sha256(json.dumps([conversation(question), *question.turns[1:]]).encode()).hexdigest()[:16]


def write_results(results: Results, out: Path) -> None:
    """Write results.json and table.md. Raises OSError."""
    write_atomic(out / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "table.md", as_markdown(results).encode())


def as_markdown(results: Results) -> str:
    """The table, and below it what one must know to read it."""
    lines = [f"# {results['benchmark']}: {results['description']}", ""]
    if results["notes"]:
        lines += [*(f"> {note}" for note in results["notes"]), ""]
    columns = _score_columns(results) if results["protocol"] == "scores" else _pair_columns(results)
    columns += [("judged", lambda row: str(row["judged"])), ("no verdict", _no_verdict)]
    lines += [f"| model | {' | '.join(title for title, _ in columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {row['model']} | {' | '.join(shown(row) for _, shown in columns)} |" for row in results["models"]]
    lines += ["", *_legend(results)]
    for row in results["models"]:
        if row["cut_answers"]:
            lines.append(
                f"{row['model']}: {row['cut_answers']} answers reached max_new_tokens and were judged as they are."
            )
        if row["missing"]:
            lines.append(f"{row['model']}: {row['missing']} judgments are missing.")
        if row["failures"]:
            shown = "; ".join(f"{reason} ({count})" for reason, count in row["failures"].items())
            lines.append(f"{row['model']}: judgments without a verdict, which are not scored: {shown}.")
    return "\n".join(lines) + "\n"


def _left_out(judged: Judged) -> Summary:
    failed = failures_of(judged.verdicts)
    reasons: dict[str, int] = {}
    for verdict in failed:
        reasons[verdict.failure] = reasons.get(verdict.failure, 0) + 1
    common = sorted(reasons.items(), key=lambda item: -item[1])[:SHOWN_FAILURES]
    return {
        "no_verdict": len(failed),
        "failures": dict(common),
        "missing": max(0, judged.expected - len({verdict.case for verdict in judged.verdicts})),
        "cut_answers": sum(not all(answer.finished) for answer in judged.answers),
        "characters": _characters(judged.answers),
    }


def _characters(answers: Sequence[Answer]) -> float | None:
    """Mean length of an answer: judges tend to like long ones."""
    lengths = [len(turn) for answer in answers for turn in answer.turns]
    return sum(lengths) / len(lengths) if lengths else None


def _score_columns(results: Results) -> list[tuple[str, Any]]:
    turns = list(dict.fromkeys(turn for row in results["models"] for turn in row["turns"]))
    categories = list(dict.fromkeys(name for row in results["models"] for name in row["categories"]))
    columns = [("score", lambda row: _number(row["mean"], row["stderr"])), _interval_column(results, "interval", 1, 2)]
    columns += [(f"turn {turn}", lambda row, turn=turn: _number(row["turns"].get(turn))) for turn in turns]
    columns += [(name, lambda row, name=name: _number(row["categories"].get(name))) for name in categories]
    return columns


def _pair_columns(results: Results) -> list[tuple[str, Any]]:
    columns: list[tuple[str, Any]] = []
    if results["summary"] == "bradley_terry":
        columns.append(("Bradley-Terry win rate", lambda row: _number(row["bradley_terry"]["rate"], None, 100, 1)))
        columns.append(
            (_interval_title(results), lambda row: _range(row["bradley_terry"]["interval"], 100, 1)),
        )
    columns.append(("win rate, ties half", lambda row: _number(row["win_rate"], row["stderr"], 100, 1)))
    if results["summary"] != "bradley_terry":
        columns.append(_interval_column(results, "interval", 100, 1))
    columns.append(("win / tie / lose", _shares))
    orders = list(dict.fromkeys(order for row in results["models"] for order in row["orders"]))
    if len(orders) > 1:
        for order, title in ((MODEL_FIRST, "model first"), (BASELINE_FIRST, "baseline first")):
            columns.append((title, lambda row, order=order: _shares(row["orders"].get(order))))
        columns.append(("flipped", lambda row: _number(row["flipped"], None, 100, 1)))
    columns.append(("for the first shown", lambda row: _number(row["first_shown"], None, 100, 1)))
    if results["baseline_characters"] is not None:
        columns.append(("characters", lambda row: _number(row["characters"], None, 1, 0)))
    return columns


def _legend(results: Results) -> list[str]:
    if results["protocol"] == "scores":
        low, high = results["scale"]
        return [f"Means over all judged turns, {low:g} to {high:g}; +- is the standard error over questions."]
    lines = [f"Percent against {results['baseline'] or 'the baseline'}; +- is the standard error over questions."]
    if any(len(row["orders"]) > 1 for row in results["models"]):
        lines.append(
            "win / tie / lose: the mean of both orders. flipped: questions whose outcome changes with the order. "
            "For the first shown: 50 for a judge without a position bias."
        )
    else:
        lines.append("Judged in one order only: what the judge likes about the place of an answer is in these numbers.")
    if results["baseline_characters"] is not None:
        lines.append(f"Answers of {results['baseline']} have {results['baseline_characters']:.0f} characters.")
    return lines


def _no_verdict(row: Mapping[str, Any]) -> str:
    total = row["no_verdict"] + row["judged"]
    return f"{row['no_verdict']} ({100 * row['no_verdict'] / total:.1f} %)" if row["no_verdict"] else "0"


def _interval_column(results: Results, key: str, times: float, digits: int) -> tuple[str, Any]:
    return _interval_title(results), lambda row: _range(row[key], times, digits)


def _interval_title(results: Results) -> str:
    return f"{100 * results['confidence']:g} % interval"


def _shares(row: Mapping[str, Any] | None) -> str:
    if row is None or row["win"] is None:
        return "-"
    return " / ".join(f"{100 * row[key]:.1f}" for key in ("win", "tie", "lose"))


def _number(value: float | None, stderr: float | None = None, times: float = 1, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{times * value:.{digits}f}" + ("" if stderr is None else f" +- {times * stderr:.{digits}f}")


def _range(interval: Sequence[float | None], times: float, digits: int) -> str:
    low, high = interval
    return "-" if low is None or high is None else f"{times * low:.{digits}f} to {times * high:.{digits}f}"
