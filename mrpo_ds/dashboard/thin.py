"""Long series made short: buckets of steps with their mean, lowest and highest value, so that no spike is lost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]
"""The rows of a JSON Lines file: step and metrics."""
MOST_BUCKETS = 240
"""About a chart's width in pixels, halved."""
DIGITS = 5
"""Significant digits of what is drawn."""


@dataclass(frozen=True)
class Axis:
    """The steps of the buckets, [buckets] each."""

    first: list[int]
    last: list[int]


@dataclass(frozen=True)
class Series:
    """A metric in the buckets of its axis, [buckets] each; None where no step of the bucket has a finite value."""

    mean: list[float | None]
    low: list[float | None] | None
    """None when each bucket is one step."""
    high: list[float | None] | None


def number(value: object) -> float | None:
    """A finite number as it stands in a row, else None: null is what a value that was not finite is written as."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def thin(rows: Rows, metrics: Iterable[str], most: int = MOST_BUCKETS) -> tuple[Axis, dict[str, Series]]:
    """At most `most` buckets of about the same number of steps each; with no more rows than that, each is its own.

    Args:
        rows: in the order of their steps.
        metrics: the names to keep.
        most: >= 1.
    """
    count = min(len(rows), most)
    edges = [len(rows) * place // count for place in range(count + 1)] if count else [0]
    parts = [rows[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    axis = Axis([part[0]["step"] for part in parts], [part[-1]["step"] for part in parts])
    return axis, {metric: _series(parts, metric, thinned=count < len(rows)) for metric in metrics}


def _series(parts: list[Rows], metric: str, thinned: bool) -> Series:
    values = [[one for row in part if (one := number(row.get(metric))) is not None] for part in parts]
    mean = [_short(sum(part) / len(part)) if part else None for part in values]
    if not thinned:
        return Series(mean, None, None)
    low = [_short(min(part)) if part else None for part in values]
    return Series(mean, low, [_short(max(part)) if part else None for part in values])


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
