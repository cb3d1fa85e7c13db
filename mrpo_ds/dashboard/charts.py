"""The charts of one run, where each metric has a colour, or of several, where each run has one."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mrpo_ds.dashboard.panels import Line, Panel
from mrpo_ds.dashboard.runs import FILES, Run
from mrpo_ds.dashboard.sections import NOT_DRAWN, SECTIONS, section_of
from mrpo_ds.dashboard.thin import thin
from mrpo_ds.report.markup import plain

SMOOTHED_POINTS = 40
"""Charts are smoothed from the start when a run has more steps than this."""
SMOOTHING = 0.8
"""Weight of the past in the exponential mean."""


@dataclass(frozen=True)
class ChartLine:
    """A metric of a run in a chart."""

    run: int
    metric: str
    label: str
    style: int
    """Its place in the chart: a colour of one run, a dash pattern of several."""


@dataclass(frozen=True)
class Chart:
    """A panel, or the part of it that is about one reference, with the lines that there are."""

    section: str
    panel: Panel
    lines: tuple[ChartLine, ...]


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """All charts that have a line, in the order of the sections; what no section has planned comes last, in "other"."""
    known = [set(run.metrics) for run in runs]
    names = references(runs)
    made = []
    for section in SECTIONS:
        for panel in section.panels:
            for part in _parts(panel, names) if len(runs) > 1 else [panel]:
                made.append(Chart(section.name, part, tuple(_lines(part, known, names))))
    made += [Chart("other", panel, tuple(_lines(panel, known, names))) for panel in _unplanned(known)]
    return [chart for chart in made if chart.lines]


def payload(runs: Sequence[Run], charts: Sequence[Chart]) -> dict[str, Any]:
    """What the script draws from, as JSON values: runs with thinned series, and charts."""
    return {
        "runs": [_series(run, number, charts) for number, run in enumerate(runs)],
        "charts": [
            {
                "title": plain(chart.panel.title),
                "limits": chart.panel.limits,
                "mark": chart.panel.mark,
                "smooth": chart.panel.smooth,
                "byRun": len(runs) > 1,
                "legend": len(chart.lines) > 1 or any(line.per_reference for line in chart.panel.lines),
                "lines": [{**asdict(line), "label": plain(line.label)} for line in chart.lines],
            }
            for chart in charts
        ],
        "smoothing": SMOOTHING if any(len(run.rows["train"]) > SMOOTHED_POINTS for run in runs) else 0,
    }


def references(runs: Sequence[Run]) -> list[str]:
    """The names of all references, in the order of the configurations; the metrics may know more of them."""
    configured = [run.setting(f"references.{place}.name") for run in runs for place in range(len(run.config))]
    logged = [metric.split("/")[2] for run in runs for metric in run.metrics if metric.split("/")[1] == "ref"]
    return list(dict.fromkeys(name for name in (*configured, *logged) if name))


def _parts(panel: Panel, names: Iterable[str]) -> list[Panel]:
    """A panel, or one for each reference, so that few lines of each run are in one chart."""
    if not any(line.per_reference for line in panel.lines):
        return [panel]
    return [
        replace(
            panel,
            title=f"{panel.title.removesuffix(' of each reference')}: {name}",
            lines=tuple(
                Line(line.pattern.replace("*", name), line.label.replace("*", "").lstrip(", ")) for line in panel.lines
            ),
        )
        for name in names
    ]


def _lines(panel: Panel, known: Sequence[set[str]], names: Sequence[str]) -> list[ChartLine]:
    expanded = [
        (line.pattern.replace("*", name), line.label.replace("*", name))
        for line in panel.lines
        for name in (names if line.per_reference else [""])
    ]
    # A style belongs to a metric in all runs, so it counts those that any run has.
    there = [pair for pair in expanded if any(pair[0] in metrics for metrics in known)]
    return [
        ChartLine(run, metric, label, style)
        for run, metrics in enumerate(known)
        for style, (metric, label) in enumerate(there)
        if metric in metrics
    ]


def _unplanned(known: Sequence[set[str]]) -> list[Panel]:
    metrics = sorted(set().union(*known))
    bare = {metric.partition("/")[2]: None for metric in metrics if is_unplanned(metric)}
    return [
        Panel(name, "", "", (Line(f"train/{name}", "training"), Line(f"eval/{name}", "evaluation"))) for name in bare
    ]


def is_unplanned(metric: str) -> bool:
    """Whether no section has it and none leaves it out on purpose."""
    return metric not in NOT_DRAWN and section_of(metric) is None


def _series(run: Run, number: int, charts: Sequence[Chart]) -> dict[str, Any]:
    drawn = {line.metric for chart in charts for line in chart.lines if line.run == number}
    axes, series = {}, {}
    for kind in FILES:
        names = sorted(metric.partition("/")[2] for metric in drawn if metric.startswith(f"{kind}/"))
        axis, thinned = thin(run.rows[kind], names)
        axes[kind] = asdict(axis)
        for name, one in thinned.items():
            short = {"mean": one.mean} if one.low is None else {"mean": one.mean, "low": one.low, "high": one.high}
            series[f"{kind}/{name}"] = short
    return {"name": plain(run.name), "axes": axes, "series": series}
