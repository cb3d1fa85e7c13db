"""The metric files and Weights & Biases: what a run tells the world while it works.

metrics.jsonl, evals.jsonl and samples.jsonl are the record; W&B and the plots are copies of it. Losing any of them
costs one warning and never the training.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mrpo_ds.config.outputs import TrackingConfig
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.manifest import write_atomic
from mrpo_ds.wandb_sink import WANDB_FINISH_SECONDS, Row, WandbSink, reason

# ---- files -----------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, [] when there is no file; a last line torn by a kill is left out.

    Raises:
        DataError: A line before the last is not a JSON object.
    """
    return [row for _, row in _read_lines(path)]


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The rows of a JSON Lines file, each behind the very bytes of its line."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path} line {number} cannot be read: {error}. Remove that line to go on.") from error
        rows.append((line + b"\n", row))
    return rows


def failure_file(run_dir: Path, step: int) -> Path:
    """Where the numbers of a step that failed are written."""
    return run_dir / "failures" / f"step-{step:08d}.json"


def _to_json(value: object, indent: int | None = None) -> bytes:
    return (json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n").encode()


def _finite(value: object) -> object:
    """The value with null for each NaN or infinity, which JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class _RowFile:
    """A JSON Lines file that is appended to, step by step. A full disk loses rows, counted, and nothing else."""

    def __init__(self, path: Path, resume_step: int, may_lack: bool = False) -> None:
        """Keep the rows of steps <= resume_step, byte for byte; at 0 start empty. Raises OSError, DataError.

        may_lack: do not make an empty file.
        """
        self.lost = 0
        self._path = path
        kept = [(line, row) for line, row in _read_lines(path) if row.get("step", 0) <= resume_step]
        while kept and kept[-1][1].get("sample", 0) < kept[-1][1].get("of", 0):
            kept.pop()  # a kill has cut off the rest of these samples: all of their step are made again
        if path.exists() or not may_lack:
            write_atomic(path, b"".join(line for line, _ in kept if resume_step))

    def append(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a step, in one write."""
        try:
            self._write(b"".join(_to_json({"step": step, **row}) for row in rows))
        except OSError as error:
            if self.lost == 0:
                log(f"warning: {self._path.name} cannot be written ({error}); training goes on, rows are lost")
            self.lost += len(rows)

    def sync(self) -> None:
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _write(self, lines: bytes) -> None:
        # Opened for each row: nothing is held across a full disk, and no buffer can be lost to a kill.
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(lines) < len(lines):
                file.truncate(end)  # half a row would make the next one unreadable
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- the tracker -----------------------------------------------------------------------------------------------------


class Tracker:
    """Writes metrics.jsonl, evals.jsonl, samples.jsonl, summary.json, plots/ and W&B: the policy's rank 0 has one."""

    def __init__(self, run_dir: Path, config: TrackingConfig, resolved: dict[str, Any], resume_step: int) -> None:
        """Open a new run, or go on with one.

        Args:
            run_dir: The run directory; made if missing.
            config: What to write besides the files.
            resolved: The whole configuration without secrets, for W&B.
            resume_step: The last optimizer step that stays: later rows are cut off. 0 starts with empty files.

        Raises:
            ConfigError: run_dir cannot be written.
            DataError: A resumed file has a line that is not JSON before its last.
        """
        self._run_dir = run_dir
        self._plots = config.plots
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._metrics = _RowFile(run_dir / "metrics.jsonl", resume_step)
            self._evals = _RowFile(run_dir / "evals.jsonl", resume_step)
            self._samples = _RowFile(run_dir / "samples.jsonl", resume_step, may_lack=True)
        except OSError as error:
            raise ConfigError(
                f"output_dir {run_dir} cannot be written: {error}. Make room or give leave to write"
                + (" and resume again." if resume_step else ", or choose another.")
            ) from error
        self._wandb = WandbSink(run_dir, config.wandb, resolved, _earlier_rows(run_dir) if resume_step else None)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row of an optimizer step (counted from 1); non-finite values become null. Never raises OSError."""
        self._metrics.append(step, [dict(sorted(metrics.items()))])
        self._wandb.log("train", step, metrics)

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row of an evaluation after an optimizer step, 0 before the first. As log_step otherwise."""
        self._evals.append(step, [dict(sorted(metrics.items()))])
        self._wandb.log("eval", step, metrics)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append what the model said after an optimizer step, a row for each prompt. Never raises OSError.

        Each row has the number of its sample, and of how many: a step without its last one is not whole.
        """
        rows = [{"sample": number, "of": len(samples), **one} for number, one in enumerate(samples, start=1)]
        self._samples.append(step, rows)
        self._wandb.log_samples(step, [{"step": step, **row} for row in rows])

    def sync(self) -> None:
        """Wait until the rows so far are on the disk: a checkpoint must not outlive them."""
        for file in (self._metrics, self._evals, self._samples):
            file.sync()

    def log_failure(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write what is known of a step that failed to its failure_file. Never raises OSError."""
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, _to_json(record, indent=2))
        except OSError as error:
            log(f"warning: {path} cannot be written ({error})")

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """Write summary.json, draw the plots and close W&B. A part that fails is a warning.

        Args:
            summary: JSON values; `lost_metric_rows` is added when rows could not be written.
            exit_code: What the process will exit with, shown by W&B.
        """
        lost = self._metrics.lost + self._evals.lost + self._samples.lost
        if lost:
            summary = {**summary, "lost_metric_rows": lost}
        try:
            write_atomic(self._run_dir / "summary.json", _to_json(summary, indent=2))
        except OSError as error:
            log(f"warning: summary.json cannot be written ({error})")
        if self._plots:
            self._draw()
        self._wandb.finish(summary, exit_code, read_jsonl(self._run_dir / "evals.jsonl"))

    @property
    def goodbye_seconds(self) -> float:
        """How long stop may take."""
        return WANDB_FINISH_SECONDS if self._wandb.is_used else 0.0

    def stop(self, exit_code: int) -> None:
        """Close W&B before the run is done: it may go on later under the same id."""
        self._wandb.stop(exit_code)

    def _draw(self) -> None:
        try:
            from mrpo_ds.plots import plot_run  # here, since plots reads its rows with this module

            plot_run(self._run_dir)
        except Exception as error:  # a picture must not turn a finished run into a failed one
            log(f"warning: plots cannot be drawn ({reason(error)}); the numbers are in metrics.jsonl")


def _earlier_rows(run_dir: Path) -> list[Row]:
    """The rows of a run that is resumed, for W&B."""
    files = {"train": "metrics.jsonl", "eval": "evals.jsonl"}
    rows: list[Row] = [
        (kind, row.pop("step"), row) for kind, name in files.items() for row in read_jsonl(run_dir / name)
    ]
    samples = groupby(read_jsonl(run_dir / "samples.jsonl"), key=lambda row: row["step"])
    return rows + [("samples", int(step), list(group)) for step, group in samples]
