"""The files of the reference store: shards that are whole, or known to be damaged.

A shard's name is the SHA-256 of its bytes, so a torn or changed one gives itself away, two writers never want one name
for different rows, and the order in which shards are read is the same everywhere. It is written beside and renamed.
"""

import contextlib
import hashlib
import os
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from mrpo_ds.data.rendering import Encoded
from mrpo_ds.errors import ReferenceError
from mrpo_ds.manifest import write_atomic, write_through

PREFIX, SUFFIX = "rows-", ".parquet"
UNFINISHED = ".unfinished"
ABANDONED_SECONDS = 3600.0
"""A write takes seconds, so an unfinished file of this age belongs to a writer that was killed."""
_SCHEMA = pyarrow.schema(
    [
        ("key_high", pyarrow.int64()),
        ("key_low", pyarrow.int64()),
        ("logp", pyarrow.float32()),
        ("tokens", pyarrow.int32()),
    ]
)


class DamagedShard(ReferenceError):
    """A shard's bytes are not those that were written."""


class UnreadableShard(DamagedShard):
    """A shard cannot be read; whether it is damaged is not known."""


@dataclass(frozen=True)
class Rows:
    """N sequences that one reference has scored."""

    keys: Tensor
    """[N, 2] int64: the halves of key_of."""
    logps: Tensor
    """[N] float32 summed log-probs, nats."""
    tokens: Tensor
    """[N] int32 scored tokens."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, keys: Sequence[tuple[int, int]], logps: Sequence[float], tokens: Sequence[int]) -> "Rows":
        """Rows from plain values."""
        table = torch.tensor(keys, dtype=torch.int64).reshape(-1, 2)
        return cls(table, torch.tensor(logps, dtype=torch.float32), torch.tensor(tokens, dtype=torch.int32))

    def merged(self, *others: "Rows") -> "Rows":
        """All rows, sorted by key; of several with one key the first."""
        parts = (self, *others)
        keys = torch.cat([part.keys for part in parts])
        order = keys[:, 1].argsort(stable=True)
        order = order[keys[order, 0].argsort(stable=True)]
        keys = keys[order]
        first = torch.ones(len(keys), dtype=torch.bool)
        first[1:] = (keys[1:] != keys[:-1]).any(1)
        kept = order[first]
        logps, tokens = (torch.cat([getattr(part, name) for part in parts])[kept] for name in ("logps", "tokens"))
        return Rows(keys[first], logps, tokens)


def key_of(sequence: Encoded) -> tuple[int, int]:
    """128 bits that change with a sequence's token ids and with which of them are scored."""
    earlier = [place for span in sequence.earlier for place in span]
    numbers = array("q", [sequence.prompt_length, len(earlier), *earlier, *sequence.ids])
    digest = hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)


def write_shard(folder: Path, rows: Rows) -> Path:
    """Write rows as one shard, which is there whole or not at all. Raises ReferenceError when it cannot be written."""
    columns = [rows.keys[:, 0], rows.keys[:, 1], rows.logps, rows.tokens]
    arrays = [pyarrow.array(column.tolist(), kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays, schema=_SCHEMA), sink)
    content = sink.getvalue().to_pybytes()
    path = folder / f"{PREFIX}{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    put(path, content)
    return path


def merge_shards(folder: Path, parts: Sequence[Path]) -> Path:
    """Make one shard of several, which go when it is there. Raises like read_shard and write_shard."""
    first, *others = (read_shard(path) for path in parts)
    whole = write_shard(folder, first.merged(*others))
    for path in parts:
        if path != whole:
            path.unlink(missing_ok=True)
    return whole


def put(path: Path, content: bytes) -> None:
    """Make a file that is there whole or not at all, and survives a power cut. Raises ReferenceError if it cannot."""
    unfinished = path.with_name(f".{path.name[:24]}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, unfinished)
        write_through(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise ReferenceError(
            f"the reference store {str(path.parent)!r} cannot be written: {error.strerror or error}. Make room, or "
            "name another place with topology.store"
        ) from error


def read_shard(path: Path) -> Rows:
    """The rows of a shard. Raises DamagedShard when its bytes have changed, FileNotFoundError when it is gone."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableShard(f"{path}: {error.strerror}") from error
    if path.name != f"{PREFIX}{hashlib.sha256(content).hexdigest()}{SUFFIX}":
        raise DamagedShard(f"{path} has changed since it was written (SHA-256)")
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    high, low, logps, tokens = (torch.tensor(column.to_numpy()) for column in table.columns)
    return Rows(torch.stack([high, low], 1), logps, tokens)


def shards_of(folder: Path) -> list[Path]:
    """The shards of a reference, in the order in which they are read."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def read_folder(folder: Path) -> tuple[Rows, list[str]]:
    """(all rows of a reference, sorted by key; what is wrong with each damaged shard). Damaged ones give no rows."""
    while True:
        whole, damaged = [], []
        try:
            for path in shards_of(folder):
                try:
                    whole.append(read_shard(path))
                except DamagedShard as error:
                    damaged.append(str(error))
        except FileNotFoundError:
            continue  # another process has merged shards: its new one is there before the old ones go
        return Rows.of([], [], []).merged(*whole), damaged


def abandoned(folder: Path) -> list[Path]:
    """What killed writers have left behind: unfinished files that nobody writes any more."""
    return [path for path in sorted(folder.glob(f".*{UNFINISHED}")) if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    host, _, process = path.name.removesuffix(UNFINISHED).rpartition(".")
    if host.endswith(f".{socket.gethostname()}") and not Path(f"/proc/{process}").exists() and Path("/proc/1").exists():
        return True
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False
