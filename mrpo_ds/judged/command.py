"""mrpo-ds judge: answers, judgments, verdicts, table; each step goes on where an earlier command was ended."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.statistics import Bootstrap
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError, DataError, MrpoError, require, require_choice
from mrpo_ds.judged.answer_files import read_answers
from mrpo_ds.judged.asking import Asked, ask_all
from mrpo_ds.judged.benchmarks import Benchmark, find_benchmark, load_benchmark
from mrpo_ds.judged.judge import Judge, load_judge
from mrpo_ds.judged.judgments import Judgments, Record
from mrpo_ds.judged.prompts import MODEL_FIRST, Call, pair_calls, score_calls
from mrpo_ds.judged.questions import QuestionSet, read_questions, with_references
from mrpo_ds.judged.records import Answer, Question
from mrpo_ds.judged.results import Judged, Report, Results, as_markdown, collect, write_results
from mrpo_ds.judged.verdict_files import models_of, origin_of, read_verdict_files
from mrpo_ds.judged.verdicts import Verdict, read_verdict
from mrpo_ds.leaderboard.candidates import Candidate, check_candidate, find_candidates
from mrpo_ds.locks import locked

VERSIONED = ("torch", "transformers", "httpx")
Answers = Mapping[str, Answer]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    bench: str
    models: Sequence[str] = ()
    questions: str | None = None
    judge: str | None = None
    verdicts: Sequence[str] | None = None
    baseline: str | None = None
    reference_answers: str | None = None
    single_order: bool = False
    max_cost: float | None = None
    retry_unread: bool = False
    limit: int | None = None
    out: str | None = None
    seed: int = 0
    resamples: int = 1000
    backend: str = "transformers"
    device: str | None = None

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, ">= 1 question")
        require(self.seed >= 0, "--seed", self.seed, ">= 0")
        require(self.resamples >= 1, "--resamples", self.resamples, ">= 1")
        require_choice("--backend", self.backend, ("transformers", "vllm"))
        require(self.max_cost is None or self.max_cost > 0, "--max-cost", self.max_cost, "> 0 USD")
        if (self.judge is None) == (self.verdicts is None):
            raise ConfigError("who judges is not said once; give --judge FILE or --verdicts FILE..., one of them.")
        if self.judge is not None:
            require(bool(self.models), "MODEL", [], "at least one with --judge")
        for key in ("baseline", "max_cost", "reference_answers") if self.verdicts is not None else ():
            value = getattr(self, key)
            require(value is None, f"--{key.replace('_', '-')}", value, "nothing with --verdicts, which asks nobody")
        asks = self.verdicts is None
        require(asks or not self.retry_unread, "--retry-unread", True, "nothing with --verdicts, which asks nobody")


@dataclass(frozen=True)
class Work:
    """What a command works with."""

    options: Options
    benchmark: Benchmark
    out: Path
    how: Bootstrap

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return find_benchmark(self.options.bench).stem


def run_judge(options: Options) -> int:
    """The judge command. Returns 0 when every judgment is there, enough have a verdict, and each model has one; else 1.

    Raises ConfigError or DataError for the user's mistakes, Stopped when it is told to stop, MrpoError when the judge,
    the cap or the disk ended it: what is finished is kept, and in the table.
    """
    benchmark = load_benchmark(options.bench)
    _check_protocol(options, benchmark)
    out = Path(options.out or Path("runs") / "judged" / find_benchmark(options.bench).stem)
    work = Work(options, benchmark, out, Bootstrap(options.resamples, options.seed))
    with locked(out, "mrpo-ds judge"):
        if options.verdicts is not None:
            return _finish(work, _from_files(work, options.verdicts), None)
        return _with_judge(work)


def _check_protocol(options: Options, benchmark: Benchmark) -> None:
    """Raise ConfigError for options that the protocol has no use for, or lacks."""
    if benchmark.is_scores:
        require(options.baseline is None, "--baseline", options.baseline, "nothing with protocol scores")
        require(not options.single_order, "--single-order", True, "nothing with protocol scores")
        return
    require(options.reference_answers is None, "--reference-answers", options.reference_answers, "nothing with pairs")
    named = options.baseline or benchmark.baseline
    if options.judge is not None:
        require(named is not None, "--baseline", None, "NAME=PATH of a model or of a file of answers, with pairs")


def _with_judge(work: Work) -> int:
    options, benchmark = work.options, work.benchmark
    judge = load_judge(str(options.judge))
    judge.secret()  # a key that is missing is told before answers are made
    if options.max_cost is not None:
        require(judge.has_prices, "--max-cost", options.max_cost, "nothing without usd_per_million_* of the judge")
    named = None if benchmark.is_scores else options.baseline or benchmark.baseline
    found = find_candidates([*options.models, *([] if named is None else [named])])
    candidates, baseline = (found, None) if named is None else (found[:-1], found[-1])
    asked = read_questions(benchmark, options.questions, options.limit)
    questions = asked.questions
    if benchmark.is_scores:
        questions = with_references(questions, options.reference_answers, benchmark.reference_categories)
    kept = Judgments(work.out)  # a damaged file is told before answers are made
    for candidate in found:
        if not Path(candidate.path).is_file():
            check_candidate(candidate)
    others = None if baseline is None else _answers(work, baseline, questions)
    answers = {candidate.name: _answers(work, candidate, questions) for candidate in candidates}
    calls = {
        candidate.name: _calls(work, candidate.name, questions, answers[candidate.name], others)
        for candidate in candidates
    }
    every = [call for one in calls.values() for call in one]
    log(f"{work.name}: {len(questions)} questions, {len(candidates)} models, {len(every)} judgments by {judge.model}")
    named = None if baseline is None else baseline.name
    outcome = ask_all(judge, every, named, kept, options.max_cost, partial(_retries, work))
    models = [
        Judged(
            candidate.name,
            candidate.path,
            _verdicts(work, judge, calls[candidate.name], kept),
            len(calls[candidate.name]),
            list(answers[candidate.name].values()),
        )
        for candidate in candidates
    ]
    report = Report(
        work.name,
        benchmark,
        models,
        None if baseline is None else baseline.name,
        questions,
        work.how,
        _settings(work, asked, judge, baseline) | {"spend": _spend(judge, every, kept, outcome)},
        _notes(work, judge, questions),
        list(others.values()) if others else (),
    )
    return _finish(work, report, outcome)


def _retries(work: Work, call: Call, record: Record) -> bool:
    return work.options.retry_unread and read_verdict(work.benchmark, call.case, record).value is None


def _answers(work: Work, candidate: Candidate, questions: Sequence[Question]) -> Answers:
    """By question: of a file, or of a model, which is asked what it has not answered yet."""
    if Path(candidate.path).is_file():
        answers = read_answers(candidate.path, questions)
    else:
        from mrpo_ds.judged.answers import answers_of

        options = work.options
        generation = replace(work.benchmark.generation, seed=options.seed)
        path = Path(candidate.path)
        answers = answers_of(candidate.name, path, questions, generation, work.out, options.backend, options.device)
    return {answer.question: answer for answer in answers}


def _calls(
    work: Work, name: str, questions: Sequence[Question], answers: Answers, others: Answers | None
) -> list[Call]:
    if others is None:
        return score_calls(work.benchmark, name, questions, answers)
    return pair_calls(work.benchmark, name, questions, answers, others, work.options.single_order)


def _verdicts(work: Work, judge: Judge, calls: Sequence[Call], kept: Judgments) -> list[Verdict]:
    records = [(call, kept.find(judge.key(call))) for call in calls]
    return [read_verdict(work.benchmark, call.case, record) for call, record in records if record is not None]


def _from_files(work: Work, files: Sequence[str]) -> Report:
    options, benchmark = work.options, work.benchmark
    found = read_verdict_files(benchmark, files)
    names = models_of(found, options.models)
    found = [one for one in found if one.verdict.case.model in names]
    questions: tuple[Question, ...] = ()
    asked = None
    notes = []
    there = len(found)
    if options.questions is not None or options.limit is not None:
        asked = read_questions(benchmark, options.questions, options.limit)
        questions = asked.questions
        known = {question.id for question in questions}
        found = [one for one in found if one.verdict.case.question in known]
        if len(found) < there:
            notes.append(f"{there - len(found)} verdicts on other questions are left out")
    if options.single_order:
        found = [one for one in found if one.verdict.case.order == MODEL_FIRST]
    if not found:
        raise DataError(
            f"none of the {there} verdicts of {', '.join(files)} is on one of the questions"
            f"{', with the model first' if options.single_order else ''}; give the files that belong to each other."
        )
    baseline, judge = origin_of(found)
    notes.insert(0, f"verdicts of {', '.join(files)}, judge {judge or 'not named'}")
    verdicts = [one.verdict for one in found]
    again = len(verdicts) - len({verdict.case for verdict in verdicts})
    if again:
        notes.append(f"{again} verdicts are second ones on the same answer; all of them count")
    turns = sum(len(question.turns) for question in questions)
    orders = len({verdict.case.order for verdict in verdicts})
    models = []
    for name in names:
        own = [verdict for verdict in verdicts if verdict.case.model == name]
        models.append(Judged(name, "", own, turns * orders if questions else 0))
    settings = _settings(work, asked, None, None)
    settings["settings"]["judge_of_verdicts"] = judge
    return Report(
        work.name,
        benchmark,
        models,
        baseline or None,
        questions,
        work.how,
        settings | {"verdict_files": list(files)},
        notes,
    )


def _finish(work: Work, report: Report, outcome: Asked | None) -> int:
    """Write and print the table, then say what ended the asking or is wrong with the judgments."""
    results = collect(report)
    try:
        write_results(results, work.out)
    except OSError as error:
        if outcome is None or outcome.end is None:
            raise MrpoError(
                f"--out {str(work.out)!r} cannot be written: {error.strerror}; make room, and run the same command "
                "again: judgments are kept."
            ) from error
    print(as_markdown(results), flush=True)
    failed = _failures(results, report.benchmark.max_parse_failures)
    for reason in failed:
        log(f"failed: {reason}")
    if outcome is not None:
        _say_spend(results, outcome)
        if outcome.end is not None:
            outcome.end.args = (f"{outcome.end}; {_kept(results)}",)
            raise outcome.end
    if results["missing"]:
        how = "the files lack them" if outcome is None else "the same command asks for them again"
        log(f"failed: {results['missing']} judgments are missing; {how}")
    return 1 if failed or results["missing"] else 0


def _failures(results: Results, allowed: float) -> list[str]:
    """What makes numbers of the judgments that are there useless. allowed: share of them without a verdict."""
    found = []
    for row in results["models"]:
        name = row["model"]
        share = results["parse_failures"][name]
        if share > allowed:
            found.append(
                f"{name}: {100 * share:.1f} % of the judgments have no verdict (max_parse_failures is "
                f"{100 * allowed:g} %): a judge that cannot keep the form of the prompt measures nothing"
            )
        elif not row["judged"]:
            found.append(f"{name}: there is no verdict")
    return found


def _kept(results: Results) -> str:
    there = sum(row["judged"] + row["no_verdict"] for row in results["models"])
    return f"{there} judgments are kept, {results['missing']} are missing, and the same command asks for those alone."


def _say_spend(results: Results, outcome: Asked) -> None:
    spend = results["spend"]
    cost = f"{spend['usd']:.4f} USD in all" if spend["usd"] is not None else "cost unknown, no prices given"
    tokens = f"{spend['input_tokens']} tokens in, {spend['output_tokens']} out"
    log(f"{outcome.new} judgments made now, {outcome.cached} were there; {tokens}; {cost}")


def _spend(judge: Judge, calls: Sequence[Call], kept: Judgments, outcome: Asked) -> dict[str, Any]:
    """What the judgments of the table took; usd is that of the whole folder, lost attempts among it."""
    records = {key: record for key in map(judge.key, calls) if (record := kept.find(key)) is not None}
    usage = [record.get("usage") or {} for record in records.values()]
    return {
        "usd": outcome.usd if judge.has_prices else None,
        "judgments": len(records),
        "input_tokens": sum(one.get("input_tokens") or 0 for one in usage),
        "output_tokens": sum(one.get("output_tokens") or 0 for one in usage),
        "without_usage": sum(one.get("input_tokens") is None for one in usage),
        "served_models": sorted({str(record.get("served_model")) for record in records.values()}),
    }


def _settings(work: Work, asked: QuestionSet | None, judge: Judge | None, baseline: Candidate | None) -> dict[str, Any]:
    """All that the numbers depend on. The judge's YAML has no secret in it."""
    options = work.options
    content = None
    if asked is not None:
        content = {"content": asked.content, "count": len(asked.questions), "skipped": asked.skipped}
    return {
        "settings": {
            "benchmark": asdict(work.benchmark),
            "single_order": options.single_order,
            "limit": options.limit,
            "seed": options.seed,
            "resamples": options.resamples,
            "backend": options.backend,
            "reference_answers": options.reference_answers,
            "baseline_path": None if baseline is None else baseline.path,
            "questions": content,
            "judge": None if judge is None else asdict(judge),
        },
        "versions": {name: version(name) for name in VERSIONED},
    }


def _notes(work: Work, judge: Judge, questions: Sequence[Question]) -> list[str]:
    options = work.options
    notes = [
        f"judge {judge.model}, prompts of {find_benchmark(options.bench).name}: comparable with numbers of the same "
        "judge and the same prompts only"
    ]
    if options.limit:
        notes.append(f"the first {len(questions)} questions only: not the figures of the benchmark")
    if options.single_order:
        notes.append("one order: the model's answer was always A")
    return notes
