"""From sequences to padded batches: which go together, which rank takes them, and the tensors."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from mrpo_ds.data.rendering import Encoded
from mrpo_ds.types import SequenceBatch

Item = TypeVar("Item")


def group_by_tokens(lengths: Sequence[int], max_tokens: int, max_rows: int | None) -> list[list[int]]:
    """Cut a list into runs whose padded size fits; the order is kept and nothing is left out.

    Args:
        lengths: tokens of each item.
        max_tokens: most padded tokens of a group, rows times the longest. A longer single item goes alone.
        max_rows: most items of a group, or None.

    Returns:
        Groups of indices into lengths, none empty.
    """
    groups: list[list[int]] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        rows = len(groups[-1]) + 1 if groups else 0
        if rows == 0 or rows * longest > max_tokens or (max_rows is not None and rows > max_rows):
            groups.append([])
            longest = length
        groups[-1].append(index)
    return groups


def shard(items: Sequence[Item], rank: int, size: int) -> list[Item]:
    """Every size-th item from number rank on: the shards of all ranks differ in length by at most 1."""
    return list(items[rank::size])


def collate(sequences: Sequence[Encoded], pad_id: int) -> SequenceBatch:
    """Pad N encoded sequences, at least one, on the right into [N, S] tensors."""
    longest = max(len(sequence.ids) for sequence in sequences)
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        end = len(sequence.ids)
        input_ids[row, :end] = torch.tensor(sequence.ids, dtype=torch.int64)
        attention_mask[row, :end] = 1
        response_mask[row, sequence.prompt_length : end] = True
    return SequenceBatch(input_ids, attention_mask, response_mask)
