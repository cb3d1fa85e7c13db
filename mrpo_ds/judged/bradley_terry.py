"""Bradley-Terry strengths of K players from the games between them, one player anchored at 0.

P(i beats j) = sigmoid(theta_i - theta_j) (Bradley and Terry 1952). A tie is half a game won by each, as in Arena-Hard.
"""

import numpy as np

from mrpo_ds.comparison.statistics import Values

STEPS = 100
TOLERANCE = 1e-12
BOUND = 30.0
"""Largest |theta|, logits: who has won, or lost, every game has no finite strength. sigmoid(30) is 1 - 1e-13."""


def strengths(wins: Values, anchor: int) -> Values:
    """The maximum-likelihood strengths, by Newton's method on the concave log-likelihood.

    Args:
        wins: [K, K] how often row has beaten column, >= 0; ties are half a win for both.
        anchor: whose strength is 0.

    Returns:
        [K] logits, NaN for players that no chain of games connects with the anchor.
    """
    connected = _reached(wins + wins.T > 0, anchor)
    theta = np.where(connected, 0.0, np.nan)
    free = np.flatnonzero(connected & (np.arange(len(wins)) != anchor))
    if not len(free):
        return theta
    players = np.flatnonzero(connected)
    inner = wins[np.ix_(players, players)]
    games = inner + inner.T
    places = np.searchsorted(players, free)
    found = np.zeros(len(players))
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(found[None, :] - found[:, None]))
        gradient = (inner - games * expected).sum(1)[places]
        weight = games * expected * (1 - expected)
        hessian = np.diag(weight.sum(1)) - weight
        # The ridge is far below any weight of a finite solution; it keeps steps finite where there is none.
        step = np.linalg.solve(hessian[np.ix_(places, places)] + 1e-13 * np.eye(len(places)), gradient)
        # A step is held to 2 logits: beyond, the quadratic that Newton's method trusts has nothing to do with it.
        moved = np.clip(found[places] + np.clip(step, -2.0, 2.0), -BOUND, BOUND)
        largest = np.abs(moved - found[places]).max()
        found[places] = moved
        if largest < TOLERANCE:
            break
    theta[players] = found
    return theta


def win_rates(theta: Values, anchor: int) -> Values:
    """[K] probabilities of beating the anchor; 0.5 for itself, NaN where a strength is."""
    rates: Values = 1 / (1 + np.exp(theta[anchor] - theta))
    return rates


def _reached(linked: np.ndarray, start: int) -> np.ndarray:
    """[K] bool: who is connected with start. linked: [K, K] bool, symmetric."""
    seen = np.zeros(len(linked), dtype=bool)
    seen[start] = True
    while True:
        wider = seen | linked[seen].any(0)
        if (wider == seen).all():
            return seen
        seen = wider
