"""The tables of a dashboard, as HTML: numbers, settings, benchmarks, and what the models said."""

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mrpo_ds.dashboard.charts import is_unplanned
from mrpo_ds.dashboard.runs import Run
from mrpo_ds.dashboard.sections import SECTIONS, section_of
from mrpo_ds.report.markup import as_html, table

LAST_SHARE = 10
"""Of a training metric, a tenth of the steps is its end: a single step is too noisy to compare."""
MOST_STEPS = 8
"""Of the answers to a prompt, so many are shown, spread evenly, first and last among them."""
MOST_CHARACTERS = 1500
"""Of an answer; how many more there are is said."""
OWN_SETTINGS = ("output_dir", "tracking.wandb.name")
"""Settings that are each run's own, and no difference between runs."""


def show(value: float | None) -> str:
    """A number for a table: at most 5 significant digits."""
    return "" if value is None else f"{value:.5g}"


def end_of(run: Run, metric: str) -> float | None:
    """What a metric has come to: the mean of the last tenth of its steps in training, the last value otherwise."""
    values = run.values(metric)
    if not values:
        return None
    count = -(-len(values) // LAST_SHARE) if metric.startswith("train/") else 1
    return statistics.fmean(values[-count:])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run]) -> str:
    """What was done and what came of it: tiles of one run, of several a table with a column for each."""
    if len(runs) == 1:
        shown = _summary(runs[0]).items()
        return "".join(
            ['<dl class="tiles">\n']
            + [f"<div><dt>{as_html(name)}</dt><dd>{as_html(value)}</dd></div>\n" for name, value in shown]
            + ["</dl>\n"]
        )
    head = ["", *(as_html(run.name) for run in runs)]
    columns = [_summary(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    body = [[as_html(name), *(as_html(column.get(name, "")) for column in columns)] for name in names]
    return table(head, body, numbers=set(range(1, len(head))))


def _summary(run: Run) -> dict[str, str]:
    train, evals = run.rows["train"], run.rows["eval"]
    seconds = run.values("train/perf/seconds_per_step")
    made: dict[str, str] = {
        "optimizer steps": str(train[-1]["step"]) if train else "0",
        "epochs": show(_last(run.values("train/epoch"))),
        "policy tokens": f"{_last(run.values('train/num_tokens')) or 0:.0f}",
        "hours in steps": f"{sum(seconds) / 3600:.2f}" if seconds else "",
        "tokens per second, median": show(_median(run.values("train/perf/tokens_per_second"))),
        "seconds waiting, median": show(_median(run.values("train/perf/reference_wait_seconds"))),
        "peak memory, GiB": show(max(run.values("train/perf/memory_gib"), default=None)),
        "rows left out in steps": f"{sum(run.values('train/dropped')):.0f}",
    }
    for what, metric in (("accuracy", "rewards/accuracies"), ("margin", "rewards/margins"), ("loss", "loss")):
        values = run.values(f"eval/{metric}")
        first_step, last_step = (evals[0]["step"], evals[-1]["step"]) if evals else (0, 0)
        if values and first_step == 0:
            made[f"held-out {what}, before"] = show(values[0])
        if values and last_step:
            made[f"held-out {what}, last"] = show(values[-1])
    for split, report in _reports(run):
        made[f"rows of {split}, kept of read"] = f"{report.get('kept')} of {report.get('rows')}"
    for name in ("checkpoints_that_failed", "lost_metric_rows"):
        if run.summary.get(name):
            made[name.replace("_", " ")] = str(run.summary[name])
    return {name: value for name, value in made.items() if value}


def _reports(run: Run) -> list[tuple[str, dict[str, Any]]]:
    data = run.summary.get("data")
    return [(split, one) for split, one in data.items() if isinstance(one, dict)] if isinstance(data, dict) else []


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def value_tables(runs: Sequence[Run]) -> str:
    """Every metric as numbers, a table per section: of one run its course, of several where each has come to."""
    metrics = sorted({metric for run in runs for metric in run.metrics})
    groups = {section.title: [one for one in metrics if section_of(one) == section] for section in SECTIONS}
    groups["Other metrics"] = [one for one in metrics if is_unplanned(one)]
    shown = {metric for group in groups.values() for metric in group}
    groups["Progress"] = [one for one in metrics if one not in shown]
    make = _course if len(runs) == 1 else _ends
    return "".join(
        f"<details><summary>{title} <small>{len(group)} metrics</small></summary>{make(runs, group)}</details>\n"
        for title, group in groups.items()
        if group
    )


def _course(runs: Sequence[Run], metrics: Iterable[str]) -> str:
    head = ["metric", "first", "last", "mean of last tenth", "lowest", "highest", "values"]
    body = []
    for metric in metrics:
        values = runs[0].values(metric)
        end = end_of(runs[0], metric) if metric.startswith("train/") else None
        numbers = [show(one) for one in (values[0], values[-1], end, min(values), max(values))]
        body.append([as_html(metric), *numbers, str(len(values))])
    return table(head, body, numbers=set(range(1, len(head))))


def _ends(runs: Sequence[Run], metrics: Iterable[str]) -> str:
    head = ["metric", *(as_html(run.name) for run in runs)]
    body = [[as_html(metric), *(show(end_of(run, metric)) for run in runs)] for metric in metrics]
    return table(head, body, numbers=set(range(1, len(head))))


# ---- settings --------------------------------------------------------------------------------------------------------


def settings_table(run: Run) -> str:
    """All settings of a run."""
    return table(["setting", "value"], [[as_html(key), as_html(value)] for key, value in run.config.items()], set())


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ, by key: the value of each run, "" where it has none."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in OWN_SETTINGS)
    values = {key: [run.config.get(key, "") for run in runs] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def differences_table(runs: Sequence[Run]) -> str:
    """The settings in which runs differ."""
    rows = differences(runs)
    if not rows:
        return '<p class="good">The runs have the same settings.</p>\n'
    head = ["setting", *(as_html(run.name) for run in runs)]
    return table(head, [[as_html(key), *map(as_html, row)] for key, row in rows.items()], set())


# ---- evaluations -----------------------------------------------------------------------------------------------------


def scores_table(runs: Sequence[Run]) -> str:
    """The benchmarks of all runs, "" when none has any."""
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for number, run in enumerate(runs):
        models = {score.model for score in run.scores}
        for score in run.scores:
            model = score.model if len(models) > 1 else ""  # a run's own model needs no name
            error = "" if score.stderr is None else f" <small>&plusmn; {show(score.stderr)}</small>"
            rows.setdefault((*score.key, model), {})[number] = f"{show(score.value)}{error}"
    if not rows:
        return ""
    with_model = any(key[3] for key in rows)
    head = ["task", "shots", "metric", *(["model"] if with_model else []), *(as_html(run.name) for run in runs)]
    body = [
        [*map(as_html, key if with_model else key[:3]), *(cells.get(number, "") for number in range(len(runs)))]
        for key, cells in rows.items()
    ]
    return table(head, body, numbers={1, *range(len(head) - len(runs), len(head))})


def samples_tables(runs: Sequence[Run]) -> str:
    """What the models said, prompt by prompt: of one run over its steps, of several at the last of each."""
    prompts: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for row in run.samples:
            prompts.setdefault(_spoken(row.get("prompt")), []).append((run, row))
    parts = []
    for number, (prompt, said) in enumerate(prompts.items()):
        if len(runs) == 1:
            head, rows = "step", _spread([row for _, row in said])
            body = [[as_html(str(row.get("step", ""))), _answer(row)] for row in rows]
        else:
            head, latest = "run", {run.name: row for run, row in said}
            body = [
                [f"{as_html(name)} <small>step {as_html(str(row.get('step', '')))}</small>", _answer(row)]
                for name, row in latest.items()
            ]
        first_line = prompt.strip().splitlines()[0][:100] if prompt.strip() else "(empty prompt)"
        parts.append(
            f"<details{' open' if number == 0 else ''}><summary>{as_html(first_line)}</summary>\n"
            f'<div class="said">{_cut(prompt)}</div>\n{table([head, "answer"], body, set())}</details>\n'
        )
    return "".join(parts)


def _answer(row: dict[str, Any]) -> str:
    return f'<div class="said">{_cut(_spoken(row.get("text")))}</div>'


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MOST_STEPS of the rows, evenly, the first and the last among them."""
    if len(rows) <= MOST_STEPS:
        return rows
    return [rows[place * (len(rows) - 1) // (MOST_STEPS - 1)] for place in range(MOST_STEPS)]


def _spoken(value: object) -> str:
    """A prompt or an answer as text: a string, or messages with roles."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return "\n".join(f"{one.get('role', '')}: {one.get('content', '')}" for one in value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    more = len(text) - MOST_CHARACTERS
    tail = f" <small>... {more} more characters</small>" if more > 0 else ""
    return f"{as_html(text[:MOST_CHARACTERS], lines=True)}{tail}"
