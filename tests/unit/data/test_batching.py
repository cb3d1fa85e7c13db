"""Sequences as tensors: every token once, each scored one at its place, whatever the layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.data.batching import Layout
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.ops.attention import visible
from mrpo_ds.types import SequenceBatch

LAYOUTS = {"padded": Layout(0, packed=False), "packed": Layout(0), "one row": Layout(0, single_row=True)}


def test_padded_by_hand() -> None:
    batch = Layout(0, packed=False).collate([[Encoded([5, 6, 7, 8], 1)], [Encoded([9, 3], 1)]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 0, 0]]
    assert batch.attention_mask is not None and batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch.predictors.tolist() == [0, 1, 2, 4]
    assert batch.places.tolist() == [0, 1, 2, 3]
    assert batch.table == (2, 3)


def test_packed_by_hand() -> None:
    batch = Layout(0).collate([[Encoded([5, 6, 7, 8], 2)], [Encoded([9, 3], 1)], [Encoded([4, 2], 1)]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 4, 2]]
    assert batch.attention_mask is None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch.predictors.tolist() == [1, 2, 4, 6]
    assert batch.places.tolist() == [0, 1, 2, 4]
    assert batch.table == (3, 2)


def test_earlier_turns_are_scored_too() -> None:
    batch = Layout(0).collate([[Encoded([5, 6, 7, 8, 9], 4, earlier=((1, 3),))]])
    assert batch.predictors.tolist() == [0, 1, 3]


def test_dtypes() -> None:
    batch = Layout(7).collate([[Encoded([5, 6], 1)]])
    tensors = (batch.input_ids, batch.position_ids, batch.predictors, batch.places)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


sequences = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.lists(st.integers(1, 9), max_size=30)).map(
        lambda parts: Encoded([*parts[0], *parts[1]], len(parts[0]))
    ),
    min_size=1,
    max_size=12,
)


def cells(batch: SequenceBatch) -> list[list[int]]:
    """The scored tokens of each sequence, read back from the tensors."""
    table = torch.zeros(batch.table[0] * batch.table[1], dtype=torch.int64).index_put((batch.places,), batch.targets)
    return [[token for token in row if token] for row in table.view(batch.table).tolist()]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(rows=sequences)
def test_every_scored_token_is_in_its_sequences_row_of_the_table(layout: Layout, rows: list[Encoded]) -> None:
    batch = layout.collate([[row] for row in rows])
    assert cells(batch) == [row.ids[row.prompt_length :] for row in rows]
    assert batch.input_ids.numel() == layout.places([len(row.ids) for row in rows])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@given(rows=sequences)
def test_positions_count_every_token_of_every_sequence_once(layout: Layout, rows: list[Encoded]) -> None:
    batch = layout.collate([[row] for row in rows])
    found = []
    for ids, positions in zip(batch.input_ids.tolist(), batch.position_ids.tolist(), strict=True):
        for token, position in zip(ids, positions, strict=True):
            found += [[]] if position == 0 else []
            assert position == len(found[-1])
            found[-1].append(token)
    real = sorted(sequence for sequence in found if any(sequence))  # the filler is 0, tokens are not
    if layout.packed:
        assert real == sorted(row.ids for row in rows)
    else:
        assert batch.attention_mask is not None
        lengths = batch.attention_mask.sum(1).tolist()
        assert [ids[:n] for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)] == [row.ids for row in rows]


def test_shared_by_hand() -> None:
    groups = [[Encoded([5, 6, 7, 8], 2), Encoded([5, 6, 9], 2)], [Encoded([4, 2], 1)]]
    batch = Layout(0, single_row=True, shared=True).collate(groups)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[[0, 0, 1, 1, 2, 4, 4], [0, 0, 0, 0, 0, 3, 3]]]
    assert batch.predictors.tolist() == [1, 2, 1, 5]
    assert batch.targets.tolist() == [7, 8, 9, 2]
    assert batch.places.tolist() == [0, 1, 2, 4]
    assert batch.table == (3, 2)


groups = st.lists(
    st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=20),
        st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=4),
    ).map(lambda parts: [Encoded([*parts[0], *response], len(parts[0])) for response in parts[1]]),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("single_row", [False, True])
@given(groups=groups)
def test_a_shared_prompt_stands_in_its_row_once_and_every_response_can_be_read_back(
    groups: list[list[Encoded]], single_row: bool
) -> None:
    layout = Layout(0, single_row=single_row, shared=True)
    batch = layout.collate(groups)
    assert cells(batch) == [one.ids[one.prompt_length :] for group in groups for one in group]
    assert batch.input_ids.numel() == layout.places([unit for group in groups for unit in layout.units(group)])
    computed = sum(length for group in groups for _, length in layout.spans(group))
    assert (batch.input_ids != 0).sum() == computed
    assert computed <= sum(len(group[0].ids) for group in groups) + sum(
        len(one.ids) - one.prompt_length for group in groups for one in group[1:]
    )


@given(groups=groups)
def test_a_token_sees_the_tokens_of_its_own_sequence_up_to_itself_and_no_others(groups: list[list[Encoded]]) -> None:
    batch = Layout(0, shared=True).collate(groups)
    assert batch.segments is not None
    seen = visible(batch.segments, batch.position_ids, None)
    ids, width = batch.input_ids, batch.input_ids.shape[1]
    sequences = [one for group in groups for one in group]
    for predictor, place, target in zip(
        *(x.tolist() for x in (batch.predictors, batch.places, batch.targets)), strict=True
    ):
        index, nth = divmod(place, batch.table[1])
        sequence = sequences[index]
        row, column = divmod(predictor, width)
        token = sequence.prompt_length + nth
        assert ids[row][seen[row, column]].tolist() == sequence.ids[:token]
        assert batch.position_ids[row][seen[row, column]].tolist() == list(range(token))
        assert target == sequence.ids[token]
