"""Global means over the true prompts: filler and invalid prompts count in nothing, and nobody's NaN hides."""

import math
from dataclasses import replace

import pytest
import torch

from mrpo_ds.data.micro import MicroBatch
from mrpo_ds.errors import NonFiniteError
from mrpo_ds.metrics import Totals, best_and_last, prompt_metrics, raise_if_gradient_not_finite
from mrpo_ds.types import Example, LossOutput, Message, ResponseLogps, SequenceBatch
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
        SequenceBatch(nothing, nothing, nothing.bool()), nothing, nothing, torch.tensor(prompts), torch.tensor(counted)
    )


def logps_of(policy, reference=(), present=None):
    policy = torch.tensor(policy)
    reference = torch.tensor(reference) if len(reference) else torch.zeros(0, *policy.shape)
    present = torch.ones(policy.shape, dtype=torch.bool) if present is None else torch.tensor(present)
    return ResponseLogps(policy, torch.ones_like(policy), reference, torch.ones_like(reference), present)


def output_of(losses, rewards, valid=None, **stats):
    valid = [True] * len(losses) if valid is None else valid
    return LossOutput(torch.tensor(losses), torch.tensor(rewards), torch.tensor(valid), stats)


def pairs(losses, valid=None, policy=None):
    """Pairs with rewards (2, 1) each and policy log-probs (-1, -2)."""
    count = len(losses)
    return (
        output_of(losses, [[2.0, 1.0]] * count, valid),
        logps_of([[-1.0, -2.0]] * count if policy is None else policy, [[[-3.0, -5.0]] * count]),
    )


def examples(count):
    return [Example(f"row-{i}", (Message("user", "q"),), ("a", "b"), None, f"file row {i}") for i in range(count)]


def test_means_are_over_prompts_and_not_over_micro_batches():
    totals = Totals(["r"])
    totals.add(*pairs([1.0, 2.0, 3.0]), micro_of([0, 1, 2]))
    totals.add(*pairs([10.0]), micro_of([3]))
    means = totals.means()
    assert means["loss"] == pytest.approx(4.0)  # not (2 + 10) / 2
    assert (means["prompts"], means["dropped"]) == (4.0, 0.0)


def test_filler_counts_in_nothing():
    totals = Totals(["r"])
    totals.add(*pairs([1.0, 2.0]), micro_of([0, 1]))
    alone = totals.means()
    totals.add(*pairs([100.0], policy=[[-50.0, -60.0]]), micro_of([0], counted=[False]))
    totals.add(*pairs([100.0], valid=[False]), micro_of([0], counted=[False]))
    assert totals.means() == alone


def test_invalid_prompts_are_counted_as_dropped_and_nowhere_else():
    totals = Totals(["r"])
    totals.add(
        *pairs([1.0, 0.0, 3.0], [True, False, True], [[-1.0, -2.0], [NAN, NAN], [-1.0, -2.0]]), micro_of([0, 1, 2])
    )
    means = totals.means()
    assert (means["prompts"], means["dropped"]) == (2.0, 1.0)
    assert means["loss"] == pytest.approx(2.0) and means["logps/chosen"] == pytest.approx(-1.0)
    totals.raise_if_not_finite(means, 1, examples(3))  # its NaN was left out, as the loss said it must be


def test_a_step_without_a_usable_prompt_has_numbers_all_the_same():
    totals = Totals(["r"])
    totals.add(*pairs([0.0, 0.0], [False, False]), micro_of([0, 1]))
    means = totals.means()
    assert (means["prompts"], means["dropped"], means["loss"]) == (0.0, 2.0, 0.0)


def test_large_sums_keep_their_last_digits():
    """10 000 prompts of -500 nats: a float32 sum of them would be off in the fifth digit."""
    totals = Totals(["r"])
    policy = [[-500.0 - index / 1e4, -1.0] for index in range(10_000)]
    for start in range(0, 10_000, 100):
        totals.add(*pairs([1.0] * 100, policy=policy[start : start + 100]), micro_of(list(range(100))))
    assert totals.means()["logps/chosen"] == pytest.approx(-500.49995, abs=5e-5)


def test_the_rows_whose_loss_is_not_finite_are_named_by_id_and_place():
    totals = Totals(["r"])
    totals.add(*pairs([1.0, NAN]), micro_of([4, 2]))
    totals.add(*pairs([math.inf]), micro_of([0]))
    with pytest.raises(NonFiniteError) as error:
        totals.raise_if_not_finite(totals.means(), 17, examples(5))
    message = str(error.value)
    assert message.startswith("the loss of step 17 is not finite; the weights were not updated. Rows: ")
    assert "row-2 (file row 2): loss nan" in message and "row-0 (file row 0): loss inf" in message
    assert "row-4" not in message and "row-1" not in message


def test_many_bad_rows_are_counted_after_the_first_five():
    totals = Totals(["r"])
    totals.add(*pairs([NAN] * 9), micro_of(list(range(9))))
    with pytest.raises(NonFiniteError, match=r"row-4 \(file row 4\): loss nan and 4 more\. A lower"):
        totals.raise_if_not_finite(totals.means(), 1, examples(9))


@pytest.mark.parametrize("norm", [NAN, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_too(norm):
    raise_if_gradient_not_finite(1e30, 3)
    with pytest.raises(NonFiniteError, match="the gradient of step 3 is not finite"):
        raise_if_gradient_not_finite(norm, 3)


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
        "ref/gemma/logps/chosen": [-2.0, -7.0],
        "ref/gemma/logps/rejected": [-5.0, -3.0],
        "ref/gemma/margin": [3.0, -4.0],
        "ref/gemma/accuracy": [1.0, 0.0],
    }
    assert values.keys() == expected.keys()
    for name, numbers in expected.items():
        assert values[name].float().tolist() == pytest.approx(numbers), name


def test_stats_are_named_as_they_are_or_after_their_reference():
    output = replace(
        output_of([0.5], [[0.3, 0.1]]),
        stats={"vref/offset": torch.tensor([7.0]), "weight": torch.tensor([[0.25], [0.75]])},
    )
    values = prompt_metrics(output, logps_of([[-1.0, -4.0]], [[[-2.0, -5.0]], [[-3.0, -6.0]]]), ["a", "b"])
    assert values["vref/offset"].tolist() == [7.0]
    assert (values["ref/a/weight"].item(), values["ref/b/weight"].item()) == (0.25, 0.75)


def test_without_references_there_is_nothing_to_say_about_them():
    values = prompt_metrics(output_of([0.5], [[0.3, 0.1]]), logps_of([[-1.0, -4.0]]), [])
    assert not [name for name in values if name.startswith("ref/")]


def test_rejected_is_the_last_response_that_is_there():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN], [6.0, NAN, NAN]])
    best, last = best_and_last(values, ~values.isnan())
    assert (best.tolist(), last.tolist()) == ([1.0, 4.0, 6.0], [3.0, 5.0, 6.0])
