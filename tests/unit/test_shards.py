"""Which ranks' elements make up another number of ranks' shares, and files that safetensors itself reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mrpo_ds.manifest import checksum
from mrpo_ds.shards import Cut, Shapes, Shards, ShardWriter, file_name, pieces, shard_sizes, share

ranks = st.integers(1, 40)


@given(numel=st.integers(0, 300), size=ranks)
def test_the_shares_are_deepspeeds_and_hold_every_element_once(numel: int, size: int) -> None:
    shares = [share(numel, size, rank) for rank in range(size)]
    assert [element for one in shares for element in one] == list(range(numel))
    padded = numel + -numel % size  # DeepSpeed fills up to a multiple of the ranks, and cuts that evenly
    assert all(one.start == min(numel, rank * padded // size) for rank, one in enumerate(shares))


@given(sizes=st.lists(st.integers(0, 60), max_size=6), size=ranks, slack=st.integers(0, 9))
def test_end_to_end_the_ranks_hold_the_row_of_all_parameters_in_turn(sizes: list[int], size: int, slack: int) -> None:
    shapes = {str(index): (numel,) for index, numel in enumerate(sizes)}
    row = [(name, element) for name, (numel,) in shapes.items() for element in range(numel)]
    cut = Cut(size, -(-sum(sizes) // size) + slack)  # what DeepSpeed fills up is at the end, and nobody's
    assert cut.end_to_end is not None
    for rank in range(size):
        shares = cut.shares(shapes, rank)
        assert list(shares) == list(shapes)
        mine = [(name, element) for name, elements in shares.items() for element in elements]
        assert mine == row[rank * cut.end_to_end : (rank + 1) * cut.end_to_end]


cuts = st.builds(Cut, ranks) | st.builds(lambda size, extra: (size, extra), ranks, st.integers(0, 5))


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4), written=cuts, read=cuts)
def test_the_pieces_in_order_are_the_new_shares(sizes: list[int], written: Any, read: Any) -> None:
    shapes = {str(index): (numel,) for index, numel in enumerate(sizes)}
    old, new = (
        one if isinstance(one, Cut) else Cut(one[0], -(-sum(sizes) // one[0]) + one[1]) for one in (written, read)
    )
    theirs = [old.shares(shapes, rank) for rank in range(old.ranks)]
    for rank in range(new.ranks):
        for name, mine in new.shares(shapes, rank).items():
            found = pieces(mine, [one[name] for one in theirs])
            parts = [theirs[piece.rank][name][piece.start : piece.stop] for piece in found]
            assert [element for part in parts for element in part] == list(mine)
            assert all(parts), "no file is opened for nothing"
            assert len({piece.rank for piece in found}) == len(found)
            if old == new:
                assert len(found) <= 1, "a rank under the same cut reads its own file only"


SHAPES: Shapes = {"wide.weight": (7, 5), "norm.weight": (3,), "one": (1,)}
KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def full(kind: str, name: str) -> torch.Tensor:
    seed = KINDS.index(kind) * 10 + list(SHAPES).index(name)
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def write(directory: Path, cut: Cut, background: bool = False) -> list[ShardWriter]:
    writers = []
    for rank in range(cut.ranks):
        writer = ShardWriter(directory / file_name(rank, cut.ranks), shard_sizes(SHAPES, True, cut, rank))
        mine = cut.shares(SHAPES, rank)
        parts = [(f"{kind}/{name}", full(kind, name).flatten()[list(mine[name])]) for kind in KINDS for name in SHAPES]
        (writer.write_in_background if background else writer.write)(parts)
        writer.wait()
        writers.append(writer)
    return writers


@pytest.mark.parametrize("background", [False, True])
def test_the_files_are_plain_safetensors_and_the_checksum_is_that_of_the_file(tmp_path: Path, background: bool) -> None:
    writers = write(tmp_path, Cut(3), background)
    names = [f"rank-0000{rank}-of-00003.safetensors" for rank in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    files = [load_file(tmp_path / name) for name in names]
    for kind in KINDS:
        for name in SHAPES:
            whole = torch.cat([file[f"{kind}/{name}"] for file in files])
            assert torch.equal(whole, full(kind, name).flatten())
    for name, writer in zip(names, writers, strict=True):
        path = tmp_path / name
        assert writer.done and not writer.problem
        assert writer.entry == [path.stat().st_size, checksum(path)]


@pytest.mark.parametrize("written", [Cut(1), Cut(2), Cut(3), Cut(5), Cut(1, 40), Cut(2, 20), Cut(4, 13)], ids=str)
@pytest.mark.parametrize("new", [Cut(1), Cut(2), Cut(4), Cut(40), Cut(2, 20), Cut(3, 14)], ids=str)
def test_any_number_of_ranks_reads_them_under_any_cut(tmp_path: Path, written: Cut, new: Cut) -> None:
    write(tmp_path, written)
    for kind in KINDS:
        for name in SHAPES:
            parts = []
            for rank in range(new.ranks):
                with Shards(tmp_path, written, SHAPES, new, rank) as shards:
                    parts.append(shards.read(kind, name))
                assert len(parts[-1]) == len(new.shares(SHAPES, rank)[name])
            assert torch.equal(torch.cat(parts), full(kind, name).flatten())


@pytest.mark.parametrize("cut", [Cut(3), Cut(2, 20)])
def test_a_cut_comes_back_from_the_record(cut: Cut) -> None:
    assert Cut.from_record(cut.as_record()) == cut


def test_a_file_that_cannot_be_made_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    (writer,) = write(tmp_path / "absent", Cut(1), background=True)
    assert writer.done and "No such file or directory" in writer.problem and writer.entry == []


def test_a_defect_in_the_thread_is_not_lost(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "file", {"fp32/weight": 3})
    writer.write_in_background([("fp32/weight", torch.zeros(2))])
    with pytest.raises(AssertionError, match="fp32/weight"):
        writer.wait()
