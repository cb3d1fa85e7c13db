"""From verdicts to scores: averages as MT-Bench has them, win rates as AlpacaEval, Arena-Hard and the MRPO paper have.

Intervals are over questions: another sample of questions, not another judgment. All verdicts of a question are drawn
together, since they are no independent evidence.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_ds.comparison.statistics import Bootstrap, Values, bootstrap_means, estimate_of, percentile_interval
from mrpo_ds.judged.bradley_terry import strengths, win_rates
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST
from mrpo_ds.judged.verdicts import Verdict

Summary = dict[str, Any]


@dataclass(frozen=True)
class Game:
    """One game of a fit: who, on which question, and how it ended for the model."""

    model: str
    question: str
    outcome: float
    """1 won, 0 lost, 0.5 a tie."""
    weight: int
    """Games that it counts as."""


def summarize_scores(verdicts: Sequence[Verdict], categories: Mapping[str, str], how: Bootstrap) -> Summary:
    """MT-Bench's numbers of one model: the mean over all judged turns, as FastChat has it, per turn, per category.

    Args:
        verdicts: of one model.
        categories: by question; {} where they are not known.
        how: bootstrap over questions.

    Returns:
        mean, stderr and interval (over questions), turns {"1": ..}, categories, judged, questions: id -> its mean.
        Means are None where nothing is judged.
    """
    judged = [verdict for verdict in verdicts if verdict.value is not None]
    by_turn = _grouped((str(verdict.case.turn), verdict.value) for verdict in judged)
    by_question = _grouped((verdict.case.question, verdict.value) for verdict in judged)
    by_category = _grouped((categories.get(verdict.case.question, ""), verdict.value) for verdict in judged)
    questions = {name: _mean(values) for name, values in by_question.items()}
    low, high = _ratio_interval(list(by_question.values()), how)
    return {
        "mean": _mean([value for verdict in judged if (value := verdict.value) is not None]),
        "stderr": estimate_of(list(questions.values())).stderr if questions else None,
        "interval": [low, high],
        "turns": {name: _mean(values) for name, values in sorted(by_turn.items())},
        "categories": {name: _mean(values) for name, values in sorted(by_category.items()) if name},
        "judged": len(judged),
        "questions": questions,
    }


def summarize_pairs(verdicts: Sequence[Verdict], how: Bootstrap) -> Summary:
    """Win rate of one model against the baseline, and what the order of the answers did to it.

    Args:
        verdicts: of one model.
        how: bootstrap over questions.

    Returns:
        win_rate: mean over questions of the mean outcome of their orders, ties half, with stderr and interval; win, tie
        and lose: shares, the mean of the orders' shares; orders: the same of each; flipped: share of questions judged
        in both orders whose outcome is not the same in both; first_shown: mean outcome for the answer that is shown
        first; judged; questions: id -> its mean outcome.
    """
    judged = [verdict for verdict in verdicts if verdict.value is not None]
    questions = {
        name: _mean(values)
        for name, values in _grouped((verdict.case.question, verdict.value) for verdict in judged).items()
    }
    rates = np.array(list(questions.values()), dtype=np.float64)
    interval = _interval(bootstrap_means(rates[:, None], how)[:, 0], how) if questions else (None, None)
    orders = {
        order: _shares([verdict.value for verdict in judged if verdict.case.order == order])
        for order in (MODEL_FIRST, BASELINE_FIRST)
        if any(verdict.case.order == order for verdict in judged)
    }
    return {
        "win_rate": _mean(rates.tolist()),
        "stderr": estimate_of(rates).stderr if questions else None,
        "interval": list(interval),
        **{key: _mean([shares[key] for shares in orders.values()]) for key in ("win", "tie", "lose")},
        "orders": orders,
        "flipped": _flipped(judged),
        "first_shown": _mean([_for_first(verdict) for verdict in judged]),
        "judged": len(judged),
        "questions": questions,
    }


def games_of(verdicts: Iterable[Verdict], much_weight: int) -> list[Game]:
    """The games of a fit: each verdict is one, "much better" several, as Arena-Hard counts."""
    return [
        Game(verdict.case.model, verdict.case.question, verdict.value, much_weight if verdict.much else 1)
        for verdict in verdicts
        if verdict.value is not None
    ]


def arena(games: Sequence[Game], models: Sequence[str], how: Bootstrap) -> dict[str, Summary]:
    """Bradley-Terry win rates of all models against the baseline, fitted together, with bootstrap intervals.

    Args:
        games: of all models.
        models: names, without the baseline.
        how: the same questions are drawn for all models.

    Returns:
        Of each model rate, the probability of beating the baseline, strength (logits; Elo is 400 / ln 10 of it),
        interval of the rate, and games. None where it has no game.
    """
    questions = sorted({game.question for game in games})
    wins = np.zeros((len(questions), len(models), 2))  # won and lost, against the baseline
    rows = {name: row for row, name in enumerate(questions)}
    columns = {name: column for column, name in enumerate(models)}
    for game in games:
        place = (rows[game.question], columns[game.model])
        wins[place] += game.weight * np.array([game.outcome, 1 - game.outcome])
    theta = _fit(wins.sum(0))
    drawn = _drawn_rates(wins, how) if questions else np.empty((0, len(models)))
    found = {}
    for name, column in columns.items():
        rate = win_rates(theta, 0)[column + 1]
        known = bool(np.isfinite(rate))
        found[name] = {
            "rate": float(rate) if known else None,
            "strength": float(theta[column + 1]) if known else None,
            "interval": list(_interval(drawn[:, column], how)) if known else [None, None],
            "games": sum(game.weight for game in games if game.model == name),
        }
    return found


def _drawn_rates(wins: Values, how: Bootstrap) -> Values:
    """[resamples, M] win rates of resampled questions. wins: [n, M, 2]."""
    generator = np.random.default_rng(how.seed)
    count = len(wins)
    share = np.full(count, 1 / count)
    rates = np.empty((how.resamples, wins.shape[1]))
    for row in range(how.resamples):
        drawn = generator.multinomial(count, share)
        rates[row] = win_rates(_fit(np.tensordot(drawn, wins, 1)), 0)[1:]
    return rates


def _fit(totals: Values) -> Values:
    """[1 + M] strengths, the baseline's 0 first. totals: [M, 2] games won and lost against it."""
    table = np.zeros((len(totals) + 1, len(totals) + 1))
    table[1:, 0] = totals[:, 0]
    table[0, 1:] = totals[:, 1]
    return strengths(table, 0)


def _shares(values: Sequence[float | None]) -> Summary:
    """Shares of wins, ties and losses; a weighed verdict counts for the side that it leans to."""
    sides = [float(np.sign((value or 0.0) - 0.5)) for value in values]
    kinds = Counter({1.0: "win", 0.0: "tie", -1.0: "lose"}[side] for side in sides)
    return {**{kind: kinds[kind] / len(values) for kind in ("win", "tie", "lose")}, "judged": len(values)}


def _flipped(judged: Sequence[Verdict]) -> float | None:
    """Share of questions with another outcome in the other order; of weighed verdicts, the side they lean to."""
    sides: dict[str, dict[str, float]] = {}
    for verdict in judged:
        if verdict.value is not None:
            sides.setdefault(verdict.case.question, {})[verdict.case.order] = float(np.sign(verdict.value - 0.5))
    both = [found for found in sides.values() if len(found) == 2]
    share: float | None = _mean([float(found[MODEL_FIRST] != found[BASELINE_FIRST]) for found in both])
    return share


def _for_first(verdict: Verdict) -> float:
    value = verdict.value or 0.0
    return 1 - value if verdict.case.order == BASELINE_FIRST else value


def _ratio_interval(groups: Sequence[Sequence[float]], how: Bootstrap) -> tuple[float | None, float | None]:
    """Of the mean over all values when the groups that they are in are drawn."""
    if not groups:
        return None, None
    sums = np.array([[sum(group), len(group)] for group in groups], dtype=np.float64)
    means = bootstrap_means(sums, how)  # of sum and count per question, whose ratio is the mean over all turns
    return _interval(means[:, 0] / means[:, 1], how)


def _interval(values: Values, how: Bootstrap) -> tuple[float | None, float | None]:
    low, high = percentile_interval(values, how.confidence)
    return (low, high) if math.isfinite(low) else (None, None)


def _grouped(pairs: Iterable[tuple[str, float | None]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        if value is not None:
            groups.setdefault(name, []).append(value)
    return groups


def _mean(values: Sequence[float]) -> Any:
    """The plain mean, None of nothing."""
    return math.fsum(values) / len(values) if values else None
