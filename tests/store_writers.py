"""What the processes of the store's tests do, in a module that a forked process imports in no time."""

import time
from pathlib import Path

from mrpo_ds.cli import main
from mrpo_ds.data.rendering import Encoded
from mrpo_ds.reference.store import open_store

IDENTITY = {"weights": "SHA-256 12", "dtype": "float32"}


def sequence(number: int) -> Encoded:
    return Encoded([1, 2, 3, number, number // 7], prompt_length=2)


def value(number: int) -> float:
    return -1.0 - number / 64  # a float32


def write_many(root: str, first: int, count: int) -> None:
    """One shard for each row, from its own row on; neighbours overlap."""
    store = open_store(Path(root), IDENTITY, {})
    for number in range(first, first + count):
        store.add([sequence(number)], [value(number)])
        store.flush()


def prune_often(root: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(Path(root).glob("*/about.json")):
            main(["store", "prune", "--dir", root])
