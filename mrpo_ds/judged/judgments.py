"""Judgments on disk: a line of JSON each, written through before the next call counts on it, never asked for twice.

    OUT/judgments/<model>.jsonl    what the judge said, by a digest of all that it was asked but max_tokens

A line has `key`, the case (`model`, `baseline`, `question`, `turn`, `order`), `judge`, `prompt`, `judgment`: its words,
`finish_reason`, `first_token`, `max_tokens`, `usage`, `usd` (null: no prices were given), `served_model`, `attempts`,
`seconds`, and `supersedes`: how many judgments of the same request were made before, which then no longer count.

A line with `lost` instead of `judgment` is an attempt that may have been billed though no answer came, with the most
that it has cost; it counts as spend and as nothing else. With `refused` the judge did not want that prompt. One with
`same_request` is another case of a request that was made already, as of two models that answer alike.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.judged.lines import append, read_whole
from mrpo_ds.judged.prompts import Case
from mrpo_ds.manifest import write_through

Record = dict[str, Any]
FOLDER = "judgments"


class Judgments:
    """The judgments of a folder. Only the holder of the folder's lock may add to them."""

    def __init__(self, out: Path) -> None:
        """Read what is there. Raises DataError for a damaged line that is not the last of its file."""
        self._folder = out / FOLDER
        self._by_key: dict[str, Record] = {}
        self._cases: set[tuple[str, Case, int]] = set()
        self.lines: list[Record] = []
        """All that is there, lost attempts among it."""
        self.refused: set[str] = set()
        """Keys of requests that the judge has refused, and it may be for their prompts alone."""
        for path in sorted(self._folder.glob("*.jsonl")):
            for record in read_whole_lines(path):
                self._take(record)

    def find(self, key: str) -> Record | None:
        """The judgment of a request, the newest of several, or None."""
        return self._by_key.get(key)

    def add(self, record: Record) -> None:
        """Append a judgment, or a lost attempt, to its model's file, and wait for the disk. Raises OSError."""
        path = self._folder / f"{record['model']}.jsonl"
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            append(descriptor, json.dumps(record, allow_nan=False) + "\n")
        finally:
            os.close(descriptor)
        if is_new:
            write_through(path.parent)
        self._take(record)

    def share(self, key: str, case: Case) -> None:
        """Write down that a judgment is also about another case whose request is the same. Raises OSError."""
        record = self._by_key.get(key)
        if record is not None and (key, case, supersedes(record)) not in self._cases:
            self.add({**record, **asdict(case), "usage": None, "usd": None, "same_request": True})

    def _take(self, record: Record) -> None:
        self.lines.append(record)
        if record.get("refused"):
            self.refused.add(record["key"])
        if "judgment" in record:
            key = record["key"]
            if key not in self._by_key or _rank(record) > _rank(self._by_key[key]):
                self._by_key[key] = record
            self._cases.add((key, case_of(record), supersedes(record)))


def _rank(record: Record) -> tuple[int, bool]:
    """The newest judgment of a request counts, as it was bought and not as it was shared."""
    return supersedes(record), not record.get("same_request")


def read_whole_lines(path: Path) -> list[Record]:
    """The records of a file. A last line without an end, which a kill leaves, is cut off and said.

    Raises:
        DataError: another line is not a JSON object with a key; ConfigError: the file cannot be read or mended.
    """
    try:
        lines = read_whole(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read or mended: {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                raise ValueError("no judgment of mrpo-ds judge")
            case_of(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} line {number} cannot be read ({error}); remove that line, and it is asked again."
            ) from error
        records.append(record)
    return records


def case_of(record: Record) -> Case:
    """What a record is about. Raises KeyError, TypeError or ValueError where it does not say so."""
    return Case(str(record["model"]), str(record["question"]), int(record["turn"]), str(record["order"]))


def supersedes(record: Mapping[str, Any]) -> int:
    """How many judgments of the same request were made before this one, which then no longer count."""
    return int(record.get("supersedes") or 0)
