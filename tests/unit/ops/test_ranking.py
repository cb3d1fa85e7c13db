"""Who is better than whom, with ties, missing scores and absent responses."""

import math

import pytest
import torch

from mrpo_ds.ops.ranking import pick, rank, without_unscored
from mrpo_ds.types import ResponseLogps

NAN = math.nan


def ranking_of(*scores):
    """The ranking of one prompt with these scores; None is an absent response."""
    present = torch.tensor([[score is not None for score in scores]])
    return rank(present, torch.tensor([[NAN if score is None else score for score in scores]], dtype=torch.float64))


def better(ranking):
    """The pairs (i, k) of which i is strictly better."""
    return {tuple(pair) for pair in ranking.better[0].nonzero().tolist()}


def test_scores_rank_the_columns():
    ranking = ranking_of(1.0, 9.0, 5.0)
    assert better(ranking) == {(1, 2), (1, 0), (2, 0)}
    assert ranking.order.tolist() == [[1, 2, 0]] and ranking.count.tolist() == [3]
    assert ranking.wins.tolist() == [[-2, 2, 0]]
    assert ranking.comparable.tolist() == [True] and ranking.tied.tolist() == [0.0]


def test_negative_scores_rank_above_more_negative_ones_and_above_absent_responses():
    ranking = ranking_of(-5.0, None, -2.0)
    assert better(ranking) == {(2, 0)}
    assert ranking.order.tolist() == [[2, 0, 1]] and ranking.count.tolist() == [2]


def test_close_scores_are_no_tie():
    assert better(ranking_of(0.8, 0.8 + 1e-12)) == {(1, 0)}


@pytest.mark.parametrize("scores", [None, torch.full((2, 3), NAN)])
def test_without_scores_an_earlier_column_is_better(scores):
    ranking = rank(torch.tensor([[True, True, True], [True, True, False]]), scores)
    assert ranking.order.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert ranking.wins.tolist() == [[2, 0, -2], [1, -1, 0]]


def test_ties_keep_the_order_of_the_columns_and_share_their_wins():
    ranking = ranking_of(1.0, 2.0, 3.0, 2.0)
    assert better(ranking) == {(2, 1), (2, 3), (2, 0), (1, 0), (3, 0)}
    assert ranking.order.tolist() == [[2, 1, 3, 0]]
    assert ranking.wins.tolist() == [[-3, 0, 3, 0]]
    assert ranking.tied.tolist() == pytest.approx([1 / 6])


def test_ties_keep_the_order_of_the_columns_in_long_lists_too():
    """A sort that is not stable shuffles them from some length on."""
    order = ranking_of(*[float(column % 2) for column in range(200)]).order
    assert order.tolist() == [[*range(1, 200, 2), *range(0, 200, 2)]]


@pytest.mark.parametrize("scores", [(4.0, 4.0, 4.0), (4.0, None, None), (None, None)])
def test_nothing_is_comparable_where_all_are_tied_or_one_is_left(scores):
    ranking = ranking_of(*scores)
    assert ranking.comparable.tolist() == [False] and not ranking.wins.any()


def test_the_tied_share_counts_pairs_of_present_responses():
    assert ranking_of(4.0, 4.0, None, 4.0).tied.tolist() == [1.0]
    assert ranking_of(4.0, 4.0, None, 1.0).tied.tolist() == pytest.approx([1 / 3])


def test_scores_of_one_prompt_say_nothing_about_another():
    ranking = rank(torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 2.0], [NAN, NAN]]))
    assert ranking.order.tolist() == [[1, 0], [0, 1]]


def batch(present, scores):
    present = torch.tensor(present)
    numbers = torch.zeros(present.shape)
    return ResponseLogps(numbers, numbers, numbers[None], numbers[None], present, scores=scores)


@pytest.mark.parametrize(
    "scores, present",
    [
        ([5.0, NAN, 1.0], [True, False, True]),
        ([5.0, math.inf, -math.inf], [True, False, False]),
        ([NAN, NAN, NAN], [True, True, True]),
        ([5.0, 4.0, 1.0], [True, True, True]),
    ],
)
def test_a_response_without_a_score_is_absent_where_another_has_one(scores, present):
    logps = batch([[True] * 3], torch.tensor([scores]))
    assert without_unscored(logps).present.tolist() == [present]


def test_the_score_of_an_absent_response_counts_for_nothing():
    logps = batch([[True, True, False]], torch.tensor([[NAN, NAN, 3.0]]))
    assert without_unscored(logps).present.tolist() == [[True, True, False]]
    assert better(rank(logps.present, logps.scores)) == {(0, 1)}


def test_a_batch_without_scores_is_left_as_it_is():
    logps = batch([[True, False]], None)
    assert without_unscored(logps) is logps


def test_every_draw_picks_one_candidate_and_each_as_often():
    mask = torch.tensor([False, True, True, False, True])
    draws = torch.arange(300) / 300
    picked = pick(mask.expand(300, -1), draws)
    assert (picked.sum(-1) == 1).all() and picked.sum(0).tolist() == [0, 100, 100, 0, 100]


@pytest.mark.parametrize("count", range(1, 30))
def test_the_largest_float32_below_one_picks_the_last_candidate(count):
    picked = pick(torch.ones(1, count, dtype=torch.bool), torch.tensor([1 - 2**-24]))
    assert picked.nonzero().tolist() == [[0, count - 1]]


def test_nothing_is_picked_where_there_is_no_candidate():
    assert not pick(torch.zeros(2, 3, dtype=torch.bool), torch.tensor([0.0, 0.9])).any()
