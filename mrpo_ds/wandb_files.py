"""What the offline files of a W&B run hold: a killed process leaves fewer steps than it logged.

A .wandb file is a log of LevelDB's format behind a header of its own: blocks of 32 KiB, in them fragments of records,
each record a protobuf message of the wandb package. It is written block by block, so a kill loses the last one.
"""

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER_BYTES = 7
BLOCK_BYTES = 1 << 15
FRAGMENT = struct.Struct("<IHB")
"""Checksum, length, and whether it is the whole record (1) or its first (2), a middle (3) or its last part (4)."""
STEP = "train/global_step"
"""What every row has, whatever it is about."""
Steps = set[tuple[str, int]]
"""('train' | 'eval' | 'samples', step)"""


def logged_steps(run_dir: Path, run_id: str) -> Steps:
    """The steps that earlier processes of an offline run have written. Raises whatever a strange file raises."""
    files = run_dir.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
    return {found for path in files for found in steps_in(path)}


def steps_in(path: Path) -> Steps:
    """The steps of one file."""
    found = {(name.split("/")[0], step) for step, values in history_in(path) for name in values if name != STEP}
    return {(kind, step) for kind, step in found if kind in ("train", "eval", "samples")}


def history_in(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What one file says was logged, in order: steps and their values by name, NaN included.

    What is logged as a mapping, as a table is, has a name for each of its parts: samples/table/path.
    """
    for record in records_in(path):
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            yield record.history.step.num, {name: json.loads(text) for name, text in items.items()}


def records_in(path: Path) -> Iterator[Any]:
    """The whole records of one file, of the wandb package's type Record."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")  # made by protoc, unknown to type checkers
    for content in _contents(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        yield record


def _contents(data: bytes) -> Iterator[bytes]:
    """The whole records of a file; one that was cut off is left out."""
    place, record = HEADER_BYTES, b""
    while place + FRAGMENT.size <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < FRAGMENT.size:
            place += left
            continue
        _, length, part = FRAGMENT.unpack_from(data, place)
        place += FRAGMENT.size
        content = data[place : place + length]
        place += length
        record = content if part in (1, 2) else record + content
        if part in (1, 4) and len(content) == length:
            yield record
