"""Checkpoints on a disk that tears, flips, loses and fills up; the engine is a stand-in that writes one file."""

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo_ds import manifest
from mrpo_ds.checkpoint import (
    STATE_FILE,
    Checkpoints,
    TrainState,
    check_resume,
    differences,
    find_damage,
    find_resume,
    list_checkpoints,
)
from mrpo_ds.errors import CheckpointError, ConfigError
from tests.support import world_of_one

SETTINGS = {"loss.name": "mrpo", "loss.beta": 0.1, "rows of data.train": "40 rows"}
SHARD = Path("policy") / "shard.pt"


class FileEngine:
    """What it saves is a file of the step's number; what it loads it remembers."""

    def __init__(self, error: OSError | RuntimeError | None = None) -> None:
        self.error = error
        self.loaded: bytes | None = None

    def save(self, directory: Path, tag: str) -> None:
        (directory / tag / "shard.pt").write_bytes(directory.name.encode() * 1000)
        if self.error is not None:
            raise self.error

    def load(self, directory: Path, tag: str) -> None:
        self.loaded = (directory / tag / "shard.pt").read_bytes()


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with world_of_one():
        yield


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, settings=SETTINGS, is_main=True)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(FileEngine(), TrainState(step, 10 * step))


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_as_it_was(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 3)
    path = find_resume(tmp_path, "auto")
    assert path is not None and path.name == "step-00000003"
    engine = FileEngine()
    assert checkpoints.load(engine, path) == TrainState(3, 30)
    assert engine.loaded == b".step-00000003.partial" * 1000


def test_only_the_newest_stay(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_going_on_from_an_earlier_one_removes_the_later(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    checkpoints.load(FileEngine(), tmp_path / "checkpoints" / "step-00000001")
    assert names(tmp_path) == ["step-00000001"]


# ---- a disk that fails -----------------------------------------------------------------------------------------------

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file data/2"),
]


@pytest.mark.parametrize("error", FULL, ids=["OSError", "RuntimeError"])
def test_a_checkpoint_that_cannot_be_written_costs_nothing_else(
    checkpoints: Checkpoints, tmp_path: Path, error: OSError | RuntimeError
) -> None:
    save(checkpoints, 1, 2)
    checkpoints.save(FileEngine(error), TrainState(3))
    assert names(tmp_path) == ["step-00000001", "step-00000002"], "nothing pruned, no partial left"
    assert checkpoints.failed == [3]
    save(checkpoints, 4)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


def test_it_ends_the_run_where_that_is_asked_for(checkpoints: Checkpoints, tmp_path: Path) -> None:
    strict = replace(checkpoints, on_failure="stop")
    save(strict, 1)
    with pytest.raises(CheckpointError) as error:
        strict.save(FileEngine(FULL[0]), TrainState(2))
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/step-00000002 cannot be written ([Errno 28] No space left on device); "
        "earlier ones are as they were, and checkpoint.on_failure is stop."
    )
    assert names(tmp_path) == ["step-00000001"]


# ---- a disk that lies ------------------------------------------------------------------------------------------------


def tear(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return f"{SHARD} has 21999 bytes instead of 22000"


def flip(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    return f"{SHARD} has changed since it was written (SHA-256)"


def lose(path: Path) -> str:
    path.unlink()
    return f"{SHARD}: No such file or directory"


@pytest.mark.parametrize("damage", [tear, flip, lose])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    checkpoints: Checkpoints, tmp_path: Path, damage: Any
) -> None:
    save(checkpoints, 1, 2)
    newest = tmp_path / "checkpoints" / "step-00000002"
    problem = damage(newest / SHARD)
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoints" / "step-00000001"
    with pytest.raises(CheckpointError) as error:
        find_resume(tmp_path, str(newest))
    assert str(error.value) == (
        f"{newest} is damaged: {problem}. Restore it from a backup, or remove it to go without it."
    )


def test_a_file_that_cannot_be_read_is_damage(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1, 2)
    shard = tmp_path / "checkpoints" / "step-00000002" / SHARD
    read = manifest.checksum

    def bad_sector(path: Path) -> str:
        if path == shard:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(manifest, "checksum", bad_sector)
    assert find_damage(shard.parents[1]) == f"{SHARD}: Input/output error"
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoints" / "step-00000001"


def test_an_old_one_that_cannot_be_removed_is_no_failure(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1, 2)
    remove = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy")
        remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", busy)
    save(checkpoints, 3)
    assert checkpoints.failed == []
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_changed_record_is_damage_too(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    state = tmp_path / "checkpoints" / "step-00000002" / STATE_FILE
    record = json.loads(state.read_text())
    for text in (json.dumps({**record, "step": 7}), state.read_text()[:-9], "[]", ""):
        state.write_text(text)
        path = find_resume(tmp_path, "auto")
        assert path is not None and path.name == "step-00000001"


def test_no_whole_checkpoint_left_is_no_fresh_start(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        tear(path / SHARD)
    with pytest.raises(CheckpointError, match="step-00000002 is damaged: .* No other checkpoint is whole; restore it"):
        find_resume(tmp_path, "auto")


def test_a_write_that_was_interrupted_is_no_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1)
    partial = tmp_path / "checkpoints" / ".step-00000002.partial" / "policy"
    partial.mkdir(parents=True)
    (partial / "shard.pt").write_bytes(b"half")
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoints" / "step-00000001"
    save(checkpoints, 2)  # over what is left of it
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


# ---- another run's ---------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name_unless_they_are_meant(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    other = replace(checkpoints, settings={**SETTINGS, "loss.beta": 0.2, "train.seed": 1})
    with pytest.raises(ConfigError) as error:
        other.check(path)
    assert str(error.value) == (
        f"{path} was written with other settings: loss.beta was 0.1, is 0.2; train.seed was 'nothing', is 1. Resume as "
        f"{tmp_path}/config.yaml says, start a new output_dir, or set checkpoint.allow_changes=true."
    )
    replace(other, allow_changes=True).check(path)
    checkpoints.check(path)


def test_another_number_of_ranks_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="written by 1 policy ranks, this run has 4; set topology.policy=1"):
        checkpoints.check(tmp_path / "checkpoints" / "step-00000001")


def test_many_differences_are_all_counted() -> None:
    written = {f"key{index}": index for index in range(9)}
    assert differences(written, written) == []
    assert len(differences(written, {})) == 9
    assert differences({}, {"new": 1}) == ["new was 'nothing', is 1"]


# ---- what --resume may mean ------------------------------------------------------------------------------------------


def test_a_used_directory_needs_auto_or_a_checkpoint_in_it(checkpoints: Checkpoints, tmp_path: Path) -> None:
    check_resume(tmp_path, "none")
    save(checkpoints, 1)
    inside = tmp_path / "checkpoints" / "step-00000001"
    check_resume(tmp_path, "auto")
    check_resume(tmp_path, str(inside))
    with pytest.raises(ConfigError, match="is already used"):
        check_resume(tmp_path, "none")
    with pytest.raises(ConfigError, match="is no whole checkpoint"):
        check_resume(tmp_path, str(tmp_path))
    new = tmp_path / "new"
    check_resume(new, str(inside))
    new.mkdir()
    (new / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="is already used"):
        check_resume(new, str(inside))


def test_nothing_to_resume_from_is_the_beginning(tmp_path: Path) -> None:
    assert find_resume(tmp_path, "auto") is None
    assert find_resume(tmp_path, "none") is None
