"""Checkpoints on a disk that tears, flips, loses and fills up, in both ways to write; the engine is one tensor."""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from mrpo_ds import checkpoint, manifest
from mrpo_ds.checkpoint import (
    END_TO_END_FORMAT,
    STATE_FILE,
    Checkpoints,
    TrainState,
    check_resume,
    differences,
    find_damage,
    find_resume,
    list_checkpoints,
)
from mrpo_ds.console import configure_console
from mrpo_ds.errors import CheckpointError, ConfigError
from mrpo_ds.memory import available_bytes
from mrpo_ds.shards import Cut, Shapes, Tensors
from tests.support import world_of_one

SETTINGS = {"loss.name": "mrpo", "loss.beta": 0.1, "rows of data.train": "40 rows"}
SHARD = Path("policy") / "rank-00000-of-00001.safetensors"
NUMEL = 5000
SHARD_BYTES = 8 + 80 + 4 * NUMEL
"""The length of the header, the header, the numbers."""


class TensorEngine:
    """One parameter, full of the step's number, of an optimizer that has not made a step."""

    device = torch.device("cpu")

    def __init__(self, value: float = 0.0, numel: int = NUMEL) -> None:
        self.weight = torch.full((numel,), float(value))

    def shapes(self) -> Shapes:
        return {"weight": tuple(self.weight.shape)}

    def cut(self) -> Cut:
        return Cut(1)

    def optimizer_steps(self) -> int:
        return 0

    def local_state(self) -> Tensors:
        yield "fp32/weight", self.weight

    def restore(self, read: Callable[[str, str], Tensor], optimizer_steps: int) -> None:
        self.weight.copy_(read("fp32", "weight"))


@contextmanager
def short_files() -> Iterator[None]:
    """Where no file may have more than 10,000 bytes: a write fails in its middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with world_of_one():
        yield


@pytest.fixture(params=[True, False], ids=["background", "foreground"])
def checkpoints(tmp_path: Path, request: pytest.FixtureRequest) -> Checkpoints:
    return Checkpoints(
        tmp_path / "checkpoints", keep=2, settings=SETTINGS, is_main=True, background=bool(request.param)
    )


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.begin(TensorEngine(step), TrainState(step, 10 * step))
        checkpoints.finish()


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_as_it_was(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 3)
    path = find_resume(tmp_path, "auto")
    assert path is not None and path.name == "step-00000003"
    engine = TensorEngine()
    assert checkpoints.load(engine, path) == TrainState(3, 30)
    assert engine.weight.tolist() == [3.0] * NUMEL


def test_only_the_newest_stay(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_going_on_from_an_earlier_one_removes_the_later(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    checkpoints.load(TensorEngine(), tmp_path / "checkpoints" / "step-00000001")
    assert names(tmp_path) == ["step-00000001"]


# ---- while training goes on ------------------------------------------------------------------------------------------


@pytest.fixture
def in_background(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, settings=SETTINGS, is_main=True)


def test_what_training_changes_after_begin_is_not_in_the_checkpoint(in_background: Checkpoints, tmp_path: Path) -> None:
    engine = TensorEngine(1, numel=20_000_000)
    in_background.begin(engine, TrainState(1))
    engine.weight.fill_(2)
    assert in_background.pending and names(tmp_path) == [".step-00000001.partial"], "80 MB are not yet on the disk"
    polls = 0
    while in_background.pending:
        in_background.poll()
        polls += 1
    assert polls > 1 and names(tmp_path) == ["step-00000001"]
    assert in_background.load(engine, tmp_path / "checkpoints" / "step-00000001") == TrainState(1)
    assert torch.equal(engine.weight, torch.ones(20_000_000))


def test_the_next_one_finishes_the_one_before(in_background: Checkpoints, tmp_path: Path) -> None:
    in_background.begin(TensorEngine(1), TrainState(1))
    in_background.begin(TensorEngine(2), TrainState(2))
    assert "step-00000001" in names(tmp_path)
    in_background.finish()
    assert not in_background.pending and names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_step_is_written_once(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    written = (tmp_path / "checkpoints" / "step-00000002").stat().st_mtime_ns
    save(checkpoints, 2)
    resumed = replace(checkpoints)
    resumed.load(TensorEngine(), tmp_path / "checkpoints" / "step-00000002")
    save(resumed, 2)
    assert (tmp_path / "checkpoints" / "step-00000002").stat().st_mtime_ns == written


def test_without_memory_for_a_copy_training_waits(
    in_background: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "MOST_OF_MEMORY", 0.0)
    configure_console(True)
    for step in (1, 2):
        in_background.begin(TensorEngine(step), TrainState(step))
        assert not in_background.pending
    configure_console(False)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert capsys.readouterr().err.count("checkpoints are written in the foreground: copies of 0.00 GiB") == 1


def test_the_free_memory_is_some_of_the_machines() -> None:
    assert 2**26 < available_bytes() < psutil.virtual_memory().total


# ---- a disk that fails -----------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_costs_nothing_else(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1, 2)
    with short_files():
        save(checkpoints, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002"], "nothing pruned, no partial left"
    assert checkpoints.failed == [3]
    save(checkpoints, 3, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_it_ends_the_run_where_that_is_asked_for(checkpoints: Checkpoints, tmp_path: Path) -> None:
    strict = replace(checkpoints, on_failure="stop")
    save(strict, 1)
    with short_files(), pytest.raises(CheckpointError) as error:
        save(strict, 2)
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/step-00000002 cannot be written ([Errno 27] File too large); "
        "earlier ones are as they were, and checkpoint.on_failure is stop."
    )
    assert names(tmp_path) == ["step-00000001"]


def test_a_directory_that_cannot_be_made_costs_the_checkpoint_only(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    save(checkpoints, 1)
    assert checkpoints.failed == [1] and not checkpoints.pending


# ---- a disk that lies ------------------------------------------------------------------------------------------------


def tear(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return f"{SHARD} has {SHARD_BYTES - 1} bytes instead of {SHARD_BYTES}"


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
    assert names(tmp_path) == [".step-00000001.gone.partial", "step-00000002", "step-00000003"]
    save(checkpoints, 4)
    assert checkpoints.failed == []
    assert names(tmp_path)[-2:] == ["step-00000003", "step-00000004"]


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
    (partial / "rank-00000-of-00001.safetensors").write_bytes(b"half")
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoints" / "step-00000001"
    save(checkpoints, 3)  # takes what is left of it away
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


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


def test_another_model_is_refused_by_the_names_of_its_parameters(checkpoints: Checkpoints, tmp_path: Path) -> None:
    save(checkpoints, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    with pytest.raises(ConfigError) as error:
        checkpoints.load(TensorEngine(numel=4), path)
    assert str(error.value) == (
        f"{path} was written by a model with other parameters: weight was (5000,), is (4,). Set model.path to the "
        "model that it was written with, or start a new output_dir."
    )


@pytest.mark.parametrize("written", [None, 1, END_TO_END_FORMAT + 1])
def test_another_format_is_refused(checkpoints: Checkpoints, tmp_path: Path, written: int | None) -> None:
    save(checkpoints, 1, 2)
    path = tmp_path / "checkpoints" / "step-00000002"
    record = checkpoint.read_state(path) | {"format": written}
    if written is None:  # before there was such an entry
        del record["format"]
    (path / STATE_FILE).write_text(json.dumps({**record, "seal": checkpoint._seal(record)}))
    for resume in ("auto", str(path)):
        with pytest.raises(ConfigError) as error:
            find_resume(tmp_path, resume)
        assert str(error.value) == (
            f"{path} is a checkpoint of format {written or 1}, and this version reads formats 2 and 3; go on with the "
            "version of mrpo-ds that wrote it, or start a new output_dir."
        )


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
