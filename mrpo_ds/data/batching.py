"""From sequences to the tensors of one forward, packed or padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from mrpo_ds.data.packing import group_alike, group_evenly, pack_rows
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.types import SequenceBatch

PADDING = -1
"""Segment of the places that are left."""


@dataclass(frozen=True)
class Layout:
    """How the sequences of a forward lie in its rows."""

    pad_id: int
    """Fills what is left of a row; its value never matters."""
    packed: bool = True
    """Several sequences a row, each attending to itself alone; else one."""
    single_row: bool = False
    """Packed into one row, for attention kernels whose cost does not grow with the row (flash and flex attention)."""
    shared: bool = False
    """Packed, and the tokens with which all sequences of a prompt begin stand in the row once."""

    def spans(self, group: Sequence[Encoded]) -> list[tuple[int, int]]:
        """(first position, tokens) of each stretch that is computed of the sequences of one prompt."""
        prefix = self._prefix(group)
        added = [(prefix, len(sequence.ids) - prefix) for sequence in group]
        return [(0, prefix), *added] if prefix else added

    def units(self, group: Sequence[Encoded]) -> list[int]:
        """Tokens of the parts of one prompt's sequences of which each must lie in one row."""
        lengths = [length for _, length in self.spans(group)]
        return [sum(lengths)] if self.shared else lengths

    def _prefix(self, group: Sequence[Encoded]) -> int:
        """How many tokens of these sequences stand in the row once for all of them."""
        if not self.shared or len(group) < 2:
            return 0
        together = zip(*(sequence.ids for sequence in group), strict=False)
        return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))

    def rows(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of indices into the lengths of units."""
        return pack_rows(lengths, self.single_row) if self.packed else [[index] for index in range(len(lengths))]

    def places(self, lengths: Sequence[int]) -> int:
        """Token places of a forward over units of these lengths, padding included."""
        rows = self.rows(lengths)
        return len(rows) * max(sum(lengths[index] for index in row) for row in rows)

    def group(self, lengths: Sequence[Sequence[int]], budget: int, most: int | None, multiple: int) -> list[list[int]]:
        """Items into forwards of about equal size, about as few as fit.

        Args:
            lengths: per item (a prompt, or a single sequence), the tokens of its units.
            budget: the most token places of a forward; an item that alone needs more goes alone.
            most: the most items of a forward, or None.
            multiple: the number of forwards is a multiple of it.

        Returns:
            Groups of indices, the heaviest first; of R ranks, rank r takes numbers r, r + R, .... Where there are fewer
            items than groups, the last are empty.
        """
        weights = [sum(item) for item in lengths]

        def fits(items: Sequence[int]) -> bool:
            within = most is None or len(items) <= most
            return within and self.places([length for index in items for length in lengths[index]]) <= budget

        least = max(-(-sum(weights) // budget), -(-len(lengths) // (most or len(lengths))))
        parts = multiple * -(-least // multiple)
        groups = group_evenly(weights, fits, parts, multiple) if self.packed else group_alike(weights, fits, parts)
        groups += [[]] * (-len(groups) % multiple)
        return sorted(map(sorted, groups), key=lambda group: -sum(weights[index] for index in group))

    def collate(self, groups: Sequence[Sequence[Encoded]]) -> SequenceBatch:
        """The N sequences of all groups, one group after the other, as tensors.

        Args:
            groups: at least one, each at least one sequence; the sequences of a group have one prompt.
        """
        units = [unit for group in groups for unit in self._units(group)]
        rows = self.rows([len(unit.ids) for unit in units])
        width = max(sum(len(units[index].ids) for index in row) for row in rows)
        input_ids = torch.full((len(rows) * width,), self.pad_id, dtype=torch.int64)
        position_ids = torch.zeros_like(input_ids)
        segments = torch.full((len(rows) * width, 2), PADDING, dtype=torch.int32)
        starts = [0] * len(units)
        first_segment = 0
        for number, row in enumerate(rows):
            place = number * width
            for index in row:
                unit, starts[index] = units[index], place
                end = place + len(unit.ids)
                input_ids[place:end] = torch.tensor(unit.ids, dtype=torch.int64)
                position_ids[place:end] = torch.tensor(unit.positions, dtype=torch.int64)
                segments[place:end, 0] = torch.tensor(unit.segments, dtype=torch.int32) + first_segment
                segments[place:end, 1] = first_segment
                first_segment += 1 + len(unit.sequences)
                place = end
            padding = (number + 1) * width - place
            position_ids[place : place + padding] = torch.arange(padding)  # it is one more sequence
        shape = (len(rows), width)
        predictors, places, table = _scored_tokens(units, starts)
        return SequenceBatch(
            input_ids=input_ids.view(shape),
            position_ids=position_ids.view(shape),
            attention_mask=None if self.packed else _real_tokens(units, width),
            segments=segments.view(*shape, 2).transpose(1, 2).contiguous() if self.shared else None,
            predictors=predictors,
            targets=torch.tensor([token for unit in units for token in unit.targets], dtype=torch.int64),
            places=places,
            table=table,
        )

    def _units(self, group: Sequence[Encoded]) -> "list[_Unit]":
        return [_Unit(group, self._prefix(group))] if self.shared else [_Unit([sequence], 0) for sequence in group]


class _Unit:
    """Tokens that lie together in a row: what some sequences begin with, then what each of them adds."""

    def __init__(self, sequences: Sequence[Encoded], prefix: int) -> None:
        """prefix: tokens that stand here once for all of the sequences."""
        self.sequences = sequences
        self.ids = sequences[0].ids[:prefix]
        self.positions = list(range(prefix))
        self.segments = [0] * prefix
        """Per token: 0 in the prefix, n in what the nth sequence adds."""
        self.predictors: list[list[int]] = []
        """Per sequence: where in the unit the tokens before its scored ones are."""
        self.targets: list[int] = []
        """The scored tokens of all sequences."""
        for number, sequence in enumerate(sequences, start=1):
            scored = [token for token, is_scored in enumerate(sequence.scored()) if is_scored and token]
            moved = len(self.ids) - prefix
            self.predictors.append(
                [before if before < prefix else before + moved for before in (t - 1 for t in scored)]
            )
            self.targets += [sequence.ids[token] for token in scored]
            self.ids = self.ids + sequence.ids[prefix:]
            self.positions += range(prefix, len(sequence.ids))
            self.segments += [number] * (len(sequence.ids) - prefix)


def _real_tokens(units: Sequence[_Unit], width: int) -> Tensor:
    """[M, S] the attention mask of padded rows."""
    return (torch.arange(width) < torch.tensor([len(unit.ids) for unit in units]).unsqueeze(-1)).long()


def _scored_tokens(units: Sequence[_Unit], starts: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """predictors [T], places [T] and table of a SequenceBatch."""
    found = [
        [start + place for place in places]
        for unit, start in zip(units, starts, strict=True)
        for places in unit.predictors
    ]
    longest = max(1, *map(len, found))
    cells = [index * longest + number for index, one in enumerate(found) for number in range(len(one))]
    predictors = torch.tensor([place for one in found for place in one], dtype=torch.int64)
    return predictors, torch.tensor(cells, dtype=torch.int64), (len(found), longest)
