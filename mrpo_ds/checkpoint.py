"""Checkpoints to resume from: written beside, checked, renamed, and only then do older ones go.

A directory named step-* always is a whole one, unless its files were damaged later; its state.json lists all of them,
with checksums. A checkpoint that cannot be written leaves the ones before it as they are.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_ds.console import log
from mrpo_ds.distributed.collectives import barrier, gather_objects
from mrpo_ds.errors import CheckpointError, ConfigError
from mrpo_ds.manifest import Manifest, damage, describe, files_below, write_through

if TYPE_CHECKING:  # the check command finds checkpoints without waiting for deepspeed to be imported
    from mrpo_ds.engine import Restorable

TAG = "policy"
STATE_FILE = "state.json"
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
class Checkpoints:
    """The checkpoints of one run directory. Every policy rank calls save and load; one of them does the files."""

    directory: Path
    """<run>/checkpoints"""
    keep: int
    settings: Settings
    is_main: bool
    on_failure: str = "continue"
    """continue | stop, when a checkpoint cannot be written."""
    allow_changes: bool = False
    """Resume although settings differ."""
    failed: list[int] = field(default_factory=list)
    """Steps whose checkpoint could not be written."""

    def save(self, engine: "Restorable", state: TrainState) -> None:
        """Write a checkpoint of the step, then prune.

        When it cannot be written: says so and keeps the earlier ones; if on_failure is stop, raises CheckpointError on
        every rank.
        """
        final = self.directory / f"step-{state.step:08d}"
        beside = self.directory / f".{final.name}.partial"
        problem = self._write(engine, state, beside)
        if not problem:
            problem = self._on_main(lambda: _publish(beside, final))
        if not problem:
            if self.is_main:
                log(f"checkpoint {final}")
                self._prune()
            return
        if self.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        self.failed.append(state.step)
        message = f"the checkpoint {final} cannot be written ({problem}); earlier ones are as they were"
        if self.on_failure == "stop":
            raise CheckpointError(f"{message}, and checkpoint.on_failure is stop.")
        log(f"warning: {message}, and the run goes on")

    def _write(self, engine: "Restorable", state: TrainState, beside: Path) -> str:
        """Fill the directory beside. Returns what went wrong on any rank, the same on every one, or ""."""
        problem = self._on_main(lambda: _make_empty(beside))
        if problem:
            return problem
        problem = _first(_attempt(lambda: engine.save(beside, TAG)))  # on every rank, also of one that failed
        if problem:
            return problem
        rank, size = int(os.environ["RANK"]), _world_size()
        # The main rank's list: ranks may see a shared disk differently for a moment, and no file must fall between two.
        lists = gather_objects(files_below(beside) if self.is_main else [])
        mine = sorted(name for names in lists for name in names)[rank::size]
        entries: Manifest = {}
        problem = _first(_attempt(lambda: entries.update(describe(beside, mine))))
        if problem:
            return problem
        parts = [json.loads(part) for rank_parts in gather_objects([json.dumps(entries)]) for part in rank_parts]
        files = {name: entry for part in parts for name, entry in part.items()}
        record = {**asdict(state), "world_size": size, "settings": self.settings, "files": files}
        return self._on_main(lambda: _write_record(beside / STATE_FILE, record))

    def _prune(self) -> None:
        for old in list_checkpoints(self.directory)[: -self.keep]:
            problem = _attempt(partial(shutil.rmtree, old))
            if problem:
                log(f"warning: the old checkpoint {old} cannot be removed ({problem})")

    def _on_main(self, action: Callable[[], None]) -> str:
        """Let one rank act. Returns what went wrong, the same on every rank, or ""."""
        return _first(_attempt(action) if self.is_main else "")

    def check(self, path: Path) -> None:
        """Raise ConfigError when a checkpoint is of other settings or of another number of policy ranks."""
        record = read_state(path)
        self._check_settings(path, record["settings"])
        if record["world_size"] != _world_size():
            raise ConfigError(
                f"{path} was written by {record['world_size']} policy ranks, this run has {_world_size()}; set "
                f"topology.policy={record['world_size']}."
            )

    def load(self, engine: "Restorable", path: Path) -> TrainState:
        """Restore engine and state from a checkpoint directory that has passed check."""
        record = read_state(path)
        engine.load(path, TAG)
        if self.is_main:  # what this run will write again must not be taken for newer than it
            for later in list_checkpoints(self.directory):
                if later.name > path.name and later.parent.resolve() == path.resolve().parent:
                    shutil.rmtree(later)
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

    Raises CheckpointError when the PATH is damaged, or with auto every checkpoint there is.
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


def _publish(beside: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    with contextlib.suppress(
        OSError
    ):  # some file systems cannot sync a directory; the checkpoint is there all the same
        write_through(final.parent)


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / TAG).mkdir(parents=True)


def _write_record(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps({**record, "seal": _seal(record)}, indent=2), encoding="utf-8")
    write_through(path)


def _seal(record: dict[str, Any]) -> str:
    """A checksum of the record itself."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _attempt(action: Callable[[], None]) -> str:
    """Do something with files. Returns what went wrong, or ""; torch reports a full disk as a RuntimeError."""
    try:
        action()
    except (OSError, RuntimeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _first(problem: str) -> str:
    """The first problem of any rank, on every rank, or ""."""
    problems = [one for rank_problems in gather_objects([problem]) for one in rank_problems if one]
    return problems[0] if problems else ""


def _refuse_used(run_dir: Path) -> None:
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            f"output_dir is {str(run_dir)!r}, which is already used; choose a new one, empty it, or continue that "
            "run with --resume auto."
        )


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])
