"""From verdicts to scores: values worked out by hand, laws that must hold, and the published judgments."""

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_ds.comparison.statistics import Bootstrap
from mrpo_ds.judged.benchmarks import load_benchmark
from mrpo_ds.judged.bradley_terry import BOUND, strengths, win_rates
from mrpo_ds.judged.prompts import BASELINE_FIRST, MODEL_FIRST, Case
from mrpo_ds.judged.questions import read_questions
from mrpo_ds.judged.scoring import Game, arena, games_of, summarize_pairs, summarize_scores
from mrpo_ds.judged.verdict_files import origin_of, read_verdict_files
from mrpo_ds.judged.verdicts import Verdict

DATA = (Path(__file__).parents[3] / "../shared/data").resolve()
HOW = Bootstrap(200, 0)
published = pytest.mark.skipif(not (DATA / "README.md").is_file(), reason="the public data is not beside the repo")


def score(question: str, turn: int, value: float | None, model: str = "m") -> Verdict:
    return Verdict(Case(model, question, turn), value, failure="" if value is not None else "no verdict")


def pair(question: str, order: str, value: float | None, much: bool = False, model: str = "m") -> Verdict:
    return Verdict(Case(model, question, 1, order), value, much, "" if value is not None else "no verdict")


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_mt_bench_averages_by_hand():
    """q1: 8 and 4; q2: 6 and no verdict; q3: 9 and 1. All turns: 28 / 5; turn 1: 23 / 3; turn 2: 5 / 2."""
    verdicts = [score("1", 1, 8), score("1", 2, 4), score("2", 1, 6), score("2", 2, None)]
    verdicts += [score("3", 1, 9), score("3", 2, 1)]
    found = summarize_scores(verdicts, {"1": "math", "2": "math", "3": "stem"}, HOW)
    assert found["mean"] == pytest.approx(28 / 5)
    assert found["turns"] == pytest.approx({"1": 23 / 3, "2": 5 / 2})
    assert found["categories"] == pytest.approx({"math": 18 / 3, "stem": 10 / 2})
    assert found["judged"] == 5
    assert found["questions"] == {"1": 6, "2": 6, "3": 5}
    # Of the means over questions 6, 6, 5: standard deviation sqrt(1/3), error sqrt(1/3) / sqrt(3) = 1/3.
    assert found["stderr"] == pytest.approx(1 / 3)
    low, high = found["interval"]
    assert 5 <= low < 28 / 5 < high <= 6


def test_nothing_judged_is_no_score():
    found = summarize_scores([score("1", 1, None)], {}, HOW)
    assert (found["mean"], found["stderr"], found["interval"], found["turns"]) == (None, None, [None, None], {})


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 10), st.integers(1, 10)), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_mean_is_that_of_all_turns_and_lies_in_its_range(rows):
    verdicts = [score(str(name), turn, value) for name, *values in rows for turn, value in enumerate(values, start=1)]
    found = summarize_scores(verdicts, {}, Bootstrap(20, 1))
    values = [value for _, *values in rows for value in values]
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert found["mean"] == pytest.approx((found["turns"]["1"] + found["turns"]["2"]) / 2)
    assert min(values) <= found["interval"][0] <= found["interval"][1] <= max(values)


@published
def test_published_mt_bench_judgments_have_the_averages_of_their_file():
    file = DATA / "eval/mt_bench/model_judgment_gpt-4_single.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().split("\n") if line]
    kinds = [
        json.loads(line) for line in (DATA / "eval/mt_bench/question.jsonl").read_text("utf-8").split("\n") if line
    ]
    category = {row["question_id"]: row["category"] for row in kinds}
    direct = defaultdict(list)
    for row in rows:
        if row["score"] != -1:
            for key in ("all", row["turn"], category[row["question_id"]]):
                direct[row["model"], key].append(row["score"])
    benchmark = load_benchmark("mt_bench")
    questions = read_questions(benchmark, str(DATA / "eval/mt_bench/question.jsonl"), None).questions
    verdicts = [one.verdict for one in read_verdict_files(benchmark, [str(file)])]
    assert len(verdicts) == len(rows) == 640
    assert sum(verdict.value is None for verdict in verdicts) == sum(row["score"] == -1 for row in rows) == 1
    models = {row["model"] for row in rows}
    assert len(models) == 4
    for model in models:
        own = [verdict for verdict in verdicts if verdict.case.model == model]
        found = summarize_scores(own, {one.id: one.category for one in questions}, HOW)
        assert found["mean"] == pytest.approx(np.mean(direct[model, "all"]), abs=1e-12)
        for turn in (1, 2):
            assert found["turns"][str(turn)] == pytest.approx(np.mean(direct[model, turn]), abs=1e-12)
        assert len(found["categories"]) == 8
        for name, value in found["categories"].items():
            assert value == pytest.approx(np.mean(direct[model, name]), abs=1e-12)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def pairs_by_hand() -> list[Verdict]:
    """q1 wins in both orders; q2 wins first and loses second; q3 ties and loses; q4 has a verdict in one order."""
    return [
        pair("1", MODEL_FIRST, 1.0),
        pair("1", BASELINE_FIRST, 1.0),
        pair("2", MODEL_FIRST, 1.0),
        pair("2", BASELINE_FIRST, 0.0),
        pair("3", MODEL_FIRST, 0.5),
        pair("3", BASELINE_FIRST, 0.0),
        pair("4", MODEL_FIRST, 0.0),
        pair("4", BASELINE_FIRST, None),
    ]


def test_win_rates_by_hand():
    found = summarize_pairs(pairs_by_hand(), HOW)
    assert found["questions"] == {"1": 1.0, "2": 0.5, "3": 0.25, "4": 0.0}
    assert found["win_rate"] == pytest.approx(1.75 / 4)
    deviations = [(value - 1.75 / 4) ** 2 for value in (1.0, 0.5, 0.25, 0.0)]
    assert found["stderr"] == pytest.approx(math.sqrt(sum(deviations) / 3 / 4))
    # Model first: 2 wins, 1 tie, 1 loss of 4. Baseline first: 1 win, 2 losses of 3. Then the mean of both.
    assert found["orders"][MODEL_FIRST] == {"win": 0.5, "tie": 0.25, "lose": 0.25, "judged": 4}
    assert found["orders"][BASELINE_FIRST]["win"] == pytest.approx(1 / 3)
    assert found["win"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["tie"] == pytest.approx(1 / 8)
    assert found["win"] + found["tie"] + found["lose"] == pytest.approx(1)
    # Of the three questions with both orders, 2 and 3 end otherwise in the other order.
    assert found["flipped"] == pytest.approx(2 / 3)
    # The first answer's outcome: 1, 0, 1, 1, 0.5, 1, 0.
    assert found["first_shown"] == pytest.approx(4.5 / 7)
    assert found["judged"] == 7


def test_a_judge_that_always_likes_the_first_is_seen_as_one():
    verdicts = [
        pair(str(n), order, value) for n in range(9) for order, value in ((MODEL_FIRST, 1.0), (BASELINE_FIRST, 0.0))
    ]
    found = summarize_pairs(verdicts, HOW)
    assert (found["win_rate"], found["flipped"], found["first_shown"]) == (0.5, 1.0, 1.0)
    alone = summarize_pairs([one for one in verdicts if one.case.order == MODEL_FIRST], HOW)
    assert (alone["win_rate"], alone["flipped"]) == (1.0, None), "in one order the bias is the whole result"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=20))
@settings(deadline=None)
def test_the_baseline_has_what_the_model_has_not(outcomes):
    def verdicts(sign: float) -> list[Verdict]:
        return [
            pair(str(n), order, 0.5 + sign * (value - 0.5))
            for n, values in enumerate(outcomes)
            for order, value in zip((MODEL_FIRST, BASELINE_FIRST), values, strict=True)
        ]

    ours, theirs = summarize_pairs(verdicts(1), HOW), summarize_pairs(verdicts(-1), HOW)
    assert ours["win_rate"] + theirs["win_rate"] == pytest.approx(1)
    assert (ours["win"], ours["lose"]) == pytest.approx((theirs["lose"], theirs["win"]))
    assert ours["flipped"] == theirs["flipped"]


def test_the_papers_table_from_its_counts():
    """MRPO's Table 3, HH-RLHF: 135 wins, 71 ties, 94 losses of 300 are 45.0, 23.7 and 31.3 percent."""
    counts = ((1.0, 135), (0.5, 71), (0.0, 94))
    values = [value for value, count in counts for _ in range(count)]
    found = summarize_pairs([pair(str(n), MODEL_FIRST, value) for n, value in enumerate(values)], HOW)
    assert [round(100 * found[key], 1) for key in ("win", "tie", "lose")] == [45.0, 23.7, 31.3]


@published
def test_published_preferences_have_the_win_rates_of_their_file(tmp_path):
    """AlpacaEval's weighed win rate is the mean of preference - 1, of annotations in its own layout."""
    rows = gzip.decompress((DATA / "preference/alpaca_eval_ranked/ranked.jsonl.gz").read_bytes()).decode().split("\n")
    annotations = [
        {key: row[key] for key in ("instruction", "generator_1")}
        | {key: one[key] for key in ("generator_2", "preference")}
        for row in map(json.loads, filter(None, rows))
        for one in row["completions"]
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    verdicts = read_verdict_files(load_benchmark("alpaca_eval"), [str(tmp_path / "annotations.json")])
    assert origin_of(verdicts) == ("gpt4_1106_preview", "")
    direct = defaultdict(list)
    for row in annotations:
        direct[row["generator_2"]].append(float(row["preference"]) - 1)
    assert len(direct) == 8
    for name, values in direct.items():
        found = summarize_pairs([one.verdict for one in verdicts if one.verdict.case.model == name], HOW)
        assert found["judged"] == len(found["questions"]) == len(values) >= 611
        assert found["win_rate"] == pytest.approx(np.mean(values), abs=1e-12)
        assert found["stderr"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)


# ---- Bradley-Terry ---------------------------------------------------------------------------------------------------


def test_arena_hard_by_hand():
    """A won by much (3 games), a tie, a loss: 3.5 of 5 games. One that only won is at the bound."""
    verdicts = [
        pair("1", MODEL_FIRST, 1.0, much=True),
        pair("1", BASELINE_FIRST, 0.5),
        pair("2", MODEL_FIRST, 0.0),
        pair("2", BASELINE_FIRST, None),
        pair("1", MODEL_FIRST, 1.0, model="best"),
        pair("2", MODEL_FIRST, 1.0, model="best"),
    ]
    found = arena(games_of(verdicts, 3), ["m", "best", "none"], HOW)
    assert found["m"]["rate"] == pytest.approx(3.5 / 5, abs=1e-9)
    assert found["m"]["strength"] == pytest.approx(math.log(3.5 / 1.5), abs=1e-8)
    assert found["m"]["games"] == 5
    assert found["best"]["rate"] == pytest.approx(1.0, abs=1e-6)
    assert found["none"] == {"rate": None, "strength": None, "interval": [None, None], "games": 0}
    assert arena(games_of(verdicts, 1), ["m", "best"], HOW)["m"]["rate"] == pytest.approx(1.5 / 3, abs=1e-9)


def test_three_players_by_hand():
    """Strengths 0, ln 2, ln 6: with the games that they expect of 6 a pair the fit gives them back."""
    theta = np.log([1.0, 2.0, 6.0])
    shares = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
    wins = 6 * shares
    np.fill_diagonal(wins, 0)
    assert wins[1, 0] == pytest.approx(4) and wins[2, 1] == pytest.approx(4.5)
    assert strengths(wins, 0) == pytest.approx(theta, abs=1e-9)
    assert win_rates(strengths(wins, 0), 0) == pytest.approx([1 / 2, 2 / 3, 6 / 7], abs=1e-9)


tables = st.lists(st.lists(st.integers(1, 30), min_size=4, max_size=4), min_size=4, max_size=4)


@given(tables, st.integers(0, 3))
@settings(deadline=None)
def test_the_fit_is_where_expected_and_won_games_agree(table, anchor):
    wins = np.array(table, dtype=float)
    np.fill_diagonal(wins, 0)
    theta = strengths(wins, anchor)
    assert theta[anchor] == 0
    games = wins + wins.T
    expected = games / (1 + np.exp(theta[None, :] - theta[:, None]))
    np.fill_diagonal(expected, 0)
    assert expected.sum(1) == pytest.approx(wins.sum(1), rel=1e-7)
    other = strengths(wins, (anchor + 1) % 4)
    assert other - other[anchor] == pytest.approx(theta, abs=1e-7), "the anchor only shifts"
    assert strengths(wins.T, anchor) == pytest.approx(-theta, abs=1e-7), "who wins instead of losing has the negative"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
@settings(deadline=None)
def test_against_one_baseline_the_joint_fit_is_the_share_of_games_won(results):
    wins = np.zeros((len(results) + 1, len(results) + 1))
    for row, (won, lost) in enumerate(results, start=1):
        wins[row, 0], wins[0, row] = won, lost
    rates = win_rates(strengths(wins, 0), 0)[1:]
    for rate, (won, lost) in zip(rates, results, strict=True):
        if won + lost == 0:
            assert math.isnan(rate)
        else:
            assert rate == pytest.approx(won / (won + lost), abs=1e-6)


def test_who_is_connected_through_others_has_a_strength():
    wins = np.zeros((4, 4))
    wins[1, 0] = wins[0, 1] = 2  # 1 is as strong as the anchor
    wins[2, 1], wins[1, 2] = 3, 1  # and 2 three times as strong as 1
    theta = strengths(wins, 0)
    assert theta[:3] == pytest.approx([0, 0, math.log(3)], abs=1e-8)
    assert math.isnan(theta[3])
    assert abs(strengths(np.array([[0.0, 0.0], [5.0, 0.0]]), 0)[1]) <= BOUND


def test_intervals_are_over_questions_and_of_their_seed():
    """Each question has one won and one lost game in its two orders: no sample of questions can differ from a half."""
    games = [Game("m", str(n), outcome, 1) for n in range(20) for outcome in (1.0, 0.0)]
    assert arena(games, ["m"], HOW)["m"]["interval"] == pytest.approx([0.5, 0.5], abs=1e-9)
    games = [Game("m", str(n), (n % 7) / 6, 1) for n in range(42)]
    first, second = (arena(games, ["m"], Bootstrap(400, seed))["m"]["interval"] for seed in (0, 1))
    assert first == arena(games, ["m"], Bootstrap(400, 0))["m"]["interval"] != second
    # Outcomes 0, 1/6, ..., 1: standard deviation 1/3, error 1/3 / sqrt(42) = 0.0514; the middle 95 % are 0.5 +- 0.101.
    assert first == pytest.approx([0.399, 0.601], abs=0.02)
