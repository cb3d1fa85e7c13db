"""The pictures of a run, drawn from metrics.jsonl and evals.jsonl. matplotlib is loaded only when one is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrpo_ds.tracking import read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]
"""The rows of a JSON Lines file: step and metrics."""

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", "--", ":")
GREY = "#666666"
SIZE_INCHES = (9.0, 4.5)
DOTS_PER_INCH = 150
MARKED_POINTS = 20
"""Lines with more points than this are smoothed; those with fewer show every point."""


@dataclass(frozen=True)
class _Line:
    """One line of a picture."""

    label: str
    metric: str
    rows: Rows
    colour: str
    dash: str = "-"
    evaluated: bool = False
    """From evals.jsonl: few points, each an average over the held-out rows, so marked and never smoothed."""

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values, each [points]; rows without the metric or with a non-finite value are left out."""
        pairs = [(row["step"], row[self.metric]) for row in self.rows if row.get(self.metric) is not None]
        array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return array[:, 0], array[:, 1]


@dataclass(frozen=True)
class _Picture:
    """What a PNG shows; it is drawn when at least one of its lines has a point."""

    name: str
    title: str
    unit: str
    """Label of the y axis."""
    lines: Callable[[Rows, Rows], list[_Line]]
    """From the rows of training and of evaluation."""
    limits: tuple[float | None, float | None] = (None, None)
    """Of the y axis; None fits the data."""
    chance: float | None = None
    """The value of guessing, drawn as a thin line."""


def plot_run(run_dir: Path) -> list[Path]:
    """Draw plots/*.png of a run directory and return their paths. Metrics that the run does not have are left out.

    Raises:
        DataError: metrics.jsonl or evals.jsonl has a line that is not JSON before its last.
        OSError: A picture cannot be written.
    """
    train = read_jsonl(run_dir / "metrics.jsonl")
    evaluated = read_jsonl(run_dir / "evals.jsonl")
    drawn = []
    for picture in PICTURES:
        lines = [line for line in picture.lines(train, evaluated) if line.points()[0].size]
        if lines:
            path = run_dir / "plots" / f"{picture.name}.png"
            path.parent.mkdir(exist_ok=True)
            _draw(picture, lines, run_dir.resolve().name, path)
            drawn.append(path)
    return drawn


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the window values around each value, of fewer at the ends. [points] -> [points].

    Args:
        values: Finite numbers.
        window: Odd number of points, >= 1.
    """
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(values.size)
    start = np.maximum(index - window // 2, 0)
    end = np.minimum(index + window // 2 + 1, values.size)
    mean: NDArray[np.float64] = (sums[end] - sums[start]) / (end - start)
    return mean


def _train_and_eval(metric: str) -> Callable[[Rows, Rows], list[_Line]]:
    def lines(train: Rows, evaluated: Rows) -> list[_Line]:
        return [
            _Line("training", metric, train, BLUE),
            _Line("evaluation", metric, evaluated, VERMILLION, evaluated=True),
        ]

    return lines


def _per_reference(suffix: str) -> Callable[[Rows, Rows], list[_Line]]:
    def lines(train: Rows, _: Rows) -> list[_Line]:
        end = f"/{suffix}"
        metrics = sorted({key for row in train for key in row if key.startswith("ref/") and key.endswith(end)})
        return [
            _Line(
                label=metric.removeprefix("ref/").removesuffix(end),
                metric=metric,
                rows=train,
                colour=CYCLE[number % len(CYCLE)],
                dash=DASHES[number // len(CYCLE) % len(DASHES)],
            )
            for number, metric in enumerate(metrics)
        ]

    return lines


def _logps(train: Rows, _: Rows) -> list[_Line]:
    return [
        _Line("policy, chosen", "logps/chosen", train, BLUE),
        _Line("policy, rejected", "logps/rejected", train, VERMILLION),
        _Line("virtual reference, chosen", "vref/logps/chosen", train, BLUE, "--"),
        _Line("virtual reference, rejected", "vref/logps/rejected", train, VERMILLION, "--"),
    ]


PICTURES = (
    _Picture("loss", "Loss", "loss, mean per prompt", _train_and_eval("loss")),
    _Picture(
        "accuracy",
        "Preference accuracy",
        "fraction of pairs with the chosen response ahead",
        _train_and_eval("rewards/accuracies"),
        limits=(-0.02, 1.02),
        chance=0.5,
    ),
    _Picture("margin", "Reward margin", "chosen - rejected reward, beta x nats", _train_and_eval("rewards/margins")),
    _Picture(
        "reference_weight",
        "Weight of each reference",
        "weight in the virtual reference, mean per prompt",
        _per_reference("weight"),
    ),
    _Picture(
        "reference_clip_fraction",
        "Clipping of each reference",
        "fraction of log-probs that are clipped",
        _per_reference("clip_fraction"),
        limits=(-0.02, 1.02),
    ),
    _Picture("logps", "Log-probs of the responses", "summed log-prob per response, nats", _logps),
)


def _draw(picture: _Picture, lines: list[_Line], run: str, path: Path) -> None:
    # A Figure of its own, without pyplot, is drawn by Agg: no display, no backend to choose, no state left behind.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout=layout)
    axes = figure.add_subplot()
    window = max(_draw_line(axes, line) for line in lines)
    if picture.chance is not None:
        axes.axhline(picture.chance, color=GREY, linewidth=0.8, linestyle=":", label="chance")
    axes.set_title(picture.title, loc="left", fontweight="bold")
    axes.set_title(run, loc="right", fontsize="small", color=GREY)
    axes.set_xlabel(f"optimizer step (bold: mean of {window} steps)" if window > 1 else "optimizer step")
    axes.set_ylabel(picture.unit)
    axes.set_ylim(*picture.limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    steps = np.concatenate([line.points()[0] for line in lines])
    if steps.min() == steps.max():  # matplotlib would zoom in on fractions of the one step
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def _draw_line(axes: "Axes", line: _Line) -> int:
    """Draw a line, over its faint raw values when it is smoothed. Returns the points per mean, 1 for none."""
    steps, values = line.points()
    if line.evaluated or steps.size <= MARKED_POINTS:
        axes.plot(steps, values, line.dash, marker="o", markersize=4, color=line.colour, label=line.label)
        return 1
    window = steps.size // 40 * 2 + 3
    axes.plot(steps, values, color=line.colour, alpha=0.18, linewidth=0.7, zorder=1.5)  # behind every mean
    axes.plot(steps, running_mean(values, window), line.dash, color=line.colour, linewidth=1.8, label=line.label)
    return window
