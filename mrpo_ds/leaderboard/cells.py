"""One JSON for each model and column: written whole or not at all, and never computed twice.

    OUT/cells/<model>/<column>.json     the score, and of every document what compare needs to pair it
    OUT/failures/<model>/<column>.txt   why there is none, until there is

A cell says what it was computed with. One of other settings, versions, data or weights is never mixed into a table.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.scores import Computed, score_of
from mrpo_ds.leaderboard.suites import SuiteTask
from mrpo_ds.manifest import write_atomic

Cell = dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """The cells of a sweep's folder."""

    out: Path

    def path(self, model: str, title: str) -> Path:
        """Where the cell of a model and a column is."""
        return self.out / "cells" / model / f"{title}.json"

    def read(self, model: str, title: str) -> Cell | None:
        """A cell, or None when there is none. Raises ConfigError for a file that is none."""
        path = self.path(model, title)
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            _ = cell["settings"], cell["computed"], cell["samples"]
            return dict(cell)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"cell {str(path)!r} cannot be read ({error}); remove it, and it is computed anew."
            ) from error

    def write(self, cell: Cell, model: str, title: str) -> None:
        """Put a cell in its place, and remove the note of an earlier failure. Raises OSError."""
        path = self.path(model, title)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(cell, allow_nan=False) + "\n").encode())
        self.failure(model, title).unlink(missing_ok=True)

    def failure(self, model: str, title: str) -> Path:
        """Where the reason is why a cell is missing."""
        return self.out / "failures" / model / f"{title}.txt"

    def note_failure(self, model: str, title: str, text: str) -> None:
        """Write why a cell is missing. Never raises OSError: the reason is also on the console."""
        path = self.failure(model, title)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def view(cell: Cell, task: SuiteTask) -> Cell:
    """The cell of another column of the same call: its score and the documents' values by another metric or filter.

    Raises ScoreError when the call has not computed that.
    """
    computed: Computed = cell["computed"]
    score = score_of(task, computed)
    key = f"{task.metric},{task.filter}"
    samples = [{**sample, "value": sample["scores"].get(key)} for sample in cell["samples"]]
    head = {
        "task": task.title,
        "metric": task.metric,
        "filter": task.filter,
        "group_mean": task.group_mean if len(computed) > 1 else None,
        "value": score.value,
        "stderr": score.stderr,
        "n": score.n,
    }
    return {**cell, **head, "samples": samples}


def differences(cell: Cell, settings: dict[str, Any]) -> list[str]:
    """What a cell was computed with that differs from these settings: "limit 8 then, 16 now"."""
    theirs = cell["settings"]
    return [
        f"{key} {theirs.get(key)!r} then, {settings.get(key)!r} now"
        for key in sorted({*theirs, *settings})
        if theirs.get(key) != settings.get(key)
    ]
