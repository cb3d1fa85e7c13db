"""The files of eval-preferences: one JSON per model and set, and the table over them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.tables import Column, Number, Table
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.manifest import write_atomic

RESULTS_FOLDER = "preferences"
"""Below --out, or eval/ of a run."""
RESULT_KEYS = (
    "model",
    "model_path",
    "kind",
    "set",
    "rows",
    "reading",
    "references",
    "virtual_reference",
    "metrics",
    "documents",
)
Result = dict[str, Any]


def write_result(out: Path, result: Result) -> Path:
    """Write <out>/preferences/<model>/<set>.json, whole or not at all. Raises ConfigError when that fails."""
    path = out / RESULTS_FOLDER / str(result["model"]) / f"{result['set']}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(_finite(result), allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; make room or choose another place with --out."
        ) from error
    return path


def read_results(directory: Path) -> list[tuple[Path, Result]]:
    """Every result below <directory>/preferences, ordered by path. Raises DataError for a file that is none."""
    found = [(path, read_json(path)) for path in sorted((directory / RESULTS_FOLDER).glob("*/*.json"))]
    for path, result in found:
        if missing := [key for key in RESULT_KEYS if key not in result]:
            raise DataError(f"{path} has no {missing[0]!r}: it is no result of `mrpo-ds eval-preferences`; remove it.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises DataError when it is torn or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); make it again, or remove it.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is no JSON object; make it again, or remove it.")
    return value


def preference_table(results: Sequence[Result]) -> Table:
    """Accuracy, ties and margin of every model on every set; intervals stand in the JSON files."""
    references = list(dict.fromkeys(name for result in results for name in result["references"]))
    prefixes = ["objective", "logps", "vref", *(f"against/{name}" for name in references)]
    known = {measure for result in results for measure in result["metrics"]}
    columns = [Column("set"), Column("model"), Column("n", digits=0)]
    measures = []
    for prefix in prefixes:
        for kind in ("accuracy", "ties", "margin"):
            if f"{prefix}/{kind}" in known:
                measures.append(f"{prefix}/{kind}")
                is_share = kind != "margin"
                digits = 1 if is_share else 3
                columns.append(Column(measures[-1], "stderr", digits, percent=is_share, signed=not is_share))
    rows = [
        [result["set"], _label(result), Number(float(len(result["documents"]["id"]))), *_numbers(result, measures)]
        for result in results
    ]
    first = results[0]
    notes = [
        f"objective: rewards of loss {first['loss']['name']}. logps: summed log-probs, no reference. vref and against: "
        f"beta = {first['beta']:g} times the log-ratio to the virtual and to each reference.",
        "Accuracy is strict (chosen > rejected); ties are counted apart. +- is the standard error over documents; the "
        f"JSON files have bootstrap intervals ({first['bootstrap']['confidence']:.0%}, "
        f"{first['bootstrap']['resamples']} resamples, seed {first['bootstrap']['seed']}).",
    ]
    return Table("table", "Preferences on held-out documents", columns, rows, notes)


def _numbers(result: Result, measures: Iterable[str]) -> list[Number]:
    none = {"mean": None, "stderr": None}
    found = [result["metrics"].get(measure, none) for measure in measures]
    return [Number(one["mean"], one["stderr"]) for one in found]


def _label(result: Result) -> str:
    return f"{result['model']} (reference)" if result["kind"] == "reference" else str(result["model"])


def _finite(value: Any) -> Any:
    """The value with null for each NaN or infinity, which JSON cannot say."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
