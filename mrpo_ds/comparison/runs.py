"""What compare reads of a run directory: its configuration, evaluations, summary, and the results in its eval/."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.judged import read_judged
from mrpo_ds.comparison.results import read_json, read_results
from mrpo_ds.comparison.scores import OF_PREFERENCES, Score, from_cell, from_preferences
from mrpo_ds.config.load import read_plain
from mrpo_ds.errors import ConfigError, DataError, require
from mrpo_ds.tracking import read_jsonl

EVALS = "evals.jsonl"
EXAMPLES = "output_dir of a run"


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
    strangers: list[str]
    """Models with results in its eval/ that are neither."""

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
    runs = [read_run(Path(directory), [Path(folder) for folder in results]) for directory in directories]
    places = [run.directory.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        require(places.count(place) == 1, "RUN", str(run.directory), "every run once")
    return runs


def read_run(directory: Path, results: Sequence[Path] = ()) -> RunRecord:
    """What there is of one run, its results in other folders too. A torn last line of evals.jsonl is left out.

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
    found = _Results(directory, str(config["model"]["path"]))
    for folder in (directory / "eval", *results):
        found.take(folder, is_own_folder=folder not in results)
    if not evals and not found.own:
        raise DataError(
            f"the run {str(directory)!r} has nothing to compare: {EVALS} has no rows and eval/ has no results of its "
            "model. Train it with data.eval, or run `mrpo-ds eval` or `mrpo-ds eval-preferences` on it."
        )
    return RunRecord(
        directory, config, evals, summary, list(found.own.values()), list(found.base.values()), found.strangers
    )


def _evals(path: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            raise DataError(f"{path} row {number} has no step; remove that line to go on.")
    return sorted(rows, key=lambda row: int(row["step"]))


class _Results:
    """Collects what folders of results say about a run's model and its base."""

    def __init__(self, directory: Path, base_path: str) -> None:
        self.own: dict[str, Score] = {}
        """By task."""
        self.base: dict[str, Score] = {}
        self.strangers: list[str] = []
        """Other models of the run's own folder."""
        self._directory = directory
        self._base_path = base_path

    def take(self, folder: Path, is_own_folder: bool) -> None:
        """Add the results of a folder: of one sweep, or of several, each in a folder of its own."""
        files = sorted({*folder.glob("cells/*/*.json"), *folder.glob("*/cells/*/*.json")})
        records = [(cell, [from_cell(cell, str(path))]) for path, cell in ((path, read_json(path)) for path in files)]
        records += [(result, from_preferences(result, str(path))) for path, result in read_results(folder)]
        records += [(row, [score]) for row, score in read_judged(folder)]
        for record, scores in records:
            path = str(record.get("model_path", ""))
            if _is_own(path, self._directory):
                self._add(self.own, scores, "its model")
            elif path == self._base_path or Path(path).resolve() == Path(self._base_path).resolve():
                # Its rewards depend on whose references it is measured with; its log-probs do not.
                own = [one for one in scores if one.kind != OF_PREFERENCES or one.measure.startswith("logps/")]
                self._add(self.base, own, "its base model")
            elif is_own_folder and record.get("kind") != "reference" and str(record.get("model")) not in self.strangers:
                self.strangers.append(str(record.get("model")))

    def _add(self, known: dict[str, Score], scores: Sequence[Score], whose: str) -> None:
        for score in scores:
            other = known.setdefault(score.task, score)
            if other.documents != score.documents or other.hashes != score.hashes:
                raise DataError(
                    f"the run {str(self._directory)!r} has two results of {score.task} for {whose}: {other.place} and "
                    f"{score.place}; keep the one that counts."
                )


def _is_own(path: str, directory: Path) -> bool:
    """Whether a model is the run's, also where the run has been moved since."""
    model = directory / "model"
    return Path(path).resolve() == model.resolve() or Path(path).parts[-2:] == (directory.resolve().name, "model")


def finite(value: Any) -> float | None:
    """A number of a metrics file, None where there is none or where it was not finite."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None
