"""One writer of a folder or a file at a time, and file systems that know no locks."""

import errno
import fcntl
import os

import pytest

from mrpo_ds.errors import ConfigError
from mrpo_ds.judged.answers import AnswerFile
from mrpo_ds.locks import locked


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch, number):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = f"cannot be locked: {os.strerror(number)}; allowed for --out: a folder on a file system with file locks"
    with pytest.raises(ConfigError, match=said), locked(tmp_path, "sweep"):
        pass
    with pytest.raises(ConfigError, match=f"m.jsonl' {said}"), AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass


def test_a_file_of_answers_has_one_writer(tmp_path):
    refused = pytest.raises(ConfigError, match="another process writes answers to '.*m.jsonl'; wait for it")
    with AnswerFile(tmp_path / "m.jsonl", {}).opened(), refused, AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass
    with AnswerFile(tmp_path / "m.jsonl", {}).opened():
        pass
