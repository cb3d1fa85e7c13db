"""The held-out preferences that runs recorded while they trained: last values over seeds, and curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo_ds.comparison.methods import Method
from mrpo_ds.comparison.runs import RunRecord, finite
from mrpo_ds.comparison.statistics import Spread, cohens_d, ranks_of, spread_of
from mrpo_ds.comparison.tables import Cell, Column, Number, Table
from mrpo_ds.errors import ConfigError

ACCURACY, TIES = "rewards/accuracies", "rewards/ties"
MEASURES = (
    ("accuracy", ACCURACY, True),
    ("ties", TIES, True),
    ("margin", "rewards/margins", False),
    ("log-prob accuracy", "logps/accuracies", True),
)
"""Heading, name in evals.jsonl, whether it is a share."""
EFFECTS = ("accuracy", "margin")
"""Measures that have an effect size and marks, as in the MRPO paper's Tables 1 and 2."""
AGAINST_FIRST = ("dpo", "ipo", "kto", "multi_ref_dpo")
"""Objectives whose rewards are relative to RefM1."""
AGAINST_ALL = ("mrpo", "mean_ref", "mdpo")
"""Objectives whose rewards are relative to a mixture of all references."""


@dataclass(frozen=True)
class Curve:
    """One measure of one method over training."""

    label: str
    steps: list[int]
    spreads: list[Spread]
    """Over seeds, per step."""


def held_out_table(methods: Sequence[Method], baseline: Method) -> Table | None:
    """Last held-out values: mean and standard deviation over seeds, Cohen's d to the baseline.

    None when no run evaluated. Raises ConfigError for seeds of a method that ended at different steps.
    """
    evaluated = [method for method in methods if all(run.evals for run in method.runs)]
    if not evaluated:
        return None
    columns = [Column("method"), Column("seeds"), Column("step", digits=0)]
    for name, _, share in MEASURES:
        columns.append(Column(name, "std", 1 if share else 3, percent=share, signed=not share))
    columns += [Column(f"d of {name}", digits=2, signed=True) for name in EFFECTS]
    last = {method.label: {name: _last(method, key) for name, key, _ in MEASURES} for method in evaluated}
    marks = {name: _marks([last[method.label][name] for method in evaluated]) for name in EFFECTS}
    rows: list[list[Cell]] = _base_rows(evaluated)
    for number, method in enumerate(evaluated):
        row: list[Cell] = [method.label, method.seeds, Number(float(_last_step(method)))]
        for name, _, _ in MEASURES:
            spread = last[method.label][name]
            row.append(_number(spread, marks[name][number] if name in marks else ""))
        row += [_effect(last, method, baseline, name) for name in EFFECTS]
        rows.append(row)
    notes = [
        "Rewards are those of each method's own objective. +- is the standard deviation over seeds (n - 1). Accuracy "
        "is strict: chosen > rejected; ties are counted apart.",
        f"d: Cohen's effect size to {baseline.label}, (m1 - m2) / sqrt((s1^2 + s2^2) / 2). Bold: the highest mean, "
        "with d >= 0.5 to every other method; italic: the second.",
        *_unfinished(evaluated),
        *(f"{method.label}: not every run evaluated held-out rows" for method in methods if method not in evaluated),
    ]
    return Table("held_out", "Held-out preferences at the end of training", columns, rows, notes)


def curves(methods: Sequence[Method], key: str) -> list[Curve]:
    """One curve per method that has this metric: at the steps that all of its seeds evaluated at.

    Accuracy before the first step is left out where the policy then is its own reference: all rewards are 0 there, and
    what is not a tie is rounding.
    """
    found = []
    for method in methods:
        by_step = [
            {
                int(row["step"]): value
                for row in run.evals
                if (value := finite(row.get(key))) is not None
                and not (key == ACCURACY and row["step"] == 0 and _starts_at_its_reference(run))
            }
            for run in method.runs
        ]
        steps = sorted(set.intersection(*map(set, by_step)))
        if steps:
            spreads = [spread_of([values[step] for values in by_step]) for step in steps]
            found.append(Curve(method.label, steps, spreads))
    return found


def _starts_at_its_reference(run: RunRecord) -> bool:
    """Whether a run's rewards are relative to the very model that it starts from, and to no other."""
    references = run.config.get("references") or []
    if not references or references[0]["path"] != run.config["model"]["path"]:
        return False
    name = run.config["loss"]["name"]
    return name in AGAINST_FIRST or (name in AGAINST_ALL and len(references) == 1)


def _last_step(method: Method) -> int:
    steps = {run.directory: run.last_step for run in method.runs}
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{str(directory)!r} at step {step}" for directory, step in steps.items())
        raise ConfigError(
            f"runs that differ only in their seed ended at different steps: {said}. Finish them with --resume auto, or "
            "leave some out."
        )
    step = next(iter(steps.values()))
    assert step is not None, "a method without evaluations has no row"
    return step


def _last(method: Method, key: str) -> Spread | None:
    values = [finite(run.evals[-1].get(key)) for run in method.runs]
    known = [value for value in values if value is not None]
    return spread_of(known) if len(known) == len(values) else None


def _base_rows(methods: Sequence[Method]) -> list[list[Cell]]:
    """The models that runs started from: what they say without any objective, before the first step."""
    rows: list[list[Cell]] = []
    seen: dict[str, RunRecord] = {}
    for method in methods:
        for run in method.runs:
            if run.evals[0]["step"] == 0:
                seen.setdefault(str(run.config["model"]["path"]), run)
    for path, run in seen.items():
        label = "base" if len(seen) == 1 else f"base {path}"
        values = {"log-prob accuracy": finite(run.evals[0].get("logps/accuracies"))}
        row: list[Cell] = [label, "", Number(0.0)]
        row += [Number(values.get(name)) for name, _, _ in MEASURES]
        rows.append([*row, *(Number(None) for _ in EFFECTS)])
    return rows


def _number(spread: Spread | None, mark: str) -> Number:
    return Number(None) if spread is None else Number(spread.mean, spread.std, mark)


def _marks(spreads: Sequence[Spread | None]) -> list[str]:
    known = [spread for spread in spreads if spread is not None]
    return ranks_of(known) if len(known) == len(spreads) else [""] * len(spreads)


def _effect(last: dict[str, dict[str, Spread | None]], method: Method, baseline: Method, name: str) -> Number:
    ours, theirs = last[method.label][name], last.get(baseline.label, {}).get(name)
    if method is baseline or ours is None or theirs is None:
        return Number(None)
    return Number(cohens_d(ours, theirs))


def _unfinished(methods: Sequence[Method]) -> list[str]:
    runs = [run for method in methods for run in method.runs if run.summary is None]
    return [f"{run.directory} is not finished: it has no summary.json." for run in runs]
