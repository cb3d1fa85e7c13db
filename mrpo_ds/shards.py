"""The tensors of a checkpoint: one safetensors file per rank, readable by any number of ranks.

ZeRO-3 cuts a parameter of n elements, flat, into shares of ceil(n / ranks); the last ones are shorter, or empty. ZeRO-1
and ZeRO-2 lay all parameters end to end and cut that. A file holds one rank's share of every trainable parameter,
without padding, under "kind/name": fp32 numbers and nothing else.
"""

import hashlib
import json
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mrpo_ds.manifest import attempt

WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
CHUNK_BYTES = 1 << 24
Shapes = dict[str, tuple[int, ...]]
"""Name of a parameter -> its full shape."""
Tensors = Iterable[tuple[str, Tensor]]
"""("kind/name", [elements of one rank] fp32) in the order of shard_sizes."""


@dataclass(frozen=True)
class Piece:
    """The elements start..stop of what one rank wrote of a parameter."""

    rank: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cut:
    """How the parameters of a model are cut over ranks."""

    ranks: int
    end_to_end: int | None = None
    """None: each parameter by itself. Else: all of them laid end to end, each rank has so many elements in turn."""

    def as_record(self) -> dict[str, int]:
        """For state.json."""
        return {"world_size": self.ranks} | ({} if self.end_to_end is None else {"end_to_end": self.end_to_end})

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Cut":
        """What as_record said."""
        return cls(record["world_size"], record.get("end_to_end"))

    def shares(self, shapes: Shapes, rank: int) -> dict[str, range]:
        """Of each parameter, the elements that a rank has; an empty range for none."""
        if self.end_to_end is None:
            return {name: share(prod(shape), self.ranks, rank) for name, shape in shapes.items()}
        found, start = {}, rank * self.end_to_end  # of the rank's part, counted from the start of the next parameter
        for name, shape in shapes.items():
            numel = prod(shape)
            first, last = (min(max(bound, 0), numel) for bound in (start, start + self.end_to_end))
            found[name] = range(first, last)
            start -= numel
        return found


def share(numel: int, ranks: int, rank: int) -> range:
    """The elements of a flat parameter that one of so many ranks has when it is cut by itself."""
    size = -(-numel // ranks)
    return range(min(rank * size, numel), min((rank + 1) * size, numel))


def pieces(mine: range, written: Sequence[range]) -> list[Piece]:
    """What makes up the elements `mine` of a parameter, in order, of the shares that each rank wrote of it."""
    found = []
    for rank, theirs in enumerate(written):
        start, stop = max(mine.start, theirs.start), min(mine.stop, theirs.stop)
        if start < stop:
            found.append(Piece(rank, start - theirs.start, stop - theirs.start))
    return found


def shard_sizes(shapes: Shapes, moments: bool, cut: Cut, rank: int) -> dict[str, int]:
    """The entries of a rank's file, in order: "kind/name" -> elements. moments: the optimizer has made a step."""
    kinds = (WEIGHT, *MOMENTS) if moments else (WEIGHT,)
    mine = cut.shares(shapes, rank)
    return {f"{kind}/{name}": len(mine[name]) for kind in kinds for name in shapes}


def file_name(rank: int, ranks: int) -> str:
    """The file of one of so many ranks, such as rank-00000-of-00002.safetensors."""
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


class ShardWriter:
    """Writes one rank's file, here or in a thread. What goes wrong is kept until the ranks compare notes."""

    def __init__(self, path: Path, sizes: dict[str, int]) -> None:
        self._path = path
        self._sizes = sizes
        self._thread: threading.Thread | None = None
        self._defect: Exception | None = None
        self.problem = ""
        self.entry: list[int | str] = []
        """[bytes, SHA-256 in hex] of what was written."""
        self.seconds = 0.0

    def write(self, tensors: Tensors) -> None:
        """Write now, straight from the tensors."""
        started = time.perf_counter()
        self.problem = attempt(lambda: self._write(tensors))
        self.seconds = time.perf_counter() - started

    def write_in_background(self, tensors: Tensors) -> None:
        """Copy the tensors to host memory and return; a thread writes the copy, and lets go of what it has written."""
        copies: deque[tuple[str, Tensor]] = deque()
        self.problem = attempt(
            lambda: copies.extend((key, tensor.detach().to("cpu", copy=True)) for key, tensor in tensors)
        )
        if not self.problem:
            # A daemon: a disk that never answers must not keep a process that has to end.
            self._thread = threading.Thread(target=self._run, args=(_emptied(copies),), name="checkpoint", daemon=True)
            self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the file is on the disk, or never will be."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        """Return when it is done. Raises what the thread raised, which would be a defect of this file."""
        if self._thread is not None:
            self._thread.join()
        if self._defect is not None:
            raise self._defect

    def _run(self, tensors: Tensors) -> None:
        try:
            self.write(tensors)
        except Exception as error:
            self._defect = error

    def _write(self, tensors: Tensors) -> None:
        digest = hashlib.sha256()
        with self._path.open("wb") as file:

            def put(content: Any) -> None:
                digest.update(content)
                file.write(content)

            put(_header(self._sizes))
            for (key, numel), (given, tensor) in zip(self._sizes.items(), tensors, strict=True):
                assert given == key and tensor.numel() == numel and tensor.dtype == torch.float32, (given, key)
                numbers: Any = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
                content = memoryview(numbers)  # no copy, and neither hash nor write holds the interpreter's lock
                for start in range(0, len(content), CHUNK_BYTES):
                    put(content[start : start + CHUNK_BYTES])
            file.flush()
            os.fsync(file.fileno())
            self.entry = [file.tell(), digest.hexdigest()]


class Shards:
    """The files that ranks wrote under one cut, read as the share of a rank under another. A context manager."""

    def __init__(self, directory: Path, written: Cut, shapes: Shapes, cut: Cut, rank: int) -> None:
        self._directory = directory
        self._written = written
        self._theirs = [written.shares(shapes, one) for one in range(written.ranks)]
        self._mine = cut.shares(shapes, rank)
        self._stack = ExitStack()
        self._open: dict[int, Any] = {}

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, kind: str, name: str) -> Tensor:
        """[elements of this rank] fp32, on the CPU."""
        parts = [
            self._file(piece.rank).get_slice(f"{kind}/{name}")[piece.start : piece.stop]
            for piece in pieces(self._mine[name], [theirs[name] for theirs in self._theirs])
        ]
        return torch.cat(parts) if parts else torch.empty(0)

    def _file(self, rank: int) -> Any:
        if rank not in self._open:
            path = self._directory / file_name(rank, self._written.ranks)
            self._open[rank] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[rank]


def _emptied(copies: "deque[tuple[str, Tensor]]") -> Iterator[tuple[str, Tensor]]:
    while copies:
        yield copies.popleft()


def _header(sizes: dict[str, int]) -> bytes:
    """The start of a safetensors file: the length of a JSON object, and the object, filled up to 8 bytes."""
    entries: dict[str, Any] = {}
    end = 0
    for key, numel in sizes.items():
        entries[key] = {"dtype": "F32", "shape": [numel], "data_offsets": [end, end + 4 * numel]}
        end += 4 * numel
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
