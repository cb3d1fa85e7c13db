"""The parts of a dashboard: sections of panels, panels of lines."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Metrics that a panel draws: one, or one per reference."""

    pattern: str
    """Such as train/loss or train/ref/*/weight."""
    label: str
    """For the legend; * is the reference's name."""

    def match(self, metric: str) -> str | None:
        """The reference's name if the pattern has one, else ""; None for another metric."""
        found = re.fullmatch(self.regex, metric)
        return None if found is None else "".join(found.groups())

    @property
    def regex(self) -> str:
        """The pattern as a regular expression that has to match the whole name."""
        return re.escape(self.pattern).replace(r"\*", "([^/]+)")

    @property
    def per_reference(self) -> bool:
        """Whether there is one of it for each reference."""
        return "*" in self.pattern


@dataclass(frozen=True)
class Panel:
    """One chart. Of a metric that a run does not have, it draws nothing."""

    title: str
    unit: str
    good: str
    """What good looks like, in a sentence."""
    lines: tuple[Line, ...]
    limits: tuple[float, float] | None = None
    """What the y axis shows at least."""
    mark: float | None = None
    """A value to compare with, drawn as a thin line: chance, zero."""
    smooth: bool = True
    """Whether it is noisy, so that a mean over steps says more."""


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    name: str
    title: str
    panels: tuple[Panel, ...]
