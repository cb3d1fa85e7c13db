"""Checkpoints to resume from: written beside, listed with checksums, renamed, and only then do older ones go.

A directory named step-* always is a whole one, unless its files were damaged later; its state.json lists all of them,
with checksums. A checkpoint that cannot be written leaves the ones before it as they are.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from mrpo_ds import logs
from mrpo_ds.console import log
from mrpo_ds.distributed.collectives import barrier, everywhere, gather_objects
from mrpo_ds.errors import CheckpointError, ConfigError
from mrpo_ds.manifest import attempt, damage, write_atomic, write_through
from mrpo_ds.memory import available_bytes
from mrpo_ds.shards import Cut, Shapes, Shards, ShardWriter, file_name, shard_sizes

if TYPE_CHECKING:  # the check command finds checkpoints without waiting for deepspeed to be imported
    import torch

    from mrpo_ds.engine import Restorable

TAG = "policy"
STATE_FILE = "state.json"
FORMAT, END_TO_END_FORMAT = 2, 3
"""1 had DeepSpeed's own files, which were pickles. 3 is 2 with parameters that were cut end to end."""
MOST_OF_MEMORY = 0.8
"""Of a host's free memory, what the copies of its ranks may take."""
Settings = dict[str, Any]
"""What must not change between the runs that share checkpoints: full key -> plain value."""


@dataclass(frozen=True)
class TrainState:
    """Where a run stands, besides the engine's weights and optimizer.

    There is no random state: the order of the data is a function of the seed and the step, and dropout is off.
    """

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Policy tokens trained on."""
    skipped: int = 0
    """Of the steps, those left out because of a number that was not finite."""

    def after(self, step: int, tokens: int) -> "TrainState":
        """The state after one more step that read so many tokens."""
        return replace(self, step=step, tokens=self.tokens + tokens)

    def after_skipped(self, step: int) -> "TrainState":
        """The state after one more step that was left out."""
        return replace(self, step=step, skipped=self.skipped + 1)


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    final: Path
    beside: Path
    record: dict[str, Any]
    writer: ShardWriter
    device: "torch.device"
    held_seconds: float
    """How long training has waited for it so far."""


@dataclass
class Checkpoints:
    """The checkpoints of one run directory. Every policy rank calls every method; one of them does what all share."""

    directory: Path
    """<run>/checkpoints"""
    keep: int
    settings: Settings
    is_main: bool
    on_failure: str = "continue"
    """continue | stop, when a checkpoint cannot be written."""
    allow_changes: bool = False
    """Resume although settings differ."""
    background: bool = True
    """Write a copy from a thread while training goes on, where host memory has room for it."""
    failed: list[int] = field(default_factory=list)
    """Steps whose checkpoint could not be written."""
    newest: int | None = field(default=None, init=False)
    """The step of the last one that this run wrote, or began from."""
    seconds: float = field(default=0.0, init=False)
    """How long the last one took, from its beginning to its publication, at most."""
    _pending: _Pending | None = field(default=None, init=False)
    _said_foreground: bool = field(default=False, init=False)

    @property
    def pending(self) -> bool:
        """Whether a checkpoint has begun and is not there yet; the same on every rank."""
        return self._pending is not None

    def begin(self, engine: "Restorable", state: TrainState) -> None:
        """Begin a checkpoint of the step, after finishing one that is pending. Weights may change when this returns.

        In the background, poll or finish make it a checkpoint; else it is one when this returns. A step that has one
        already gets no second one. When it cannot be written: says so and keeps the earlier ones; if on_failure is
        stop, raises CheckpointError on every rank.
        """
        self.finish()
        if self.newest == state.step:
            return
        started = time.perf_counter()
        final = self.directory / f"step-{state.step:08d}"
        beside = self.directory / f".{final.name}.partial"
        shapes, steps, cut = engine.shapes(), engine.optimizer_steps(), engine.cut()
        sizes = shard_sizes(shapes, steps > 0, cut, _rank())
        problem = self._on_main(lambda: _make_empty(beside))
        if problem:
            self._give_up(final, beside, problem)
            return
        writer = ShardWriter(beside / TAG / file_name(_rank(), cut.ranks), sizes)
        in_background = self.background and self._has_room(4 * sum(sizes.values()))
        write = writer.write_in_background if in_background else writer.write
        write(engine.local_state())
        layout = FORMAT if cut.end_to_end is None else END_TO_END_FORMAT
        record = {"format": layout, **cut.as_record(), **asdict(state), "optimizer_steps": steps, "parameters": shapes}
        held = time.perf_counter() - started
        self._pending = _Pending(final, beside, record | {"settings": self.settings}, writer, engine.device, held)
        if not in_background:
            self.finish()

    def poll(self) -> None:
        """Between two steps: publish what is pending, if every rank has written its part by now."""
        if self._pending is not None and everywhere(self._pending.writer.done, self._pending.device):
            self.finish()

    def finish(self) -> None:
        """Wait for what is pending, publish it, then prune. Raises like begin."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        started = time.perf_counter()
        writer = pending.writer
        writer.wait()
        problems = gather_objects([writer.problem])  # of every rank, also of one that failed: nobody waits in vain
        problem = next((text for (text,) in problems if text), "")
        entries = gather_objects([json.dumps(writer.entry), str(writer.seconds)])
        files = {f"{TAG}/{file_name(rank, len(entries))}": json.loads(text) for rank, (text, _) in enumerate(entries)}
        record = {**pending.record, "files": files}
        problem = problem or self._on_main(lambda: _publish(pending.beside, pending.final, record))
        if problem:
            self._give_up(pending.final, pending.beside, problem)
            return
        self.newest = record["step"]
        held = pending.held_seconds + time.perf_counter() - started
        written = max(float(seconds) for _, seconds in entries)
        self.seconds = held + written
        if self.is_main:
            size = sum(int(count) for count, _ in files.values()) / 2**30
            log(f"checkpoint {pending.final} ({size:.2f} GiB in {written:.1f} s; training waited {held:.1f} s)")
            self._prune()

    def _give_up(self, final: Path, beside: Path, problem: str) -> None:
        if self.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        self.failed.append(int(final.name.removeprefix("step-")))
        message = f"the checkpoint {final} cannot be written ({problem}); earlier ones are as they were"
        if self.on_failure == "stop":
            raise CheckpointError(f"{message}, and checkpoint.on_failure is stop.")
        log(f"warning: {message}, and the run goes on")

    def _has_room(self, size: int) -> bool:
        """Whether every host has memory for the copies of all of its ranks; the same on every rank."""
        notes = [json.loads(text) for (text,) in gather_objects([json.dumps([gethostname(), size, available_bytes()])])]
        for host in {name for name, _, _ in notes}:
            copies = sum(count for name, count, _ in notes if name == host)
            free = min(count for name, _, count in notes if name == host)
            if copies > MOST_OF_MEMORY * free:
                if self.is_main and not self._said_foreground:
                    log(
                        f"checkpoints are written in the foreground: copies of {copies / 2**30:.2f} GiB would take "
                        f"more than {MOST_OF_MEMORY:.0%} of the {free / 2**30:.2f} GiB of free memory on {host}"
                    )
                self._said_foreground = True
                return False
        return True

    def _prune(self) -> None:
        for old in list_checkpoints(self.directory)[: -self.keep]:
            problem = attempt(partial(_remove, old))
            if problem:
                log(f"warning: the old checkpoint {old} cannot be removed ({problem})")

    def _on_main(self, action: Callable[[], None]) -> str:
        """Let one rank act. Returns what went wrong, the same on every rank, or ""."""
        problems = gather_objects([attempt(action) if self.is_main else ""])
        return next((text for (text,) in problems if text), "")

    def check(self, path: Path) -> None:
        """Raise ConfigError when a checkpoint is of other settings. Any number of policy ranks may have written it."""
        self._check_settings(path, read_state(path)["settings"])

    def load(self, engine: "Restorable", path: Path) -> TrainState:
        """Restore engine and state from a checkpoint directory that has passed check.

        Raises ConfigError when it is of a model with other parameters.
        """
        record = read_state(path)
        shapes: Shapes = {name: tuple(shape) for name, shape in record["parameters"].items()}
        changes = differences(shapes, engine.shapes())
        if changes:
            raise ConfigError(
                f"{path} was written by a model with other parameters: {'; '.join(changes[:3])}. Set model.path to the "
                "model that it was written with, or start a new output_dir."
            )
        with Shards(path / TAG, Cut.from_record(record), shapes, engine.cut(), _rank()) as shards:
            engine.restore(shards.read, record["optimizer_steps"])
        if path.resolve().parent == self.directory.resolve():
            self.newest = record["step"]
        if self.is_main:  # what this run will write again must not be taken for newer than it
            for later in list_checkpoints(self.directory):
                if later.name > path.name and later.parent.resolve() == path.resolve().parent:
                    _remove(later)
        barrier()
        return TrainState(step=record["step"], tokens=record["tokens"], skipped=record["skipped"])

    def _check_settings(self, path: Path, written: Settings) -> None:
        changes = differences(written, self.settings)
        if not changes:
            return
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        if not self.allow_changes:
            raise ConfigError(
                f"{path} was written with other settings: {shown}. Resume as {path.parent.parent / 'config.yaml'} "
                "says, start a new output_dir, or set checkpoint.allow_changes=true."
            )
        if self.is_main:
            log(f"warning: resuming {path} although it was written with other settings: {shown}")


def differences(written: Settings, present: Settings) -> list[str]:
    """'key was X, is Y' for every key in which two settings differ."""
    keys = [*written, *(key for key in present if key not in written)]
    missing = "nothing"
    return [
        f"{key} was {written.get(key, missing)!r}, is {present.get(key, missing)!r}"
        for key in keys
        if written.get(key, missing) != present.get(key, missing)
    ]


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run that were finished, oldest first. Their files are not looked at."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE_FILE).is_file())


def check_resume(run_dir: Path, resume: str) -> None:
    """Raise ConfigError when --resume auto | none | PATH cannot be meant, or when run_dir may not be written to.

    PATH must be a finished checkpoint; a directory that is used needs auto, or a PATH inside it.
    """
    if resume == "auto":
        return
    if resume == "none":
        _refuse_used(run_dir)
        return
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise ConfigError(
            f"--resume is {resume!r}, which is no whole checkpoint; allowed: auto, none or a step-* directory."
        )
    if path.resolve().parent != (run_dir / "checkpoints").resolve():
        _refuse_used(run_dir)


def find_resume(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, all of its files read and found whole; None to start from the beginning.

    auto passes over damaged ones, newest first, and says so.

    Raises CheckpointError when the PATH is damaged, or with auto every checkpoint there is; ConfigError when the one to
    go on from is of another format.
    """
    if resume == "none":
        return None
    candidates = list_checkpoints(run_dir / "checkpoints") if resume == "auto" else [Path(resume)]
    problems = []
    for path in reversed(candidates):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**30
        log(f"reading {path} to see that it is whole ({size:.2f} GiB)")
        problem = find_damage(path)
        if not problem:
            _check_format(path)
            return path
        problems.append(f"{path} is damaged: {problem}")
        if resume == "auto":
            log(f"warning: {problems[-1]}; looking for an earlier one")
    if problems:
        raise CheckpointError(
            f"{problems[0]}. "
            + ("No other checkpoint is whole; r" if resume == "auto" else "R")
            + "estore it from a backup, or remove it to go without it."
        )
    return None


def find_damage(path: Path) -> str:
    """What is wrong with a finished checkpoint, or "". Reads all of its files."""
    try:
        return damage(path, read_state(path)["files"])
    except CheckpointError as error:
        return str(error)


def read_state(path: Path) -> dict[str, Any]:
    """The state record of a checkpoint. Raises CheckpointError when it cannot be read."""
    try:
        record: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        seal = record.pop("seal", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{STATE_FILE} cannot be read ({error})") from error
    if seal != _seal(record):
        raise CheckpointError(f"{STATE_FILE} has changed since it was written")
    return record


def _check_format(path: Path) -> None:
    """Raise ConfigError when a checkpoint is whole, but none that this version reads."""
    written = read_state(path).get("format", 1)
    if written not in (FORMAT, END_TO_END_FORMAT):
        raise ConfigError(
            f"{path} is a checkpoint of format {written}, and this version reads formats {FORMAT} and "
            f"{END_TO_END_FORMAT}; go on with the version of mrpo-ds that wrote it, or start a new output_dir."
        )


def _make_empty(beside: Path) -> None:
    """The directory of a new checkpoint; what interrupted ones have left goes."""
    for left in beside.parent.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=left != beside)  # one that cannot go is in nobody's way
    (beside / TAG).mkdir(parents=True)


def _publish(beside: Path, final: Path, record: dict[str, Any]) -> None:
    """Seal a directory whose files are on the disk, and give it its name."""
    write_atomic(beside / STATE_FILE, json.dumps({**record, "seal": _seal(record)}, indent=2).encode())
    _sync_directories(beside / TAG, beside)
    if final.exists():
        _remove(final)
    os.replace(beside, final)
    _sync_directories(final.parent)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, which is no longer listed before its first file goes."""
    going = checkpoint.with_name(f".{checkpoint.name}.gone.partial")
    shutil.rmtree(going, ignore_errors=True)
    os.replace(checkpoint, going)
    shutil.rmtree(going)


def _sync_directories(*directories: Path) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # some file systems cannot; the checkpoint is there all the same
            write_through(directory)


def _seal(record: dict[str, Any]) -> str:
    """A checksum of the record itself."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _refuse_used(run_dir: Path) -> None:
    # Of a run that failed before its first step only logs are there: they may be added to.
    if run_dir.is_dir() and any(path.name != logs.DIRECTORY for path in run_dir.iterdir()):
        raise ConfigError(
            f"output_dir is {str(run_dir)!r}, which is already used; choose a new one, empty it, or continue that "
            "run with --resume auto."
        )


def _rank() -> int:
    return int(os.environ["RANK"])
