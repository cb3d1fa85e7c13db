"""Files that are whole or not there, also when several processes write them and some are killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrpo_ds.manifest import PART_SECONDS, write_atomic


def test_another_process_may_write_the_same_file_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "table.json", os.fsync

    def in_between(descriptor: int) -> None:
        """Before our file is whole, another one begins and ends."""
        monkeypatch.setattr(os, "fsync", fsync)
        program = "import sys, pathlib, mrpo_ds.manifest as m; m.write_atomic(pathlib.Path(sys.argv[1]), b'2')"
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=Path(__file__).parents[2])
        assert path.read_bytes() == b"2"

    monkeypatch.setattr(os, "fsync", in_between)
    write_atomic(path, b"1")
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "taken", b"1")
    assert os.listdir(tmp_path) == ["taken"]


def test_parts_of_killed_writers_go_with_a_later_write_and_those_of_others_stay(tmp_path: Path) -> None:
    killed, writing, other = (tmp_path / f"{name}.tmp" for name in ("a.json.n1-7", "a.json.n2-7", "b.json.n1-7"))
    for part in (killed, writing, other):
        part.write_text("{")
    long_ago = time.time() - PART_SECONDS - 1
    for part in (killed, other):
        os.utime(part, (long_ago, long_ago))
    write_atomic(tmp_path / "a.json", b"1")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", writing.name, other.name])
