"""What a run directory holds, read for a dashboard: a run that goes on, or lacks a part, says so in its notes."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mrpo_ds.dashboard.benchmarks import Score, read_scores
from mrpo_ds.dashboard.thin import Rows, number
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.tracking import read_jsonl

FILES = {"train": "metrics.jsonl", "eval": "evals.jsonl"}
"""Kind of a metric -> the file that its rows are in."""


@dataclass(frozen=True)
class Run:
    """One run, as far as it has come."""

    name: str
    path: Path
    rows: dict[str, Rows]
    """By kind, in the order of their steps."""
    summary: dict[str, Any]
    """summary.json; empty before the end of the run."""
    config: dict[str, str]
    """The settings of config.yaml by their dotted keys: texts as they are, others as JSON; empty without the file."""
    samples: list[dict[str, Any]]
    """samples.jsonl."""
    scores: list[Score]
    """Of benchmarks."""
    notes: tuple[str, ...]
    """What a reader must know about what is shown."""

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all numbers, train/ or eval/ before each, sorted."""
        named = {
            f"{kind}/{name}"
            for kind, rows in self.rows.items()
            for row in rows
            for name, value in row.items()
            if name != "step" and number(value) is not None
        }
        return sorted(named)

    def values(self, metric: str) -> list[float]:
        """The finite values of a metric, in the order of the steps."""
        kind, _, name = metric.partition("/")
        return [value for row in self.rows[kind] if (value := number(row.get(name))) is not None]

    def setting(self, key: str) -> str:
        """A setting as text, "" where the run has none or null."""
        value = self.config.get(key, "null")
        return "" if value == "null" else value


def read_runs(directories: Sequence[str]) -> list[Run]:
    """The runs of one or several directories, each with a name of its own.

    Raises:
        ConfigError: one is no run directory, or is there twice.
        DataError: a file in one is damaged.
    """
    paths = [Path(directory) for directory in directories]
    places: dict[Path, Path] = {}
    for path in paths:
        _check(path)
        if (earlier := places.setdefault(path.resolve(), path)) is not path:
            raise ConfigError(f"RUN {str(path)!r} is the directory of {str(earlier)!r} again; give each run once.")
    return [_read(path, name) for path, name in zip(paths, _names(list(places)), strict=True)]


def _check(path: Path) -> None:
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise ConfigError(f"RUN is {str(path)!r}, which {what}; give a run directory (output_dir of mrpo-ds train).")
    if (path / FILES["train"]).is_file():
        return
    inside = sorted(str(file.parent) for file in path.glob(f"*/{FILES['train']}"))
    hint = "give the output_dir of mrpo-ds train."
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        hint = f"there are runs in it: {', '.join(inside[:3])}{more}; give those."
    raise ConfigError(f"RUN is {str(path)!r}, which has no {FILES['train']}, so it is no run directory; {hint}")


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(path: Path, name: str) -> Run:
    rows, notes = {}, []
    for kind, file in FILES.items():
        rows[kind] = _rows(path / file)
        notes += _file_notes(path / file, rows[kind])
    summary, said = _summary(path / "summary.json")
    config, missing = _config(path / "config.yaml")
    notes += said + missing + _state_notes(path, rows["train"], summary)
    scores, unread = read_scores(path)
    return Run(name, path, rows, summary, config, read_jsonl(path / "samples.jsonl"), scores, (*notes, *unread))


def _rows(path: Path) -> Rows:
    try:
        rows = read_jsonl(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give leave to read it.") from error
    for place, row in enumerate(rows, start=1):
        step = number(row.get("step"))
        if step is None or step != int(step):
            raise DataError(f"{path} line {place} has {row.get('step')!r} as its step; a whole number is needed.")
        row["step"] = int(step)
    return sorted(rows, key=lambda row: int(row["step"]))


def _file_notes(path: Path, rows: Rows) -> list[str]:
    notes = []
    if path.exists() and len(path.read_bytes().splitlines()) > len(rows):
        notes.append(f"The last line of {path.name} is torn (a kill, or a run that is writing it); it is left out.")
    if rows and (bad := sum(number(row.get("loss")) is None for row in rows)):
        notes.append(f"In {bad} of {len(rows)} rows of {path.name} the loss is missing or was not finite.")
    words = sorted({name for row in rows for name, value in row.items() if isinstance(value, str | list | dict)})
    if words:
        notes.append(f"{path.name} has values that are no numbers, which are not shown: {', '.join(words)}.")
    return notes


def _summary(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.exists():
        return {}, []
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return {}, [f"summary.json cannot be read ({error})."]
    return (read, []) if isinstance(read, dict) else ({}, ["summary.json is no JSON object, so it is not shown."])


def _config(path: Path) -> tuple[dict[str, str], list[str]]:
    if not path.exists():
        return {}, ["There is no config.yaml, so the settings of the run are not shown."]
    try:
        tree = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        return {}, [f"config.yaml cannot be read ({str(error).splitlines()[0]})."]
    return _flat(tree, ""), []


def _flat(tree: object, prefix: str) -> dict[str, str]:
    """Dotted keys and values as text: {'loss.beta': '0.1', 'references.0.path': 'models/...'}."""
    if isinstance(tree, dict) and tree:
        parts = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        parts = [(str(place), value) for place, value in enumerate(tree)]
    else:
        shown = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False, default=str)
        return {prefix: shown} if prefix else {}
    return {key: value for name, part in parts for key, value in _flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def _state_notes(path: Path, rows: Rows, summary: dict[str, Any]) -> list[str]:
    """Whether the run is at its end."""
    if not rows:
        return ["metrics.jsonl has no row yet: the run has not finished its first step."]
    if summary and summary.get("steps", rows[-1]["step"]) == rows[-1]["step"]:
        return []
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((path / FILES["train"]).stat().st_mtime))
    why = f"summary.json is of step {summary['steps']}" if summary else "there is no summary.json"
    return [
        f"The run is not at its end ({why}): it is still going on, or was stopped. "
        f"Its last row is that of step {rows[-1]['step']}, written {written}."
    ]
