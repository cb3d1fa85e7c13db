"""Checkpoints to resume from: written beside, then renamed, so that a directory named step-* is always whole."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_ds.distributed.collectives import barrier
from mrpo_ds.errors import CheckpointError, ConfigError
from mrpo_ds.tracking import log

if TYPE_CHECKING:  # the check command finds checkpoints without waiting for deepspeed to be imported
    from mrpo_ds.engine import Engine

TAG = "policy"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands, besides the engine's weights and optimizer."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Policy tokens trained on."""

    def after(self, step: int, tokens: int) -> "TrainState":
        """The state after one more step that read so many tokens."""
        return TrainState(step, self.tokens + tokens)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run directory. Every policy rank calls save and load; one of them does the files."""

    directory: Path
    """<run>/checkpoints"""
    keep: int
    config_digest: str
    """Digest of what must not change between the runs that share checkpoints."""
    is_main: bool

    def save(self, engine: "Engine", state: TrainState) -> None:
        """Write a checkpoint of the step, then prune. Raises CheckpointError when it cannot be written."""
        final = self.directory / f"step-{state.step:08d}"
        partial = self.directory / f".{final.name}.partial"
        if self.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        try:
            engine.save(partial, TAG)
        except OSError as error:
            raise CheckpointError(f"cannot write the checkpoint {final}: {error}") from error
        barrier()
        if self.is_main:
            record = {**asdict(state), "config_digest": self.config_digest, "world_size": _world_size()}
            (partial / STATE_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in list_checkpoints(self.directory)[: -self.keep]:
                shutil.rmtree(old)
            log(f"checkpoint {final}")
        barrier()

    def load(self, engine: "Engine", path: Path) -> TrainState:
        """Restore engine and state from a checkpoint directory.

        Raises CheckpointError when it belongs to another configuration or another number of policy ranks.
        """
        record = read_state(path)
        if record["config_digest"] != self.config_digest:
            raise CheckpointError(
                f"{path} was written with other settings of model, references, loss, data or train, other rows in the "
                f"data, or another precision; resume as {path.parent.parent / 'config.yaml'} says, or start a new "
                "output_dir."
            )
        if record["world_size"] != _world_size():
            raise CheckpointError(
                f"{path} was written by {record['world_size']} policy ranks, this run has {_world_size()}; set "
                f"topology.policy={record['world_size']}."
            )
        engine.load(path, TAG)
        if self.is_main:  # what this run will write again must not be taken for newer than it
            for later in list_checkpoints(self.directory):
                if later.name > path.name and later.parent.resolve() == path.resolve().parent:
                    shutil.rmtree(later)
        return TrainState(step=record["step"], tokens=record["tokens"])


def list_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE_FILE).is_file())


def find_resume(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that --resume auto | none | PATH means, or None to start from the beginning.

    Raises ConfigError when PATH is no whole checkpoint, or when run_dir is used and may not be continued.
    """
    if resume not in ("auto", "none"):
        path = Path(resume)
        if not (path / STATE_FILE).is_file():
            raise ConfigError(
                f"--resume is {resume!r}, which is no whole checkpoint; allowed: auto, none or a step-* directory."
            )
        if path.resolve().parent != (run_dir / "checkpoints").resolve():
            _refuse_used(run_dir)
        return path
    if resume == "none":
        _refuse_used(run_dir)
        return None
    whole = list_checkpoints(run_dir / "checkpoints")
    return whole[-1] if whole else None


def _refuse_used(run_dir: Path) -> None:
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            f"output_dir is {str(run_dir)!r}, which is already used; choose a new one, empty it, or continue that "
            "run with --resume auto."
        )


def read_state(path: Path) -> dict[str, Any]:
    """The state record of a checkpoint. Raises CheckpointError when it cannot be read."""
    try:
        record: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return record
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from error


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])
