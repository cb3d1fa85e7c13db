"""Hosts with caches and files of their own, as two ranks of one run: each has its own home and its own cache."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import base_config, make_rows, write_config
from tests.warm import Finished, Warm

ROWS = 15_000
TIMEOUT_SECONDS = 8
"""Far less than these rows take to prepare, on a host that has not prepared them yet."""


def write_rows(home: Path, count: int, answer: str = "Yes.") -> None:
    home.mkdir(parents=True, exist_ok=True)
    rows = make_rows(1000)
    with (home / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % 1000]
            changed = {"prompt": f"{number}. {row['prompt']}", "chosen": answer if number == 7 else row["chosen"]}
            file.write(json.dumps(row | changed) + "\n")


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    values = base_config(tmp_path, references=1)
    values["data"] = {"train": [{"source": "~/rows.jsonl"}], "workers": 1, "max_length": 256}
    values["train"] |= {"max_steps": 1, "epochs": 1}
    values["topology"] |= {"timeout_seconds": TIMEOUT_SECONDS}
    return values


def train_on_two_hosts(warm: Warm, tmp_path: Path, config: Path) -> Finished:
    return warm("train", str(config), own=[host(tmp_path, rank) for rank in range(2)])


def host(tmp_path: Path, number: int) -> dict[str, str]:
    home = tmp_path / f"host{number}"
    return {"HOME": str(home), "MRPO_DS_CACHE": str(home / "cache")}


def test_a_host_that_prepares_for_longer_than_the_timeout_stops_nobody(
    warm: Warm, tmp_path: Path, config: dict[str, Any]
) -> None:
    for number in range(2):
        write_rows(tmp_path / f"host{number}", ROWS)
    path = write_config(tmp_path / "run.yaml", config)
    check = warm.alone("check", str(path), **host(tmp_path, 0))  # this host has its data; the other has to prepare them
    assert check.returncode == 0, check.stderr
    run = train_on_two_hosts(warm, tmp_path, path)
    assert run.codes == [0, 0], run.stderr[-3000:]


def test_hosts_with_other_rows_are_named(warm: Warm, tmp_path: Path, config: dict[str, Any]) -> None:
    for number, answer in enumerate(("Yes.", "No.")):
        write_rows(tmp_path / f"host{number}", 40, answer)
    run = train_on_two_hosts(warm, tmp_path, write_config(tmp_path / "run.yaml", config))
    assert run.codes == [2, 2]
    assert "ref/ref1 rank 0 (global rank 1" in run.stderr and "the rows of data.train on" in run.stderr
    assert "All hosts need the same files" in run.stderr
