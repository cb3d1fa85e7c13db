"""Scores of evaluations in the folder eval/ of a run: of suites, of lm-eval itself, and of preference evaluations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_ds.dashboard.thin import number

FOLDER = "eval"
"""Below a run directory; the JSON files in it are looked into."""
PARTS = ("cells", "failures")
"""Folders of a suite with the parts of its results, document by document."""


@dataclass(frozen=True)
class Score:
    """One number of an evaluation."""

    task: str
    """Task, or set of preferences."""
    metric: str
    value: float
    stderr: float | None
    shots: int | None
    """Examples in the prompt, where the file says so."""
    model: str
    """As the file names it; "" where it does not."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What the same score of another run has in common with it."""
        return self.task, "" if self.shots is None else str(self.shots), self.metric


def read_scores(run_dir: Path) -> tuple[list[Score], list[str]]:
    """All scores below <run>/eval, ordered by file, and notes about files that cannot be read."""
    scores: list[Score] = []
    notes = []
    for path in sorted((run_dir / FOLDER).rglob("*.json")):
        name = path.relative_to(run_dir)
        if set(name.parts) & set(PARTS):
            continue
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            notes.append(f"{name} cannot be read ({error}); its scores are not shown.")
            continue
        if isinstance(content, dict):
            scores += [*_of_suite(content), *_of_lm_eval(content), *_of_preferences(content)]
            if "suite" in content and content.get("limit") is not None:
                notes.append(f"{name} is of the first {content['limit']} documents of each task only.")
    return list(dict.fromkeys(scores)), notes


def _of_suite(content: dict[str, Any]) -> Iterator[Score]:
    """results.json of a suite: {'suite': ..., 'tasks': [{'title', 'metric', 'shots'}], 'models': [{'scores': ...}]}."""
    suite, tasks, models = content.get("suite"), content.get("tasks"), content.get("models")
    if not isinstance(suite, str) or not isinstance(tasks, list) or not isinstance(models, list):
        return
    for row in (row for row in models if isinstance(row, dict)):
        entries = row["scores"] if isinstance(row.get("scores"), dict) else {}
        columns = [(one.get("title"), one.get("metric"), one.get("shots")) for one in tasks if isinstance(one, dict)]
        numbers = [(title, metric, shots, entries.get(title)) for title, metric, shots in columns]
        for title, metric, shots, entry in [*numbers, ("average", suite, None, row.get("average"))]:
            if isinstance(entry, dict) and (value := number(entry.get("value"))) is not None:
                count = shots if isinstance(shots, int) else None
                yield Score(str(title), str(metric), value, number(entry.get("stderr")), count, _model(row))


def _of_lm_eval(content: dict[str, Any]) -> Iterator[Score]:
    """lm-eval: {'results': {task: {'acc,none': 0.5, 'acc_stderr,none': 0.01 | 'N/A'}}, 'n-shot': {task: 5}}."""
    results, shots = content.get("results"), content.get("n-shot")
    if not isinstance(results, dict):
        return
    for task, values in results.items():
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or (mean := number(value)) is None:
                continue
            shown = metric if name == "none" else f"{metric}, {name}"
            given = shots.get(task) if isinstance(shots, dict) else None
            count = given if isinstance(given, int) else None
            yield Score(task, shown, mean, number(values.get(f"{metric}_stderr,{name}")), count, _model(content))


def _of_preferences(content: dict[str, Any]) -> Iterator[Score]:
    """A preference evaluation: {'model': ..., 'set': ..., 'metrics': {measure: {'mean': 0.5, 'stderr': 0.01}}}."""
    measures = content.get("metrics")
    if "set" not in content or not isinstance(measures, dict):
        return
    for measure, value in measures.items():
        if isinstance(value, dict) and (mean := number(value.get("mean"))) is not None:
            yield Score(str(content["set"]), measure, mean, number(value.get("stderr")), None, _model(content))


def _model(content: dict[str, Any]) -> str:
    named = content.get("model_name") or content.get("model")
    return str(named) if isinstance(named, str) else ""
