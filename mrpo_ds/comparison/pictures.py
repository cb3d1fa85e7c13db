"""Curves with bands over seeds, and bars with intervals. matplotlib is loaded only when one is drawn."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrpo_ds.comparison.benchmarks import BASE, Field
from mrpo_ds.comparison.held_out import Curve, curves
from mrpo_ds.comparison.methods import Method
from mrpo_ds.comparison.scores import estimated
from mrpo_ds.comparison.statistics import Z_95
from mrpo_ds.plots import CYCLE, DASHES, DOTS_PER_INCH, GREY, SIZE_INCHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID = "#E5E5E5"
CURVES = (
    ("accuracy", "Preference accuracy", "rewards/accuracies", "fraction of pairs with the chosen response ahead", 0.5),
    ("margin", "Reward margin", "rewards/margins", "chosen - rejected reward, each objective's own", None),
)
"""File, title, metric of evals.jsonl, label of the y axis, the value of guessing."""
MOST_BARS = 12
"""Tasks on one picture; more go to the next."""


def draw_curves(methods: Sequence[Method], directory: Path) -> list[Path]:
    """accuracy.png and margin.png over training, as the MRPO paper's Figures 1 to 4. Raises OSError."""
    drawn = []
    for name, title, metric, unit, chance in CURVES:
        found = curves(methods, metric)
        if found:
            path = directory / f"{name}.png"
            _save(path, title, partial(_curves, found=found, unit=unit, chance=chance))
            drawn.append(path)
    return drawn


def draw_bars(field: Field, directory: Path) -> list[Path]:
    """Bars of every task that is a share, with 95 % intervals over documents. Raises OSError."""
    tasks = [task for task in field.tasks if field.sample(task).percent]
    drawn = []
    for start in range(0, len(tasks), MOST_BARS):
        shown = tasks[start : start + MOST_BARS]
        number = f"_{start // MOST_BARS + 1}" if len(tasks) > MOST_BARS else ""
        path = directory / f"{field.name}{number}.png"
        _save(path, field.title, partial(_bars, field=field, tasks=shown))
        drawn.append(path)
    return drawn


def _save(path: Path, title: str, draw: Callable[["Axes"], None]) -> None:
    # A Figure of its own, without pyplot: no display, no backend to choose, no state left behind.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout=layout)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    draw(axes)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curves(axes: "Axes", found: Sequence[Curve], unit: str, chance: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, curve in enumerate(found):
        colour, dash = _look(number)
        means = np.array([spread.mean for spread in curve.spreads])
        stds = np.array([spread.std or 0.0 for spread in curve.spreads])
        seeds = curve.spreads[0].count
        label = f"{curve.label} ({seeds} seeds)" if seeds > 1 else f"{curve.label} (1 seed)"
        axes.plot(curve.steps, means, dash, marker="o", markersize=4, color=colour, label=label)
        if seeds > 1:
            axes.fill_between(curve.steps, means - stds, means + stds, color=colour, alpha=0.18, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=0.8, linestyle=":", label="chance")
    bands = any(curve.spreads[0].count > 1 for curve in found)
    axes.set_xlabel("optimizer step (bands: one standard deviation over seeds)" if bands else "optimizer step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)


def _bars(axes: "Axes", field: Field, tasks: Sequence[str]) -> None:
    entries = [entry for entry in field.entries if any(task in entry.scores for task in tasks)]
    trained = [entry.label for entry in field.entries if entry.label != BASE]
    width = 0.8 / len(entries)
    for number, entry in enumerate(entries):
        places, values, errors = [], [], []
        for index, task in enumerate(tasks):
            if task not in entry.scores:
                continue
            found = estimated(entry.scores[task])
            places.append(index + (number - (len(entries) - 1) / 2) * width)
            values.append(found.mean)
            errors.append(Z_95 * (found.stderr or 0.0))
        colour = GREY if entry.label == BASE else _look(trained.index(entry.label))[0]  # a method's as on its curve
        axes.bar(
            places, values, width * 0.92, yerr=errors, color=colour, label=entry.label, capsize=2, ecolor="#333333"
        )
    turned = len(tasks) > 4
    axes.set_xticks(range(len(tasks)), [_wrapped(task) for task in tasks], fontsize="small",
                    rotation=30 if turned else 0, ha="right" if turned else "center")  # fmt: skip
    axes.set_ylabel("value, with 95 % intervals over documents")
    axes.set_ylim(0, None)


def _wrapped(task: str) -> str:
    return task.replace(" (", "\n(").replace(": ", ":\n")


def _look(number: int) -> tuple[str, str]:
    """Colour and dash of the nth method."""
    return CYCLE[number % len(CYCLE)], DASHES[number // len(CYCLE) % len(DASHES)]
