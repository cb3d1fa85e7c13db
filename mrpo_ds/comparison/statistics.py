"""The arithmetic of comparisons: spreads over seeds, errors over documents, paired differences, effect sizes.

Two kinds of spread are never mixed: over seeds (how much another training of the same method would differ) and over
documents (how much another sample of test rows would). Lower-case names of Cohen (1988) and Efron (1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Z_95 = 1.959963984540054
"""Standard errors to each side of a mean within which 95 % of a normal distribution lie."""
EFFECT = 0.5
"""Cohen's d from which the MRPO paper calls two methods different (its Tables 1 and 2)."""


@dataclass(frozen=True)
class Spread:
    """A mean and the standard deviation around it."""

    mean: float
    std: float | None
    """Of a sample (n - 1); None of a single number."""
    count: int


@dataclass(frozen=True)
class Estimate:
    """A mean over documents and its standard error."""

    mean: float
    stderr: float | None
    """Standard deviation (n - 1) / sqrt(n); None of a single document."""
    count: int


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: documents are drawn with replacement, so many times, and the middle is kept."""

    resamples: int = 2000
    """>= 1."""
    seed: int = 0
    """>= 0."""
    confidence: float = 0.95
    """0 < confidence < 1."""


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) of one number per seed, at least one."""
    numbers = np.asarray(values, dtype=np.float64)
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return Spread(float(numbers.mean()), std, len(numbers))


def estimate_of(values: Sequence[float] | Values) -> Estimate:
    """Mean and standard error of one number per document, at least one."""
    spread = spread_of(np.asarray(values, dtype=np.float64).tolist())
    stderr = None if spread.std is None else spread.std / math.sqrt(spread.count)
    return Estimate(spread.mean, stderr, spread.count)


def cohens_d(ours: Spread, theirs: Spread) -> float | None:
    """Effect size (m1 - m2) / sqrt((s1^2 + s2^2) / 2) between two methods over their seeds.

    As the MRPO paper uses it, with sample standard deviations. None when either has a single seed; infinite, with a
    sign, when neither varies and the means differ, 0 when they do not.
    """
    if ours.std is None or theirs.std is None:
        return None
    difference = ours.mean - theirs.mean
    pooled = math.sqrt((ours.std**2 + theirs.std**2) / 2)
    if pooled == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / pooled


def bootstrap_means(values: Values, how: Bootstrap) -> Values:
    """The means of resampled documents. The same documents are drawn for every column.

    Args:
        values: [n, M] M numbers per document, NaN where a document has none; n >= 1.
        how: seed and number of resamples.

    Returns:
        [resamples, M], NaN where a resample has no document with a number.
    """
    documents = len(values)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    generator = np.random.default_rng(how.seed)
    share = np.full(documents, 1 / documents)
    means = np.empty((how.resamples, values.shape[1]))
    with np.errstate(invalid="ignore"):
        for row in range(how.resamples):
            drawn = generator.multinomial(documents, share)  # how often each document is in the resample
            means[row] = (drawn @ filled) / (drawn @ known)
    return means


def percentile_interval(means: Values, confidence: float) -> tuple[float, float]:
    """The middle share of resampled means [resamples]; (NaN, NaN) when there is none."""
    finite = means[np.isfinite(means)]
    if not len(finite):
        return math.nan, math.nan
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def ranks_of(spreads: Sequence[Spread]) -> list[str]:
    """'best', 'second' or '' for each method, as the MRPO paper marks them: larger is better.

    best: the highest mean, if Cohen's d to every other method is at least 0.5. second: the next highest mean.
    """
    marks = [""] * len(spreads)
    order = sorted(range(len(spreads)), key=lambda index: -spreads[index].mean)
    if len(order) < 2:
        return marks
    effects = [cohens_d(spreads[order[0]], spreads[other]) for other in order[1:]]
    if all(effect is not None and effect >= EFFECT for effect in effects):
        marks[order[0]] = "best"
        marks[order[1]] = "second"
    return marks
