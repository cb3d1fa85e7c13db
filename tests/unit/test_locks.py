"""Who may work in a folder or a file beside whom, and file systems that know no locks."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.answers import AnswerFile
from mrpo_ds.locks import locked, locked_part


def refused(out: Path, part: tuple[int, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why), locked_part(out, "sweep", part):
        pass


def test_parts_of_one_count_work_side_by_side_and_keep_all_others_out(tmp_path: Path) -> None:
    with ExitStack() as parts:
        parts.enter_context(locked_part(tmp_path, "sweep", (0, 4)))
        parts.enter_context(locked_part(tmp_path, "sweep", (3, 4)))
        refused(tmp_path, (3, 4), "another sweep of shard 3/4 works in")
        refused(tmp_path, (0, 1), "another sweep works in")
        refused(tmp_path, (0, 8), r"a sweep in 4 shards works in .* in 8 would do the same work again; use --shard I/4")
    with locked_part(tmp_path, "sweep", (0, 8)):  # the count of the last is no obstacle
        refused(tmp_path, (0, 4), "a sweep in 8 shards works in")


def test_who_has_the_whole_keeps_all_parts_out(tmp_path: Path) -> None:
    with locked_part(tmp_path, "sweep", (0, 1)):
        refused(tmp_path, (0, 1), "another sweep works in")
        refused(tmp_path, (2, 4), "a sweep without --shard works in .*; wait for it, or use another --out")
    with locked(tmp_path, "sweep"):
        refused(tmp_path, (2, 4), "a sweep without --shard works in")
    with locked_part(tmp_path, "sweep", (2, 4)):
        pass


def test_a_process_that_inherits_the_locks_of_a_part_holds_them(tmp_path: Path) -> None:
    with locked_part(tmp_path, "sweep", (1, 2)) as locks:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=locks, start_new_session=True
        )
    try:
        refused(tmp_path, (1, 2), "another sweep of shard 1/2 works in")
        refused(tmp_path, (0, 1), "another sweep works in")
    finally:
        child.communicate(b"\n")
    with locked_part(tmp_path, "sweep", (0, 1)):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", (0, 2), "--out is .*, and cannot be written: ")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    refused(tmp_path, (0, 2), "--out is .*, and cannot be written: No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = f"cannot be locked: {os.strerror(number)}; allowed for --out: a folder on a file system with file locks"
    with pytest.raises(ConfigError, match=said), locked(tmp_path, "sweep"):
        pass
    with pytest.raises(ConfigError, match=f"m.jsonl' {said}"), AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass


def test_a_file_of_answers_has_one_writer(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="another process writes answers to '.*m.jsonl'; wait for it")
    with AnswerFile(tmp_path / "m.jsonl", {}).opened(), refused, AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass
    with AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass
