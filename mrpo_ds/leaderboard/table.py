"""The table of a sweep: models by columns with the suite's average, as markdown, CSV and JSON.

Nothing in it depends on when, how often and on how many devices the sweep ran.
"""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo_ds.leaderboard.candidates import Candidate
from mrpo_ds.leaderboard.cells import Cell, Cells, differences, view
from mrpo_ds.leaderboard.scores import Score, ScoreError, average, normalized
from mrpo_ds.leaderboard.suites import Suite, SuiteTask
from mrpo_ds.manifest import write_atomic

Results = dict[str, Any]


def collect(
    name: str,
    suite: Suite,
    candidates: list[Candidate],
    cells: Cells,
    wanted: dict[tuple[str, str], dict[str, Any]],
    notes: list[str],
    limit: int | None,
) -> Results:
    """results.json of the cells that are there. One of other settings is missing, and named.

    Args:
        name: of the suite.
        suite: its columns.
        candidates: the rows.
        cells: where the cells are.
        wanted: (model, column) -> the settings that its cell must have.
        notes: what must be said beside the figures.
        limit: documents of each task, or None for all.
    """
    rows, missing, versions = [], [], {}
    otherwise: dict[str, list[str]] = {}
    for candidate in candidates:
        scores: dict[str, Any] = {}
        counted: dict[str, Score] = {}
        for task in suite.tasks:
            place = f"{candidate.name}/{task.title}"
            cell, reasons = _usable(cells.read(candidate.name, task.title), task, wanted[candidate.name, task.title])
            if reasons:
                otherwise[place] = reasons
            if cell is None:
                missing.append(place)
                continue
            versions = cell["versions"]
            counted[task.title] = normalized(task, cell["computed"])
            scores[task.title] = _entry(task, cell, counted[task.title])
        whole = average(suite, counted)
        rows.append(
            {
                "model": candidate.name,
                "model_path": candidate.path,
                "average": None if whole is None else {"value": whole.value, "stderr": whole.stderr},
                "scores": scores,
            }
        )
    return {
        "suite": name,
        "description": suite.description,
        "limit": limit,
        "tasks": [{**asdict(task), "title": task.title} for task in suite.tasks],
        "models": rows,
        "missing": missing,
        "otherwise": otherwise,
        "notes": notes,
        "versions": versions,
    }


def _usable(cell: Cell | None, task: SuiteTask, wanted: dict[str, Any]) -> tuple[Cell | None, list[str]]:
    """The cell as its column is today, whatever metric it was of; or None, and why not if there is one."""
    if cell is None:
        return None, []
    if changed := differences(cell, wanted):
        return None, changed
    try:
        return view(cell, task), []
    except ScoreError as error:
        return None, [str(error)]


def _entry(task: SuiteTask, cell: Cell, counted: Score) -> dict[str, Any]:
    entry = {key: cell[key] for key in ("value", "stderr", "n", "truncated_requests")}
    if task.is_normalized:
        entry["normalized"] = {"value": counted.value, "stderr": counted.stderr}
    return entry


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.md and results.csv. Raises OSError."""
    write_atomic(out / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(out / "results.md", as_markdown(results).encode())
    write_atomic(out / "results.csv", as_csv(results).encode())


def as_markdown(results: Results) -> str:
    """The table in percent, each score with its standard error; a column of normalized scores says so."""
    head = ["model", *(_heading(task) for task in results["tasks"]), "average"]
    lines = [f"# {results['suite']}: {results['description']}", ""]
    lines += [f"> {note}" for note in results["notes"]]
    if results["notes"]:
        lines.append("")
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in results["models"]:
        shown = [_percent(row["scores"].get(task["title"])) for task in results["tasks"]]
        lines.append(f"| {' | '.join([row['model'], *shown, _percent(row['average'])])} |")
    counted = [task["title"] for task in results["tasks"] if task["weight"] > 0]
    lines += ["", f"Percent, +- standard error. Average over {', '.join(counted)}."]
    if any(task["baseline"] is not None or task["baselines"] for task in results["tasks"]):
        lines.append("The average is of scores mapped so that guessing is 0; the columns are as measured.")
    cut = [
        f"{row['model']}/{title} {entry['truncated_requests']}"
        for row in results["models"]
        for title, entry in row["scores"].items()
        if entry["truncated_requests"]
    ]
    if cut:
        lines.append(f"Prompts longer than the model takes, cut on the left: {', '.join(cut)}.")
    if results["missing"]:
        lines.append(f"Missing: {', '.join(results['missing'])}.")
    if results["otherwise"]:
        shown = [f"{name} ({'; '.join(changed[:3])})" for name, changed in results["otherwise"].items()]
        lines.append(f"Computed otherwise, and not counted: {', '.join(shown)}.")
    return "\n".join(lines) + "\n"


def as_csv(results: Results) -> str:
    """A row for each model and column, and one for its average; fractions, not percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["suite", "model", "task", "shots", "metric", "filter", "value", "stderr", "n", "normalized"])
    for row in results["models"]:
        for task in results["tasks"]:
            entry = row["scores"].get(task["title"])
            if entry is not None:
                mapped = entry.get("normalized", {}).get("value")
                named = [task["title"], task["shots"], task["metric"], task["filter"]]
                numbers = [entry["value"], entry["stderr"], entry["n"], mapped]
                writer.writerow([results["suite"], row["model"], *named, *numbers])
        if row["average"] is not None:
            numbers = [row["average"]["value"], row["average"]["stderr"], None, None]
            writer.writerow([results["suite"], row["model"], "average", None, None, None, *numbers])
    return text.getvalue()


def _heading(task: dict[str, Any]) -> str:
    shots = "" if task["shots"] is None else f"{task['shots']}-shot "
    which = task["metric"] if task["filter"] == "none" else f"{task['metric']}, {task['filter']}"
    return f"{task['title']} ({shots}{which})"


def _percent(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    spread = "" if entry["stderr"] is None else f" +- {100 * entry['stderr']:.2f}"
    return f"{100 * entry['value']:.2f}{spread}"
