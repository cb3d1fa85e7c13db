"""What compare reads of a run directory: its configuration, evaluations, summary, and the results in its eval/."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.averages import Average, Cell, Sweep, read_sweeps
from mrpo_ds.comparison.judged import read_judged
from mrpo_ds.comparison.owners import Owner
from mrpo_ds.comparison.results import read_json, read_results
from mrpo_ds.comparison.scores import OF_PREFERENCES, Score, from_cell, from_preferences
from mrpo_ds.config.load import read_plain
from mrpo_ds.errors import ConfigError, DataError, require
from mrpo_ds.tracking import read_jsonl

EVALS = "evals.jsonl"
EXAMPLES = "output_dir of a run"
OWN, BASE = "own", "base"


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it has come."""

    directory: Path
    config: dict[str, Any]
    """Resolved, as plain values; another version may have written it."""
    evals: list[dict[str, Any]]
    """Rows of evals.jsonl by step."""
    summary: dict[str, Any] | None
    """None of a run that is not finished."""
    scores: list[Score]
    """Of the run's own model, document by document: benchmarks, then preferences."""
    base_scores: list[Score]
    """Of the model it started from."""
    averages: list[Average]
    """Of the run's own model, one for each suite that it has all of."""
    base_averages: list[Average]
    strangers: list[str]
    """Models with results that are neither, in its eval/; elsewhere those that seemed to be one."""

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    @property
    def seed(self) -> int:
        """train.seed."""
        return int(self.config["train"]["seed"])

    @property
    def last_step(self) -> int | None:
        """Of the last evaluation, if there is one."""
        return int(self.evals[-1]["step"]) if self.evals else None

    def held_out_rows(self) -> Any:
        """What says which held-out rows were evaluated: their digest, or without one the sources and how many."""
        if self.summary and "eval" in self.summary.get("rows", {}):
            return self.summary["rows"]["eval"]
        count = self.evals[-1].get("prompts") if self.evals else None
        return {"data.eval": self.config["data"]["eval"], "prompts": count}


def read_runs(directories: Sequence[str], results: Sequence[str] = ()) -> list[RunRecord]:
    """All runs, in order. Raises ConfigError or DataError for the first that cannot be compared.

    Args:
        directories: of the runs.
        results: further folders of results of `mrpo-ds eval`, eval-preferences and judge, besides eval/ of each run.
    """
    for folder in results:
        require(
            Path(folder).is_dir(),
            "--results",
            folder,
            "a folder that `mrpo-ds eval`, eval-preferences or judge has made",
        )
    bases: dict[str, Owner] = {}
    runs = [_read_run(Path(directory), [Path(folder) for folder in results], bases) for directory in directories]
    places = [run.directory.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        require(places.count(place) == 1, "RUN", str(run.directory), "every run once")
    return runs


def _read_run(directory: Path, results: Sequence[Path], bases: dict[str, Owner]) -> RunRecord:
    """What there is of one run, its results in other folders too. A torn last line of evals.jsonl is left out.

    bases: the base models of earlier runs by path; this one's is added.

    Raises:
        ConfigError: it is no run directory.
        DataError: a file of it is damaged, or it has nothing to compare.
    """
    if not (directory / "config.yaml").is_file():
        why = "it has no config.yaml" if directory.is_dir() else "there is no such directory"
        raise ConfigError(
            f"{str(directory)!r} is no run directory: {why}; allowed: directories that `mrpo-ds train` has made "
            "(output_dir)."
        )
    config = read_plain(str(directory / "config.yaml"), "run configuration", EXAMPLES)
    for section, key in (("train", "seed"), ("data", "eval"), ("loss", "name"), ("model", "path")):
        if key not in (config.get(section) or {}):
            raise DataError(f"{directory / 'config.yaml'} has no {section}.{key}; it is no resolved configuration.")
    evals = _evals(directory / EVALS)
    summary_path = directory / "summary.json"
    summary = read_json(summary_path) if summary_path.exists() else None
    base_path = str(config["model"]["path"])
    found = _Results(directory, bases.setdefault(base_path, Owner(base_path)))
    for folder in (directory / "eval", *results):
        found.take(folder, is_own_folder=folder not in results)
    if not evals and not found.own.scores:
        others = f" There are some of others: {', '.join(found.strangers)}." if found.strangers else ""
        raise DataError(
            f"the run {str(directory)!r} has nothing to compare: {EVALS} has no rows and eval/ has no results of its "
            f"model.{others} Train it with data.eval, or run `mrpo-ds eval` or `mrpo-ds eval-preferences` on it."
        )
    own, base = found.own, found.base
    return RunRecord(
        directory=directory,
        config=config,
        evals=evals,
        summary=summary,
        scores=list(own.scores.values()),
        base_scores=list(base.scores.values()),
        averages=list(own.averages.values()),
        base_averages=list(base.averages.values()),
        strangers=found.strangers,
    )


def _evals(path: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            raise DataError(f"{path} row {number} has no step; remove that line to go on.")
    return sorted(rows, key=lambda row: int(row["step"]))


class _Owned:
    """What is known of one model."""

    def __init__(self, whose: str) -> None:
        self.scores: dict[str, Score] = {}
        """By task."""
        self.averages: dict[str, Average] = {}
        """By key."""
        self._whose = whose
        """For messages."""

    def add(self, scores: Sequence[Score]) -> None:
        """Add what one file says. Raises DataError when another one says something else."""
        for score in scores:
            other = self.scores.setdefault(score.task, score)
            if other.documents != score.documents or other.hashes != score.hashes:
                raise DataError(
                    f"{self._whose} has two results of {score.task}: {other.place} and {score.place}; keep the one "
                    "that counts."
                )

    def average(self, sweep: Sweep, cells: Sequence[Cell]) -> None:
        """Add the average of its cells of a sweep, if it has all that count."""
        found = sweep.average(cells)
        if found is not None:
            self.averages.setdefault(found.key, found)


class _Results:
    """Collects what folders of results say about a run's model and its base."""

    def __init__(self, directory: Path, base: Owner) -> None:
        self.own = _Owned(f"the model of the run {str(directory)!r}")
        self.base = _Owned(f"the base model of the run {str(directory)!r}")
        self.strangers: list[str] = []
        """See RunRecord."""
        self._owners = {OWN: Owner(str(directory / "model")), BASE: base}

    def take(self, folder: Path, is_own_folder: bool) -> None:
        """Add the results of a folder: of one sweep, or of several, each in a folder of its own."""
        for sweep in read_sweeps(folder):
            cells: dict[str, list[Cell]] = {}
            for path, cell in sweep.cells:
                owner = self._take(cell, [from_cell(cell, str(path))], is_own_folder)
                cells.setdefault(owner, []).append(cell)
            self.own.average(sweep, cells.get(OWN, []))
            self.base.average(sweep, cells.get(BASE, []))
        for path, result in read_results(folder):
            self._take(result, from_preferences(result, str(path)), is_own_folder)
        for row, score in read_judged(folder):
            self._take(row, [score], is_own_folder)

    def _take(self, record: Mapping[str, Any], scores: Sequence[Score], is_own_folder: bool) -> str:
        """Add what a file says of a model, if it is one of the two. Returns OWN, BASE or ''."""
        owner = next((name for name, one in self._owners.items() if one.owns(record)), "")
        if owner == OWN:
            self.own.add(scores)
        elif owner == BASE:
            # Its rewards depend on whose references it is measured with; its log-probs do not.
            self.base.add([one for one in scores if one.kind != OF_PREFERENCES or one.measure.startswith("logps/")])
        elif record.get("kind") != "reference":
            why = next(filter(None, (one.why_not(record) for one in self._owners.values())), "")
            self._note(str(record.get("model")), why, is_own_folder)
        return owner

    def _note(self, model: str, why: str, is_own_folder: bool) -> None:
        """Keep that there are results of somebody else, where that may surprise."""
        shown = f"{model} ({why})" if why else model
        if (is_own_folder or why) and shown not in self.strangers:
            self.strangers.append(shown)


def finite(value: Any) -> float | None:
    """A number of a metrics file, None where there is none or where it was not finite."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None
