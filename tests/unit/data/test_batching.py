"""Groups that fit, shards that cover, tensors that mask what is not scored."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.data.batching import collate, group_by_tokens, shard
from mrpo_ds.data.rendering import Encoded


def test_groups_by_hand() -> None:
    # 2 x 5 = 10 fits; the 7 would make 3 x 7 = 21; 12 is longer than the limit and goes alone.
    assert group_by_tokens([4, 5, 7, 12, 1, 2, 3], max_tokens=10, max_rows=None) == [[0, 1], [2], [3], [4, 5, 6]]
    assert group_by_tokens([4, 5, 7, 12, 1, 2, 3], max_tokens=10, max_rows=2) == [[0, 1], [2], [3], [4, 5], [6]]
    assert group_by_tokens([], max_tokens=10, max_rows=None) == []


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.none() | st.integers(1, 5))
def test_groups(lengths: list[int], max_tokens: int, max_rows: int | None) -> None:
    groups = group_by_tokens(lengths, max_tokens, max_rows)
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[index] for index in group) <= max_tokens or len(group) == 1
        assert 1 <= len(group) <= (max_rows or len(lengths))
    for group, following in zip(groups, groups[1:], strict=False):  # greedy: one more would not have fitted
        one_more = [*group, following[0]]
        too_long = len(one_more) * max(lengths[index] for index in one_more) > max_tokens
        assert too_long or (max_rows is not None and len(one_more) > max_rows)


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shards(items: list[int], size: int) -> None:
    shards = [shard(items, rank, size) for rank in range(size)]
    assert sorted(item for part in shards for item in part) == sorted(items)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shard_by_hand() -> None:
    assert shard((10, 11, 12, 13, 14), rank=1, size=2) == [11, 13]


def test_collate_by_hand() -> None:
    batch = collate([Encoded([5, 6, 7, 8], 1), Encoded([9, 3], 1)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.response_mask.tolist() == [[False, True, True, True], [False, True, False, False]]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert batch.response_mask.dtype == torch.bool


sequence = st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.lists(st.integers(0, 9), max_size=9))


@given(st.lists(sequence, min_size=1, max_size=6), st.integers(0, 9))
def test_collate_keeps_every_token(parts: list[tuple[list[int], list[int]]], pad_id: int) -> None:
    batch = collate([Encoded([*prompt, *answer], len(prompt)) for prompt, answer in parts], pad_id)
    for row, (prompt, answer) in enumerate(parts):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row, real].tolist() == [*prompt, *answer]
        assert batch.input_ids[row, batch.response_mask[row]].tolist() == answer
        assert set(batch.input_ids[row, ~real].tolist()) <= {pad_id}
