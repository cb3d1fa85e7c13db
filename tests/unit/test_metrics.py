"""Global means over the true prompts: filler and invalid prompts count in nothing, and nobody's NaN hides."""

import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.metrics import Totals, prompt_metrics
from mrpo_ds.types import LossOutput, ResponseLogps, SequenceBatch, TokenLoss
from tests.support import world_of_one

NAN = math.nan


@pytest.fixture(scope="module", autouse=True)
def world():
    with world_of_one():
        yield


def micro_of(prompts, counted=None):
    """A micro-batch of the given positions; its sequences do not matter here."""
    nothing = torch.zeros(0, 0, dtype=torch.int64)
    counted = [True] * len(prompts) if counted is None else counted
    return MicroBatch(
        SequenceBatch(nothing, nothing, None, None, nothing, nothing, nothing, (0, 0)),
        nothing,
        nothing,
        torch.tensor(prompts),
        torch.tensor(counted),
    )


def logps_of(policy, reference=(), present=None, scores=None):
    policy = torch.tensor(policy)
    reference = torch.tensor(reference) if len(reference) else torch.zeros(0, *policy.shape)
    present = torch.ones(policy.shape, dtype=torch.bool) if present is None else torch.tensor(present)
    scores = None if scores is None else torch.tensor(scores)
    return ResponseLogps(policy, torch.ones_like(policy), reference, torch.ones_like(reference), present, scores)


def output_of(losses, rewards, valid=None, **stats):
    valid = [True] * len(losses) if valid is None else valid
    return LossOutput(torch.tensor(losses), torch.tensor(rewards), torch.tensor(valid), stats)


def shown(values, name):
    """A metric's values, with None for the prompts that do not have it."""
    value, applies = values[name]
    return [number if has else None for number, has in zip(value.float().tolist(), applies.tolist(), strict=True)]


def pairs(losses, valid=None, policy=None):
    """Pairs with rewards (2, 1) each and policy log-probs (-1, -2)."""
    count = len(losses)
    return (
        output_of(losses, [[2.0, 1.0]] * count, valid),
        logps_of([[-1.0, -2.0]] * count if policy is None else policy, [[[-3.0, -5.0]] * count]),
    )


def test_means_are_over_prompts_and_not_over_micro_batches():
    totals = Totals(["r"], chosen=0)
    totals.add(*pairs([1.0, 2.0, 3.0]), micro_of([0, 1, 2]))
    totals.add(*pairs([10.0]), micro_of([3]))
    means = totals.means()
    assert means["loss"] == pytest.approx(4.0)  # not (2 + 10) / 2
    assert (means["prompts"], means["dropped"]) == (4.0, 0.0)


def test_filler_counts_in_nothing():
    totals = Totals(["r"], chosen=0)
    totals.add(*pairs([1.0, 2.0]), micro_of([0, 1]))
    alone = totals.means()
    totals.add(*pairs([100.0], policy=[[-50.0, -60.0]]), micro_of([0], counted=[False]))
    totals.add(*pairs([100.0], valid=[False]), micro_of([0], counted=[False]))
    assert totals.means() == alone


def test_invalid_prompts_are_counted_as_dropped_and_nowhere_else():
    totals = Totals(["r"], chosen=0)
    totals.add(
        *pairs([1.0, 0.0, 3.0], [True, False, True], [[-1.0, -2.0], [NAN, NAN], [-1.0, -2.0]]), micro_of([0, 1, 2])
    )
    means = totals.means()
    assert (means["prompts"], means["dropped"]) == (2.0, 1.0)
    assert means["loss"] == pytest.approx(2.0) and means["logps/chosen"] == pytest.approx(-1.0)
    assert all(math.isfinite(one.loss) for one in totals.seen())  # its NaN was left out, as the loss said it must be


def test_a_step_without_a_usable_prompt_has_numbers_all_the_same():
    totals = Totals(["r"], chosen=0)
    totals.add(*pairs([0.0, 0.0], [False, False]), micro_of([0, 1]))
    means = totals.means()
    assert (means["prompts"], means["dropped"], means["loss"]) == (0.0, 2.0, 0.0)


def test_large_sums_keep_their_last_digits():
    """10 000 prompts of -500 nats: a float32 sum of them would be off in the fifth digit."""
    totals = Totals(["r"], chosen=0)
    policy = [[-500.0 - index / 1e4, -1.0] for index in range(10_000)]
    for start in range(0, 10_000, 100):
        totals.add(*pairs([1.0] * 100, policy=policy[start : start + 100]), micro_of(list(range(100))))
    assert totals.means()["logps/chosen"] == pytest.approx(-500.49995, abs=5e-5)


def test_what_a_rank_has_seen_is_its_counted_prompts():
    totals = Totals(["r"], chosen=0)
    totals.add(*pairs([1.0, NAN]), micro_of([4, 2]))
    totals.add(*pairs([math.inf, 7.0]), micro_of([0, 0], counted=[True, False]))
    seen = totals.seen()
    assert [one.prompt for one in seen] == [4, 2, 0]
    assert (seen[0].loss, seen[2].loss) == (1.0, math.inf) and math.isnan(seen[1].loss)


def test_names_and_values_of_a_pair():
    output = output_of([0.5, 0.7], [[0.3, 0.1], [0.2, 0.2]])
    values = prompt_metrics(output, logps_of([[-1.0, -4.0], [-6.0, -2.0]], [[[-2.0, -5.0], [-7.0, -3.0]]]), ["gemma"])
    expected = {
        "loss": [0.5, 0.7],
        "rewards/chosen": [0.3, 0.2],
        "rewards/rejected": [0.1, 0.2],
        "rewards/margins": [0.2, 0.0],
        "rewards/accuracies": [1.0, 0.0],  # strict: a tie is no success
        "rewards/ties": [0.0, 1.0],
        "logps/chosen": [-1.0, -6.0],
        "logps/rejected": [-4.0, -2.0],
        "logps/accuracies": [1.0, 0.0],
        "rewards/top1": [1.0, 0.0],  # of two, the same as accuracies
        "rewards/pair_accuracies": [1.0, 0.0],
        "rewards/pair_margins": [0.2, 0.0],
        "ref/gemma/logps/chosen": [-2.0, -7.0],
        "ref/gemma/logps/rejected": [-5.0, -3.0],
        "ref/gemma/margin": [3.0, -4.0],
        "ref/gemma/accuracy": [1.0, 0.0],
    }
    assert values.keys() == expected.keys()
    for name, numbers in expected.items():
        assert shown(values, name) == pytest.approx(numbers), name


def test_stats_are_named_as_they_are_or_after_their_reference():
    output = replace(
        output_of([0.5], [[0.3, 0.1]]),
        stats={"vref/offset": torch.tensor([7.0]), "weight": torch.tensor([[0.25], [0.75]])},
    )
    values = prompt_metrics(output, logps_of([[-1.0, -4.0]], [[[-2.0, -5.0]], [[-3.0, -6.0]]]), ["a", "b"])
    assert shown(values, "vref/offset") == [7.0]
    assert (shown(values, "ref/a/weight"), shown(values, "ref/b/weight")) == ([0.25], [0.75])


def test_without_references_there_is_nothing_to_say_about_them():
    values = prompt_metrics(output_of([0.5], [[0.3, 0.1]]), logps_of([[-1.0, -4.0]]), [])
    assert not [name for name in values if name.startswith("ref/")]


def test_rejected_is_the_last_response_that_is_there():
    rewards = [[1.0, 2.0, 3.0], [4.0, 5.0, NAN], [6.0, NAN, NAN]]
    present = [[True, True, True], [True, True, False], [True, False, False]]
    values = prompt_metrics(output_of([0.0] * 3, rewards), logps_of(rewards, present=present), [])
    assert shown(values, "rewards/chosen") == [1.0, 4.0, 6.0]
    assert shown(values, "rewards/rejected") == [3.0, 5.0, None]
    assert shown(values, "rewards/accuracies") == [0.0, 0.0, None]


def test_the_gold_response_of_a_triple_is_not_the_chosen_one():
    rewards = [[0.0, 3.0, 1.0]]
    values = prompt_metrics(output_of([0.0], rewards), logps_of(rewards), [], chosen=1)
    assert (shown(values, "rewards/chosen"), shown(values, "rewards/rejected")) == ([3.0], [1.0])
    assert (shown(values, "rewards/top1"), shown(values, "rewards/pair_accuracies")) == ([1.0], [1.0])


def test_a_single_response_is_chosen_or_rejected_by_its_score():
    values = prompt_metrics(
        output_of([0.0] * 3, [[0.5], [0.25], [0.75]]),
        logps_of([[-1.0], [-2.0], [-3.0]], scores=[[1.0], [0.0], [NAN]]),
        [],
    )
    assert shown(values, "rewards/chosen") == [0.5, None, 0.75]
    assert shown(values, "rewards/rejected") == [None, 0.25, None]
    for name in ("margins", "accuracies", "ties", "top1", "pair_accuracies", "pair_margins"):
        assert shown(values, f"rewards/{name}") == [None] * 3


def test_the_margin_of_single_responses_is_that_of_their_means():
    totals = Totals([], chosen=0)
    output = output_of([0.0] * 3, [[0.5], [0.25], [1.5]])
    totals.add(output, logps_of([[-1.0]] * 3, scores=[[1.0], [0.0], [1.0]]), micro_of([0, 1, 2]))
    means = totals.means()
    assert means["rewards/margins"] == pytest.approx(1.0 - 0.25)
    assert math.isnan(means["rewards/accuracies"])


def test_lists_are_ranked_by_their_scores_and_ties_do_not_count():
    """Scores 3, 2, 2, 1: five ordered pairs, of which the rewards get 1 > 2, 1 > 3, 1 > 4 and 2 > 4 right."""
    rewards = [[4.0, 3.0, 1.0, 2.0]]
    values = prompt_metrics(output_of([0.0], rewards), logps_of(rewards, scores=[[3.0, 2.0, 2.0, 1.0]]), [])
    assert shown(values, "rewards/top1") == [1.0]
    assert shown(values, "rewards/pair_accuracies") == pytest.approx([4 / 5])
    assert shown(values, "rewards/pair_margins") == pytest.approx([(1 + 3 + 2 + 1 - 1) / 5])


def test_the_best_response_must_beat_every_worse_one():
    rewards = [[2.0, 1.0, 2.0]]
    values = prompt_metrics(output_of([0.0], rewards), logps_of(rewards, scores=[[3.0, 2.0, 1.0]]), [])
    assert shown(values, "rewards/top1") == [0.0]


def test_a_token_mean_is_over_the_tokens_of_all_micro_batches():
    totals = Totals([], chosen=0)
    for position, (nats, tokens) in enumerate([(6.0, 2.0), (1.0, 8.0)]):
        part = TokenLoss(torch.tensor([nats]), torch.tensor([tokens]), weight=0.5)
        output = replace(output_of([1.0], [[2.0, 1.0]]), per_token=part)
        totals.add(output, logps_of([[-1.0, -2.0]]), micro_of([position]))
    means = totals.means()
    assert means["nll_loss"] == pytest.approx(7 / 10)  # not (3 + 1 / 8) / 2
    assert means["loss"] == pytest.approx(1.0 + 0.5 * 7 / 10)
