"""What a suite consists of, asked of lm-eval in a worker and remembered: its index of all tasks takes many seconds."""

import hashlib
import json
from importlib.metadata import distribution, version
from pathlib import Path

from mrpo_ds.data.cache import cache_folder
from mrpo_ds.leaderboard.mirror import DataSet, Mirror, cannot_write, merged
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.suites import Suite, find_suite
from mrpo_ds.leaderboard.tasks import Resolved, as_record, files_digest, from_record, write_overrides
from mrpo_ds.manifest import attempt, write_atomic

VERSIONED = ("lm_eval", "transformers", "torch", "datasets", "tokenizers")
"""Packages whose versions may change a score."""


def look_up(name: str, suite: Suite, worker: Worker) -> dict[str, Resolved]:
    """What each task of a suite stands for, by the task's name.

    Raises ConfigError for a task that lm-eval does not have, shots that it would ignore, and a group of another size.
    """
    where = str(distribution("lm_eval").locate_file("lm_eval"))  # the answer has paths of its files
    parts = [version("lm_eval"), where, _read(find_suite(name)), files_digest(suite.task_dir), suite.task_dir]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    file = cache_folder(None) / "leaderboard" / f"{key}.json"
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        resolved = [from_record(record) for record in records]
    except (OSError, ValueError, KeyError, TypeError):
        answer = worker.demand({"kind": "resolve", "suite": name})
        resolved = [from_record(record) for record in answer["resolved"]]
        _remember(file, resolved)
    return {one.task: one for one in resolved}


def data_of(resolved: dict[str, Resolved]) -> list[DataSet]:
    """Every data set that a suite needs from the Hub, once."""
    return merged(data for one in resolved.values() for data in one.data)


def use_mirror(mirror: Mirror, resolved: dict[str, Resolved], folder: Path) -> None:
    """Check that a mirror has what a suite needs, and write the tasks that read it. Raises ConfigError, DataError."""
    mirror.check(data_of(resolved))
    try:
        write_overrides(resolved.values(), mirror.directory, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def count_documents(resolved: dict[str, Resolved], overrides: Path, worker: Worker) -> dict[str, int]:
    """Load every task of a suite from a mirror. Returns documents by task. Raises ConfigError, DataError."""
    documents: dict[str, int] = {}
    for one in resolved.values():
        answer = worker.demand({"kind": "load", "resolved": as_record(one), "overrides": str(overrides)})
        documents |= answer["documents"]
    return documents


def _remember(file: Path, resolved: list[Resolved]) -> None:
    content = json.dumps([as_record(one) for one in resolved]).encode()

    def write() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)

    attempt(write)  # the next one asks again


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
