"""Results document by document, of benchmarks, preferences and judges: means, spreads, differences to a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_ds.comparison.methods import Method
from mrpo_ds.comparison.scores import (
    BENCHMARKS,
    JUDGED,
    OF_PREFERENCES,
    Score,
    check_comparable,
    mean_documents,
    paired,
)
from mrpo_ds.comparison.statistics import cohens_d, estimate_of, ranks_of, spread_of
from mrpo_ds.comparison.tables import Cell, Column, Number, Table

BASE = "base"
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
    def common(self) -> list[str]:
        """Tasks that every row has."""
        return [task for task in self.tasks if all(task in entry.scores for entry in self.entries)]


def field_of(methods: Sequence[Method], baseline: Method, kind: str) -> Field | None:
    """The results of all methods and of their base; None when there are none.

    kind: see Score.kind. Raises ConfigError when two results of one task are
    not about the same documents in the same way.
    """
    entries = []
    base: dict[str, list[Score]] = {}
    for method in [baseline, *methods]:
        for run in method.runs:
            for score in run.base_scores:
                if score.kind == kind:
                    base.setdefault(score.task, [score])
    if base and len({run.config["model"]["path"] for method in methods for run in method.runs}) == 1:
        entries.append(Entry(BASE, "", base))
    for method in methods:
        of_runs = [{score.task: score for score in run.scores if score.kind == kind} for run in method.runs]
        tasks = [task for task in of_runs[0] if all(task in one for one in of_runs)]
        if tasks:
            entries.append(Entry(method.label, method.seeds, {task: [one[task] for one in of_runs] for task in tasks}))
    tasks = list(dict.fromkeys(task for entry in entries for task in entry.scores))
    for task in tasks:
        first, *others = [score for entry in entries for score in entry.scores.get(task, [])]
        for other in others:
            check_comparable(first, other)
    if all(entry.label == BASE for entry in entries):
        return None
    return Field(kind, TITLES[kind], entries, baseline.label, tasks)


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
    averaged = field.common if field.name == BENCHMARKS and len(field.common) > 1 else []
    if averaged:
        columns.append(Column("average", digits=1, percent=True))
    rows: list[list[Cell]] = []
    for entry in field.entries:
        row: list[Cell] = [entry.label, entry.seeds]
        row += [_mean(entry.scores.get(task)) for task in field.tasks]
        if averaged:
            values = [_mean(entry.scores[task]).value or 0.0 for task in averaged]
            row.append(Number(sum(values) / len(values)))
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
    if averaged and len(averaged) < len(field.tasks):
        notes.append(f"average: of the tasks that every row has ({', '.join(averaged)}).")
    return Table(field.name, field.title, columns, rows, notes)


def _over_seeds(field: Field) -> Table:
    columns = [Column("method"), Column("seeds")]
    for task in field.tasks:
        columns += [_column(field, task, "std"), Column(f"d of {task}", digits=2, signed=True)]
    spreads = {
        entry.label: {task: spread_of([score.value for score in scores]) for task, scores in entry.scores.items()}
        for entry in field.entries
    }
    trained = [label for label in spreads if label != BASE]
    marks = {
        task: dict(zip(trained, ranks_of([spreads[label][task] for label in trained]), strict=True))
        for task in field.tasks
        if all(task in spreads[label] for label in trained)
    }
    rows: list[list[Cell]] = []
    for entry in field.entries:
        row: list[Cell] = [entry.label, entry.seeds]
        for task in field.tasks:
            ours, theirs = spreads[entry.label].get(task), spreads.get(field.baseline, {}).get(task)
            mark = marks.get(task, {}).get(entry.label, "")
            row.append(Number(None) if ours is None else Number(ours.mean, ours.std, mark))
            known = ours is not None and theirs is not None and entry.label != field.baseline
            row.append(Number(cohens_d(ours, theirs) if known and ours and theirs else None))
        rows.append(row)
    notes = [
        f"+- is the standard deviation over seeds (n - 1). d: Cohen's effect size to {field.baseline}. Bold: the "
        "highest mean, with d >= 0.5 to every other method; italic: the second."
    ]
    return Table(f"{field.name}_seeds", f"{field.title}, over seeds", columns, rows, notes)


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
    return Table(f"{field.name}_paired", f"{field.title}: difference to {field.baseline}", columns, rows, notes)


def _mean(scores: Sequence[Score] | None) -> Number:
    """The task's own number, averaged over seeds; its error over documents."""
    if not scores:
        return Number(None)
    value = spread_of([score.value for score in scores]).mean
    stderr = scores[0].stderr if len(scores) == 1 else estimate_of(mean_documents(scores)).stderr
    return Number(value, stderr)


def _column(field: Field, task: str, spread: str, signed: bool = False) -> Column:
    percent = field.sample(task).percent
    is_margin = not percent and field.name == OF_PREFERENCES
    return Column(task, spread, 1 if percent else 3, percent=percent, signed=signed or is_margin)
