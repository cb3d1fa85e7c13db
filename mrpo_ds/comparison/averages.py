"""The average of a suite as its leaderboard defines it, from the cells of a sweep: that of the sweep's results.md."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.results import read_json
from mrpo_ds.config.load import load_record
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.leaderboard.scores import ScoreError, average, normalized
from mrpo_ds.leaderboard.suites import Call, Suite

Cell = dict[str, Any]
OF_THE_TASK = ("lm_eval_task", "shots", "max_new_tokens", "data")
"""Settings of a cell in which those of one sweep differ."""


@dataclass(frozen=True)
class Average:
    """One model's average over a suite."""

    suite: str
    """Its name."""
    key: str
    """What of a suite makes an average, as text: two averages are of the same kind if theirs are equal."""
    tasks: tuple[str, ...]
    """The columns that count."""
    is_normalized: bool
    """Whether guessing counts as 0 in any of them."""
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Sweep:
    """A folder of `mrpo-ds eval`."""

    name: str
    """Of its suite."""
    suite: Suite | None
    """None before a sweep has written its table."""
    cells: Sequence[tuple[Path, Cell]]

    def average(self, cells: Sequence[Cell]) -> Average | None:
        """The average of one model's cells; None without a suite, or when one that counts is missing."""
        if self.suite is None:
            return None
        columns = {task.title: task for task in self.suite.tasks}
        scores, ways = {}, set()
        for cell in cells:
            task = columns.get(str(cell["task"]))
            # What an earlier state of the suite has left under the same name does not count.
            if (
                task is None
                or not {"settings", "computed"} <= cell.keys()
                or _call(cell) != Call(task.task, task.shots, task.max_new_tokens)
            ):
                continue
            with contextlib.suppress(ScoreError):  # nor what lacks the metric of today
                scores[task.title] = normalized(task, cell["computed"])
                if task.weight > 0:
                    ways.add(_way(cell))
        found = average(self.suite, scores)
        if found is None or len(ways) > 1:  # what was computed in two ways makes no average
            return None
        counted = [task for task in self.suite.tasks if task.weight > 0]
        key = json.dumps([asdict(task) for task in counted], sort_keys=True)
        titles = tuple(task.title for task in counted)
        is_normalized = any(task.is_normalized for task in counted)
        return Average(self.name, key, titles, is_normalized, found.value, found.stderr)


def read_sweeps(folder: Path) -> list[Sweep]:
    """The sweep of a folder, or of several, each in a folder of its own. Raises DataError for a damaged file."""
    sweeps = []
    for place in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
        files = sorted(place.glob("cells/*/*.json"))
        if files:
            sweeps.append(
                Sweep(_name(place), _suite(place / "suite.json"), [(path, read_json(path)) for path in files])
            )
    return sweeps


def headings(averages: Sequence[Average]) -> dict[str, str]:
    """Key -> 'average of NAME', in order; different suites of one name get numbers."""
    found: dict[str, str] = {}
    for one in averages:
        if one.key not in found:
            heading = f"average of {one.suite}"
            same = sum(other == heading or other.startswith(f"{heading} #") for other in found.values())
            found[one.key] = f"{heading} #{same + 1}" if same else heading
    return found


def _name(place: Path) -> str:
    """As the table beside the cells says; a suite may be given as the path of its file."""
    table = place / "results.json"
    return Path(str(read_json(table).get("suite", place.name))).stem if table.is_file() else place.resolve().name


def _suite(path: Path) -> Suite | None:
    if not path.is_file():
        return None
    try:
        return load_record(Suite, str(path), "suite", "eval/suites")
    except ConfigError as error:
        raise DataError(f"{path} is no suite ({error}); `mrpo-ds eval` writes it anew.") from error


def _call(cell: Cell) -> Call:
    settings = cell["settings"]
    return Call(settings["lm_eval_task"], settings["shots"], settings["max_new_tokens"])


def _way(cell: Cell) -> str:
    """All of a cell's settings that do not depend on the task, as text."""
    settings = {key: value for key, value in cell["settings"].items() if key not in OF_THE_TASK}
    return json.dumps(settings, sort_keys=True)
