"""Ranks and placements from predicted seconds."""

import math

import pytest

from mrpo_ds.plan.advise import Placement, best_split, cheapest, why

CHECKPOINTED, PLAIN = 4.0, 3.0
"""Forward units of a policy's token with gradient checkpointing and without; a reference of its size takes one."""


def shared(units):
    return lambda ranks: units / ranks


@pytest.mark.parametrize(
    ("devices", "policy", "references", "expected"),
    [
        (5, CHECKPOINTED, [1.0], (4, (1,))),
        (6, CHECKPOINTED, [1.0, 1.0], (4, (1, 1))),
        (40, CHECKPOINTED, [1.0], (32, (8,))),
        (12, CHECKPOINTED, [1.0, 1.0], (8, (2, 2))),
        (8, PLAIN, [1.0], (6, (2,))),
        (6, CHECKPOINTED, [2.0], (4, (2,))),
        (8, PLAIN, [], (8, ())),
    ],
)
def test_the_ranks_follow_the_sizing_rule(devices, policy, references, expected):
    """Ranks of references to ranks of the policy are as the sum of their sizes to the policy's units."""
    split = best_split(devices, 960, shared(policy), [shared(units) for units in references])
    assert (split.policy, split.references) == expected
    assert split.seconds == pytest.approx(
        max(policy / split.policy, *(u / n for u, n in zip(references, split.references, strict=True)), 0)
    )


def test_the_ranks_of_the_policy_divide_the_batch():
    split = best_split(8, 4, shared(CHECKPOINTED), [shared(0.5)])
    assert (split.policy, split.references) == (4, (1,))


def test_ranks_that_would_only_wait_are_not_taken():
    assert best_split(16, 2, shared(4.0), [shared(1.0)]).references == (1,)


def test_too_few_devices_or_too_little_memory():
    assert best_split(2, 8, shared(4.0), [shared(1.0), shared(1.0)]) is None
    assert best_split(4, 8, lambda ranks: math.inf, [shared(1.0)]) is None
    needs_two = best_split(4, 8, lambda ranks: 4 / ranks if ranks >= 2 else math.inf, [shared(1.0)])
    assert needs_two.policy == 2


def run_of(epochs, steps=100, policy=4.0, reference=1.0, served=4.0):
    """Placements of a run on devices that all do the same work: only what is done twice differs."""
    rows = steps * reference
    return [
        Placement("served", 0.0, max(served, policy), epochs * steps),
        Placement("colocated", 0.0, policy + reference, epochs * steps),
        Placement("stored", rows, policy, epochs * steps),
    ]


@pytest.mark.parametrize("epochs", [2, 3])
def test_from_the_second_epoch_on_stored_is_cheapest(epochs):
    """With served ranks taken from the policy, so that both sides are as slow as colocated."""
    placements = run_of(epochs, served=5.0)
    best = cheapest(placements)
    assert best.name == "stored"
    assert best.total == 100 + epochs * 400
    sentence = why(best, placements, epochs)
    assert sentence.startswith(
        f"stored takes {best.total:,.0f} s (served {500 * epochs:,} s, colocated {500 * epochs:,} s): "
    )
    assert f"the run sees its rows {epochs} times" in sentence and sentence.endswith(".")


def test_in_one_epoch_nothing_is_gained_by_storing():
    placements = run_of(1, served=4.9)
    assert cheapest(placements).name == "served"
    assert "while the policy trains, and the run sees its rows 1 time." in why(placements[0], placements, 1.0)


def test_a_part_of_an_epoch_is_not_worth_scoring_all_rows():
    placements = [Placement("colocated", 0.0, 5.0, 10), Placement("stored", 100.0, 4.0, 10)]
    assert cheapest(placements).name == "colocated"
    assert "a step of all ranks together takes 5 s" in why(placements[0], placements, 0.1)
