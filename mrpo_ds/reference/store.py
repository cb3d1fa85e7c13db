"""Log-probs of frozen references on disk, found by what they depend on.

    <store>/<digest of a reference>/about.json      which weights, in which dtype; and who wrote first, for people
    <store>/<digest of a reference>/rows-*.parquet  key_high, key_low, logp, tokens (see shards.py)

A folder's name is a digest of the weights and their dtype. A row's key is a digest of its token ids and of which of
them are scored: whatever tokenizer, template, truncation, file or split they came from, the same ids have the same
log-prob, and other ids are never found.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mrpo_ds.data.rendering import Encoded
from mrpo_ds.errors import ReferenceError
from mrpo_ds.reference.shards import Rows, key_of, merge_shards, put, read_folder, write_shard

FORMAT = 1
"""Rises when other code would give the same weights and token ids other log-probs."""
ABOUT = "about.json"
SMALL_SHARDS = 64
"""So many shards of one process become one."""
MERGE_ROWS = 1 << 16
"""So many new rows are kept in a dictionary before they are sorted into the table."""


class ReferenceStore:
    """One reference's rows: found in memory, added to memory, written by flush. For one process, the leader."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Read what is there; an absent folder is an empty store. about: what about.json says, if we write first."""
        self.folder = folder
        self._about = about
        table, self.damaged = read_folder(folder)
        self._set_table(table)
        self._recent: dict[tuple[int, int], tuple[float, int]] = {}
        self._unwritten: list[tuple[int, int]] = []
        self._small: list[Path] = []

    def __len__(self) -> int:
        return len(self._table) + len(self._recent)

    def find(self, sequence: Encoded) -> float:
        """The summed log-prob of a sequence, nats, or NaN when it is not stored."""
        key = key_of(sequence)
        if key in self._recent:
            return self._recent[key][0]
        high, low = key
        place = int(torch.searchsorted(self._highs, high))
        while place < len(self._highs) and int(self._highs[place]) == high:
            if int(self._table.keys[place, 1]) == low:
                return float(self._table.logps[place])
            place += 1
        return math.nan

    def add(self, sequences: Sequence[Encoded], logps: Sequence[float]) -> None:
        """Keep what was scored, except a log-prob that is not finite."""
        for sequence, logp in zip(sequences, logps, strict=True):
            key = key_of(sequence)
            if math.isfinite(logp) and key not in self._recent:
                self._recent[key] = (logp, sequence.num_scored)
                self._unwritten.append(key)

    def flush(self) -> None:
        """Write what was added since the last flush. Raises ReferenceError; the rows then wait for the next one."""
        if self._unwritten:
            if not os.path.exists(self.folder / ABOUT):  # False too where we may not look: put then says why
                put(self.folder / ABOUT, (json.dumps(self._about, indent=2) + "\n").encode())
            self._small.append(write_shard(self.folder, self._rows(self._unwritten)))
            self._unwritten = []
            self._merge_small_shards()
        if len(self._recent) > MERGE_ROWS:
            self._set_table(self._table.merged(self._rows(list(self._recent))))
            self._recent = {}

    def _merge_small_shards(self) -> None:
        """Every batch makes a shard; a long run shall not leave a directory of millions."""
        if len(self._small) >= SMALL_SHARDS:
            with contextlib.suppress(ReferenceError, FileNotFoundError):  # the rows are there all the same
                merge_shards(self.folder, self._small)
            self._small = []

    def _set_table(self, table: Rows) -> None:
        self._table, self._highs = table, table.keys[:, 0].contiguous()

    def _rows(self, keys: Sequence[tuple[int, int]]) -> Rows:
        return Rows.of(keys, [self._recent[key][0] for key in keys], [self._recent[key][1] for key in keys])


def folder_of(root: Path, identity: Mapping[str, str]) -> Path:
    """Where a reference's rows are: identity names its weights (by content) and its dtype."""
    content = json.dumps({"format": FORMAT, **identity}, sort_keys=True).encode()
    return root / hashlib.sha256(content).hexdigest()[:32]


def open_store(root: Path, identity: Mapping[str, str], first: Mapping[str, str]) -> ReferenceStore:
    """The rows of a reference. first: what to say, for people, of the run that writes first.

    Raises ReferenceError when the store cannot be read.
    """
    folder = folder_of(root, identity)
    said = {"format": FORMAT, **identity, "first": {**first, "when": time.strftime("%Y-%m-%d %H:%M:%S")}}
    try:
        return ReferenceStore(folder, said)
    except OSError as error:
        raise ReferenceError(f"the reference store {str(folder)!r} cannot be read: {error}") from error
