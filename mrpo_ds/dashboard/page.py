"""`mrpo-ds dashboard html`: one page of one run, or of several side by side, that works from a file without network.

Names, settings and samples are hostile: they reach the page through as_html, or as JSON without any <.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from mrpo_ds.console import log
from mrpo_ds.dashboard.charts import Chart, charts_of, payload
from mrpo_ds.dashboard.runs import Run, read_runs
from mrpo_ds.dashboard.sections import SECTIONS
from mrpo_ds.dashboard.style import STYLE
from mrpo_ds.dashboard.tables import (
    differences_table,
    samples_tables,
    scores_table,
    settings_table,
    summary,
    value_tables,
)
from mrpo_ds.dashboard.thin import MOST_BUCKETS
from mrpo_ds.report.markup import as_html, attribute, check_page_path, fact_line, opening, plain, table, write_parts

PAGE_NAME = "dashboard.html"
"""Of the page, in the directory of the one run, or in the current one for several."""


def write_dashboard(directories: Sequence[str], out: str | None) -> Path:
    """Write the dashboard of run directories and say where it is. Returns its path.

    Raises:
        ConfigError: one is no run directory, or out cannot be written.
        DataError: a file of a run is damaged.
    """
    runs = read_runs(directories)
    path = Path(out) if out is not None else (runs[0].path if len(runs) == 1 else Path()) / PAGE_NAME
    check_page_path(path, "--out")
    for run in runs:
        for note in run.notes:
            log(plain(f"{run.name}: {note}"))
    write_parts(page(runs), path, "--out")
    log(f"dashboard: {path} ({path.stat().st_size / 1024:.0f} KiB)")
    return path


def page(runs: Sequence[Run]) -> Iterator[str]:
    """The page in parts, each complete lines."""
    charts = charts_of(runs)
    script = files("mrpo_ds.dashboard").joinpath("dashboard.js").read_text(encoding="utf-8")
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    yield opening(f"{title}: mrpo-ds dashboard", STYLE, script)
    yield f"<h1>{as_html(title)}</h1>\n"
    yield from _head(runs, charts)
    yield _controls(runs)
    for section in SECTIONS:
        yield from _section(section.name, section.title, charts, runs)
    yield from _section("other", "Other metrics", charts, runs)
    yield f'<section id="values">\n<h2>Numbers</h2>\n{_values_legend(runs)}{value_tables(runs)}</section>\n'
    yield from _settings(runs)
    content = json.dumps(payload(runs, charts), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{content}</script>\n'
    yield f"</main>\n<script>{script}</script>\n</body>\n</html>\n"


def _head(runs: Sequence[Run], charts: Sequence[Chart]) -> Iterator[str]:
    if len(runs) == 1:
        yield _run_facts(runs[0])
    for run in runs:
        for note in run.notes:
            name = f"<b>{as_html(run.name)}</b>: " if len(runs) > 1 else ""
            yield f'<p class="warning">{name}{as_html(note)}</p>\n'
    links = [(section.name, section.title) for section in SECTIONS]
    links += [("other", "Other metrics")] if any(chart.section == "other" for chart in charts) else []
    links += [("values", "Numbers"), ("settings", "Settings")]
    yield "<nav>" + "".join(f'<a href="#{name}">{title}</a>' for name, title in links) + "</nav>\n"
    yield summary(runs)
    if len(runs) > 1:
        yield f"<h3>Where the settings differ</h3>\n{differences_table(runs)}"


def _run_facts(run: Run) -> str:
    names = [run.setting(f"references.{place}.name") for place in range(len(run.config))]
    shown = {
        "objective": run.setting("loss.name"),
        "model": run.setting("model.path"),
        "references": ", ".join(name for name in names if name),
        "placement": run.setting("topology.placement"),
        "directory": str(run.path),
    }
    return fact_line((name, value) for name, value in shown.items() if value)


def _controls(runs: Sequence[Run]) -> str:
    legend = '<div id="runs" role="group" aria-label="runs"></div>\n' if len(runs) > 1 else ""
    return (
        '<noscript><p class="warning">The charts need JavaScript; the numbers are in the tables.</p></noscript>\n'
        '<div id="controls" hidden>\n'
        '<label>smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02">'
        '<output id="smoothing-value" for="smoothing"></output></label>\n'
        f"{legend}</div>\n"
    )


def _section(name: str, title: str, charts: Sequence[Chart], runs: Sequence[Run]) -> Iterator[str]:
    mine = [(number, chart) for number, chart in enumerate(charts) if chart.section == name]
    tables = _evaluations(runs) if name == "evaluation" else ""
    if name == "other" and not mine:
        return
    yield f'<section id="{name}">\n<h2>{title}</h2>\n'
    if name == "evaluation" and not any(run.rows["eval"] for run in runs):
        yield '<p class="legend">No evaluation yet: evals.jsonl has no rows. data.eval names the held-out rows.</p>\n'
    elif not mine:
        yield '<p class="legend">These runs have none of its metrics.</p>\n'
    if mine:
        yield '<div class="charts">\n'
        for number, chart in mine:
            yield _figure(number, chart, runs)
        yield "</div>\n"
    yield f"{tables}</section>\n"


def _figure(number: int, chart: Chart, runs: Sequence[Run]) -> str:
    panel = chart.panel
    good = f'<p class="good-look">{as_html(panel.good)}</p>' if panel.good else ""
    lacking = [run.name for place, run in enumerate(runs) if place not in {line.run for line in chart.lines}]
    lacks = f'<p class="good-look">Not in {as_html(", ".join(lacking))}.</p>' if lacking else ""
    label = f"{panel.title}, {panel.unit}: a chart over optimizer steps; the arrow keys read its values"
    return (
        f'<figure id="chart-{number}">\n<figcaption>{as_html(panel.title)} <small>{as_html(panel.unit)}</small>'
        f'</figcaption>\n<div class="tools"></div>\n<div class="plot" tabindex="0" role="group" '
        f'aria-label="{attribute(label)}"></div>\n{good}{lacks}</figure>\n'
    )


def _evaluations(runs: Sequence[Run]) -> str:
    parts = []
    if scores := scores_table(runs):
        parts.append(f"<h3>Benchmarks</h3>\n{scores}")
    if samples := samples_tables(runs):
        parts.append(f"<h3>What the model says</h3>\n{samples}")
    return "".join(parts)


def _values_legend(runs: Sequence[Run]) -> str:
    longest = max(len(rows) for run in runs for rows in run.rows.values())
    thinned = (
        f" Charts draw at most {MOST_BUCKETS} points of a line: each is the mean of a bucket of steps, in a band from "
        "its lowest to its highest value, so no spike is lost. These tables are of all steps."
        if longest > MOST_BUCKETS
        else ""
    )
    kinds = "train/ is metrics.jsonl, eval/ is evals.jsonl."
    if len(runs) > 1:
        kinds += " Of training the mean of the last tenth of the steps is shown, of evaluation the last value."
    return f'<p class="legend">{kinds}{thinned}</p>\n'


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    yield '<section id="settings">\n<h2>Settings</h2>\n'
    for run in runs:
        if run.config:
            yield f"<details><summary>{as_html(run.name)}: config.yaml</summary>{settings_table(run)}</details>\n"
        else:
            yield f'<p class="legend">{as_html(run.name)} has no config.yaml.</p>\n'
    yield table(["run", "directory"], [[as_html(run.name), as_html(str(run.path))] for run in runs], set())
    yield "</section>\n"
