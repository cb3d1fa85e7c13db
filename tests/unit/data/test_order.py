"""The order is the same for ever, and a step is a pure function of its number."""

from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.data.order import epoch_order, step_ids, steps_per_epoch, total_steps

sizes = st.integers(1, 60)
seeds = st.integers(0, 2**64)


def test_golden_order() -> None:
    # If this changes, no run can be resumed.
    assert epoch_order(8, seed=0, epoch=0) == [1, 2, 6, 7, 0, 4, 5, 3]
    assert epoch_order(8, seed=0, epoch=1) == [6, 7, 2, 3, 0, 1, 4, 5]
    assert epoch_order(8, seed=1, epoch=0) == [2, 5, 7, 3, 1, 0, 4, 6]


@given(sizes, seeds, st.integers(0, 5))
def test_an_epoch_is_a_permutation(num_examples: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(num_examples, seed, epoch)) == list(range(num_examples))


@given(sizes, st.integers(1, 70), seeds)
def test_the_steps_of_two_epochs_are_their_orders(num_examples: int, batch_size: int, seed: int) -> None:
    steps = steps_per_epoch(num_examples, batch_size)
    batches = [step_ids(num_examples, batch_size, seed, step) for step in range(2 * steps)]
    for epoch in (0, 1):
        mine = batches[epoch * steps : (epoch + 1) * steps]
        assert [index for batch in mine for index in batch] == epoch_order(num_examples, seed, epoch)
        assert all(len(batch) == batch_size for batch in mine[:-1])
        assert 1 <= len(mine[-1]) <= batch_size


@given(sizes, st.integers(1, 9), st.integers(0, 100))
def test_any_step_alone(num_examples: int, batch_size: int, step: int) -> None:
    in_turn = [step_ids(num_examples, batch_size, 3, number) for number in range(step + 1)]
    assert step_ids(num_examples, batch_size, 3, step) == in_turn[step]


def test_the_caller_may_change_what_it_got() -> None:
    epoch_order(4, 0, 0).clear()
    step_ids(4, 2, 0, 0).clear()
    assert len(epoch_order(4, 0, 0)) == 4
    assert len(step_ids(4, 2, 0, 0)) == 2


def test_steps_per_epoch_drops_nothing() -> None:
    assert [steps_per_epoch(num, 4) for num in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_total_steps() -> None:
    assert total_steps(10, 4, epochs=2, max_steps=None) == 6
    assert total_steps(10, 4, epochs=2, max_steps=5) == 5
    assert total_steps(10, 4, epochs=2, max_steps=7) == 6
