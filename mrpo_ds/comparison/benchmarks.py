"""Results document by document, of benchmarks, preferences and judges: means, spreads, differences to a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mrpo_ds.comparison.averages import Average, headings
from mrpo_ds.comparison.methods import Method
from mrpo_ds.comparison.scores import (
    BENCHMARKS,
    JUDGED,
    OF_PREFERENCES,
    Score,
    check_comparable,
    estimated,
    paired,
)
from mrpo_ds.comparison.statistics import Spread, cohens_d, ranks_of, spread_of
from mrpo_ds.comparison.tables import Cell, Column, Number, Table

BASE = "base"
Kind = TypeVar("Kind", Score, Average)
TITLES = {
    BENCHMARKS: "Benchmarks",
    OF_PREFERENCES: "Preferences of eval-preferences",
    JUDGED: "Judged answers",
}


@dataclass(frozen=True)
class Entry:
    """One row of the tables: a method, or the base model, with its scores by task, one per seed."""

    label: str
    seeds: str
    scores: dict[str, list[Score]]
    averages: dict[str, list[Average]]
    """By key, one per seed."""

    def of(self, task: str) -> list[Score]:
        """Its scores of a task; none where it lacks it."""
        return self.scores.get(task, [])


@dataclass(frozen=True)
class Field:
    """Results of one kind that are compared: rows, and the tasks that any of them has."""

    name: str
    """Of the tables' files: benchmarks | preferences | judged."""
    title: str
    entries: Sequence[Entry]
    baseline: str
    tasks: Sequence[str]

    def sample(self, task: str) -> Score:
        """Any score of a task."""
        return next(entry.scores[task][0] for entry in self.entries if task in entry.scores)

    @property
    def titles(self) -> dict[str, str]:
        """Key -> heading of the averages that any row has."""
        return headings([seeds[0] for entry in self.entries for seeds in entry.averages.values()])

    @property
    def averages(self) -> dict[str, str]:
        """The same of those that every row has."""
        return {key: title for key, title in self.titles.items() if not self.without(key)}

    def without(self, key: str) -> list[str]:
        """Rows that lack some of what counts in an average."""
        return [entry.label for entry in self.entries if key not in entry.averages]


def field_of(methods: Sequence[Method], baseline: Method, kind: str) -> Field | None:
    """The results of all methods and of their base; None when there are none.

    kind: see Score.kind. Raises ConfigError when two results of one task are
    not about the same documents in the same way.
    """
    entries = []
    runs = [run for method in [baseline, *methods] for run in method.runs]
    base: dict[str, list[Score]] = {}
    for score in (score for run in runs for score in run.base_scores if score.kind == kind):
        base.setdefault(score.task, [score])
    if base and len({run.config["model"]["path"] for run in runs}) == 1:
        averages = {one.key: [one] for run in runs for one in run.base_averages} if kind == BENCHMARKS else {}
        entries.append(Entry(BASE, "", base, averages))
    for method in methods:
        scores = _of_all([{score.task: score for score in run.scores if score.kind == kind} for run in method.runs])
        averages = _of_all([{one.key: one for one in run.averages} for run in method.runs])
        if scores:
            entries.append(Entry(method.label, method.seeds, scores, averages if kind == BENCHMARKS else {}))
    tasks = list(dict.fromkeys(task for entry in entries for task in entry.scores))
    for task in tasks:
        first, *others = [score for entry in entries for score in entry.of(task)]
        for other in others:
            check_comparable(first, other)
    if all(entry.label == BASE for entry in entries):
        return None
    return Field(kind, TITLES[kind], entries, baseline.label, tasks)


def _of_all(found: Sequence[Mapping[str, Kind]]) -> dict[str, list[Kind]]:
    """Name -> what each seed has, of the names that all have."""
    first, *others = found
    return {name: [one[name] for one in found] for name in first if all(name in one for one in others)}


def tables_of(field: Field) -> list[Table]:
    """Means with errors over documents; over seeds, where a method has several; differences to the baseline."""
    tables = [_means(field)]
    if any(len(scores) > 1 for entry in field.entries for scores in entry.scores.values()):
        tables.append(_over_seeds(field))
    if any(entry.label == field.baseline for entry in field.entries) and len(field.entries) > 1:
        tables.append(_differences(field))
    return tables


def _means(field: Field) -> Table:
    columns = [Column("method"), Column("seeds"), *(_column(field, task, "stderr") for task in field.tasks)]
    averages = field.averages
    columns += [_average_column(title, "stderr") for title in averages.values()]
    rows: list[list[Cell]] = []
    for entry in field.entries:
        row: list[Cell] = [entry.label, entry.seeds]
        row += [_mean(entry.of(task)) for task in field.tasks]
        row += [_mean_average(entry.averages[key]) for key in averages]
        rows.append(row)
    notes = ["+- is the standard error over documents."]
    if field.name == JUDGED:
        judges = dict.fromkeys(str(field.sample(task).settings["judge name"]) for task in field.tasks)
        notes.append(f"Judge: {', '.join(judges)}.")
    if any(": vref@" in task for task in field.tasks):
        notes.append(
            "objective: each method's own rewards. vref: against a virtual reference; the four digits tell those apart "
            "that are made of other models or with other options."
        )
    return Table(field.name, field.title, columns, rows, [*notes, *_notes_of_averages(field)])


def _notes_of_averages(field: Field) -> list[str]:
    """How the averages are made, and why one is not there."""
    notes = []
    for key, title in field.titles.items():
        one = next(entry.averages[key][0] for entry in field.entries if key in entry.averages)
        if lacking := field.without(key):
            notes.append(f"No {title}: {', '.join(lacking)} lack some of {', '.join(one.tasks)}.")
        else:
            mapped = ", scores mapped so that guessing is 0" if one.is_normalized else ""
            notes.append(f"{title}: over {', '.join(one.tasks)} as the suite defines it{mapped}.")
    if field.averages and any(len(seeds) > 1 for entry in field.entries for seeds in entry.averages.values()):
        notes.append("An average of several seeds has no error over documents; its spread is over seeds.")
    return notes


def _over_seeds(field: Field) -> Table:
    shown = [_column(field, task, "std") for task in field.tasks]
    shown += [_average_column(title, "std") for title in field.averages.values()]
    columns = [Column("method"), Column("seeds")]
    for column in shown:
        columns += [column, Column(f"d of {column.name}", digits=2, signed=True)]
    spreads = {entry.label: _spreads(field, entry) for entry in field.entries}
    trained = [label for label in spreads if label != BASE]
    marks = {
        column.name: dict(zip(trained, ranks_of([spreads[label][column.name] for label in trained]), strict=True))
        for column in shown
        if all(column.name in spreads[label] for label in trained)
    }
    rows: list[list[Cell]] = []
    for entry in field.entries:
        row: list[Cell] = [entry.label, entry.seeds]
        for name in (column.name for column in shown):
            ours, theirs = spreads[entry.label].get(name), spreads.get(field.baseline, {}).get(name)
            mark = marks.get(name, {}).get(entry.label, "")
            row.append(Number(None) if ours is None else Number(ours.mean, ours.std, mark))
            known = ours is not None and theirs is not None and entry.label != field.baseline
            row.append(Number(cohens_d(ours, theirs) if known and ours and theirs else None))
        rows.append(row)
    notes = [
        f"+- is the standard deviation over seeds (n - 1). d: Cohen's effect size to {field.baseline}. Bold: the "
        "highest mean, with d >= 0.5 to every other method; italic: the second."
    ]
    return Table(f"{field.name}_seeds", f"{field.title}, over seeds", columns, rows, notes)


def _spreads(field: Field, entry: Entry) -> dict[str, Spread]:
    """Heading of a task or an average -> its spread over the seeds of a row."""
    found = {task: spread_of([score.value for score in scores]) for task, scores in entry.scores.items()}
    averages = {title: entry.averages[key] for key, title in field.averages.items()}
    return found | {title: spread_of([one.value for one in seeds]) for title, seeds in averages.items()}


def _differences(field: Field) -> Table:
    theirs = next(entry for entry in field.entries if entry.label == field.baseline)
    tasks = [task for task in field.tasks if task in theirs.scores]
    columns = [Column("method"), Column("seeds")]
    columns += [_column(field, task, "stderr", signed=True) for task in tasks]
    rows: list[list[Cell]] = []
    for entry in field.entries:
        if entry is theirs:
            continue
        row: list[Cell] = [entry.label, entry.seeds]
        for task in tasks:
            found = paired(entry.scores[task], theirs.scores[task]) if task in entry.scores else None
            row.append(Number(None) if found is None else Number(found.mean, found.stderr))
        rows.append(row)
    notes = [
        f"Difference to {field.baseline} on the same documents (equal prompts and targets), values averaged over seeds "
        "first. +- is its standard error over documents; a difference within about two of them may be chance."
    ]
    no_means = [task for task in tasks if not all(one.is_mean for entry in field.entries for one in entry.of(task))]
    if no_means:
        notes.append(
            f"{', '.join(no_means)}: the value is no mean over documents (that of IFEval's instructions is over "
            "instructions); the difference is of the documents' own values, each document (prompt) counting alike."
        )
    return Table(f"{field.name}_paired", f"{field.title}: difference to {field.baseline}", columns, rows, notes)


def _mean(scores: Sequence[Score]) -> Number:
    """The task's own number, averaged over seeds; its error over documents."""
    if not scores:
        return Number(None)
    found = estimated(scores)
    return Number(found.mean, found.stderr)


def _mean_average(seeds: Sequence[Average]) -> Number:
    return Number(spread_of([one.value for one in seeds]).mean, seeds[0].stderr if len(seeds) == 1 else None)


def _average_column(title: str, spread: str) -> Column:
    return Column(title, spread, 1, percent=True)


def _column(field: Field, task: str, spread: str, signed: bool = False) -> Column:
    percent = field.sample(task).percent
    is_margin = not percent and field.name == OF_PREFERENCES
    return Column(task, spread, 1 if percent else 3, percent=percent, signed=signed or is_margin)
