"""Which ranks' elements make up another number of ranks' shares, and files that safetensors itself reads."""

from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mrpo_ds.manifest import checksum
from mrpo_ds.shards import Shapes, Shards, ShardWriter, file_name, pieces, shard_sizes, share

ranks = st.integers(1, 40)


@given(numel=st.integers(0, 300), size=ranks)
def test_the_shares_are_deepspeeds_and_hold_every_element_once(numel: int, size: int) -> None:
    shares = [share(numel, size, rank) for rank in range(size)]
    assert [element for one in shares for element in one] == list(range(numel))
    padded = numel + -numel % size  # DeepSpeed fills up to a multiple of the ranks, and cuts that evenly
    assert all(one.start == min(numel, rank * padded // size) for rank, one in enumerate(shares))


@given(numel=st.integers(0, 300), written=ranks, size=ranks)
def test_the_pieces_in_order_are_the_new_shares(numel: int, written: int, size: int) -> None:
    old = [list(share(numel, written, rank)) for rank in range(written)]
    for rank in range(size):
        found = pieces(numel, written, size, rank)
        read = [old[piece.rank][piece.start : piece.stop] for piece in found]
        assert [element for part in read for element in part] == list(share(numel, size, rank))
        assert all(read), "no file is opened for nothing"
        assert len({piece.rank for piece in found}) == len(found)
        if size == written:
            assert len(found) <= 1, "a rank of as many reads its own file only"


SHAPES: Shapes = {"wide.weight": (7, 5), "norm.weight": (3,), "one": (1,)}
KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def full(kind: str, name: str) -> torch.Tensor:
    seed = KINDS.index(kind) * 10 + list(SHAPES).index(name)
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def write(directory: Path, size: int, background: bool = False) -> list[ShardWriter]:
    writers = []
    for rank in range(size):
        writer = ShardWriter(directory / file_name(rank, size), shard_sizes(SHAPES, True, size, rank))
        parts = [
            (f"{kind}/{name}", full(kind, name).flatten()[list(share(prod(SHAPES[name]), size, rank))])
            for kind in KINDS
            for name in SHAPES
        ]
        (writer.write_in_background if background else writer.write)(parts)
        writer.wait()
        writers.append(writer)
    return writers


@pytest.mark.parametrize("background", [False, True])
def test_the_files_are_plain_safetensors_and_the_checksum_is_that_of_the_file(tmp_path: Path, background: bool) -> None:
    writers = write(tmp_path, 3, background)
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


@pytest.mark.parametrize("written", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4, 40])
def test_any_number_of_ranks_reads_them(tmp_path: Path, written: int, size: int) -> None:
    write(tmp_path, written)
    for kind in KINDS:
        for name in SHAPES:
            parts = []
            for rank in range(size):
                with Shards(tmp_path, written, SHAPES, size, rank) as shards:
                    parts.append(shards.read(kind, name))
                assert len(parts[-1]) == len(share(prod(SHAPES[name]), size, rank))
            assert torch.equal(torch.cat(parts), full(kind, name).flatten())


def test_a_file_that_cannot_be_made_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    (writer,) = write(tmp_path / "absent", 1, background=True)
    assert writer.done and "No such file or directory" in writer.problem and writer.entry == []


def test_a_defect_in_the_thread_is_not_lost(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "file", {"fp32/weight": 3})
    writer.write_in_background([("fp32/weight", torch.zeros(2))])
    with pytest.raises(AssertionError, match="fp32/weight"):
        writer.wait()
