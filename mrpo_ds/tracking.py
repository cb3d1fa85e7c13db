"""The metric files and Weights & Biases: what a run tells the world while it works.

metrics.jsonl and evals.jsonl are the record; W&B and the plots are copies of it. Losing any of them costs one
warning and never the training. This file is the only importer of wandb.
"""

import contextlib
import errno
import json
import math
import netrc
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mrpo_ds.config.outputs import TrackingConfig, WandbConfig
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError, DataError
from mrpo_ds.manifest import write_atomic
from mrpo_ds.wandb_files import logged_steps

if TYPE_CHECKING:
    import wandb

WANDB_START_SECONDS = 20.0
"""How long W&B may take to answer at the start before the run goes on offline."""
WANDB_FINISH_SECONDS = 30.0
"""How long W&B may upload at the end; short enough for the grace period of a preempted job."""

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
    """A JSON Lines file that is appended to, a row per step. A full disk loses rows, counted, and nothing else."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keep the rows of steps <= resume_step, byte for byte; at 0 start empty. Raises OSError, DataError."""
        self.lost = 0
        self._path = path
        kept = [line for line, row in _read_lines(path) if row.get("step", 0) <= resume_step] if resume_step else []
        write_atomic(path, b"".join(kept))

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self._write(_to_json({"step": step, **dict(sorted(metrics.items()))}))
        except OSError as error:
            if self.lost == 0:
                log(f"warning: {self._path.name} cannot be written ({error}); training goes on, rows are lost")
            self.lost += 1

    def sync(self) -> None:
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _write(self, line: bytes) -> None:
        # Opened for each row: nothing is held across a full disk, and no buffer can be lost to a kill.
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):
                file.truncate(end)  # half a row would make the next one unreadable
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


class _WandbSink:
    """A W&B run that may be missing: its first failure ends its use."""

    def __init__(
        self, run_dir: Path, config: WandbConfig, resolved: dict[str, Any], earlier: "list[_Row] | None"
    ) -> None:
        """earlier: the rows of a run that is resumed, of which W&B gets those that it has not."""
        self._run: wandb.Run | None = None
        self._known: Callable[[str, int], bool] = lambda prefix, step: False
        mode = _requested_mode(config.mode)
        if mode != "disabled":
            with self._guarded("start"):
                self._run = _start_wandb(run_dir.resolve(), config, mode, resolved, earlier is not None)
                self._known = _what_it_knows(run_dir, self._run) if earlier else self._known
            for row in sorted(earlier or [], key=lambda row: row[1]):
                self.log(*row)

    def log(self, prefix: str, step: int, metrics: Mapping[str, float | None]) -> None:
        if self._run is not None and not self._known(prefix, step):
            with self._guarded("log"):
                row = {f"{prefix}/{name}": math.nan if value is None else value for name, value in metrics.items()}
                self._run.log({**row, "train/global_step": step}, step=step)

    @property
    def is_used(self) -> bool:
        return self._run is not None

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        if self._run is not None:
            with self._guarded("finish"):
                self._run.summary.update(dict(summary))
                self._run.finish(exit_code=exit_code)

    def stop(self, exit_code: int) -> None:
        if self._run is not None:
            with self._guarded("stop"):
                self._run.mark_preempting()
                self._run.finish(exit_code=exit_code)

    @contextlib.contextmanager
    def _guarded(self, verb: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any type: wandb's service, disk and network each throw their own
            self._run = None
            log(f"warning: W&B failed to {verb} ({_reason(error)}); the run goes on without it")


_Row = tuple[str, int, dict[str, float | None]]
"""'train' | 'eval', step, metrics."""


def _what_it_knows(run_dir: Path, run: "wandb.Run") -> Callable[[str, int], bool]:
    """Whether W&B already has the row of a kind and step: a server says so itself, files are looked into."""
    if not run.offline:
        return lambda prefix, step: step < run.starting_step
    known = logged_steps(run_dir, str(run.id))
    return lambda prefix, step: (prefix, step) in known


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _requested_mode(configured: str) -> str:
    """The mode of the config; auto leaves it to WANDB_MODE, which clusters without internet set for everyone."""
    ambient = os.environ.get("WANDB_MODE", "")
    return ambient if configured == "auto" and ambient in ("online", "offline", "disabled") else configured


def _start_wandb(run_dir: Path, config: WandbConfig, mode: str, resolved: dict[str, Any], resumed: bool) -> "wandb.Run":
    """Start or continue the W&B run of run_dir, offline when it cannot be online. Raises whatever wandb raises."""
    os.environ.setdefault("WANDB_SILENT", "true")  # the address of the run is logged below
    # Reports to W&B's makers would hold tracebacks and paths, and an unreachable server makes them hang the exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    run_id, known = _wandb_run_id(run_dir / "wandb" / "run_id.txt", resumed)
    options: dict[str, Any] = {
        "dir": run_dir,  # wandb adds /wandb
        "id": run_id,
        "resume": "allow" if known else None,
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "name": config.name or run_dir.name,
        "config": resolved,
        "settings": wandb.Settings(  # before release 0.29 an unreachable server outlasts these times
            console="off",  # capturing stderr would break the progress bar
            disable_code=True,  # a diff of the working tree may hold secrets
            init_timeout=WANDB_START_SECONDS,
            login_timeout=WANDB_START_SECONDS,
            finish_timeout=WANDB_FINISH_SECONDS,
            finish_timeout_raises=True,  # or an incomplete upload would go unsaid
        ),
    }
    credentials = mode != "offline" and has_credentials()
    if mode == "online" and not credentials:
        log("warning: W&B is asked to be online, but there is no key (WANDB_API_KEY or wandb login); it goes offline")
    run = _init_wandb(options, online=credentials)
    run.define_metric("train/global_step")
    for prefix in ("train", "eval"):
        run.define_metric(f"{prefix}/*", step_metric="train/global_step")
    log(f"W&B offline; upload with: wandb sync {Path(run.dir).parent}" if run.offline else f"W&B: {run.url}")
    return run


def _init_wandb(options: dict[str, Any], online: bool) -> "wandb.Run":
    """Call wandb.init; when online fails (a compute node without internet), once more offline."""
    import wandb

    if online:
        try:
            return wandb.init(mode="online", **options)
        except Exception as error:  # as in _WandbSink
            log(f"warning: W&B cannot go online ({_reason(error)}); it goes offline")
            wandb.teardown()  # its service still holds the run id
    return wandb.init(mode="offline", **options)


def _wandb_run_id(path: Path, resumed: bool) -> tuple[str, bool]:
    """The id of the W&B run, and whether it is the one of the run that is resumed."""
    stored = path.read_text(encoding="utf-8").strip() if resumed and path.exists() else ""
    if stored:
        return stored, True
    fresh = uuid.uuid4().hex[:12]
    path.parent.mkdir(exist_ok=True)
    path.write_text(fresh + "\n", encoding="utf-8")
    return fresh, False


def has_credentials() -> bool:
    """Whether wandb would find a key by itself, so that it never stops to ask for one."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings  # with those of wandb's own files
    if settings.api_key:
        return True
    hosts = {urlsplit(settings.base_url).netloc}
    if not os.environ.get("WANDB_BASE_URL"):
        hosts.add("api.wandb.ai")  # keys of the public server keep this name, whatever a release's default is
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            keys = netrc.netrc(os.path.expanduser(path)) if path else None
            if keys and any(keys.authenticators(host) for host in hosts):
                return True
    return False


# ---- the tracker -----------------------------------------------------------------------------------------------------


class Tracker:
    """Writes metrics.jsonl, evals.jsonl, summary.json, plots/ and W&B. One per run, on the policy's rank 0."""

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
        except OSError as error:
            raise ConfigError(
                f"output_dir {run_dir} cannot be written: {error}. Make room or give leave to write"
                + (" and resume again." if resume_step else ", or choose another.")
            ) from error
        earlier = None
        if resume_step:
            files = {"train": "metrics.jsonl", "eval": "evals.jsonl"}
            earlier = [
                (kind, row.pop("step"), row) for kind, name in files.items() for row in read_jsonl(run_dir / name)
            ]
        self._wandb = _WandbSink(run_dir, config.wandb, resolved, earlier)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row of an optimizer step (counted from 1); non-finite values become null. Never raises OSError."""
        self._metrics.append(step, metrics)
        self._wandb.log("train", step, metrics)

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row of an evaluation after an optimizer step, 0 before the first. As log_step otherwise."""
        self._evals.append(step, metrics)
        self._wandb.log("eval", step, metrics)

    def sync(self) -> None:
        """Wait until the rows so far are on the disk: a checkpoint must not outlive them."""
        self._metrics.sync()
        self._evals.sync()

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
        lost = self._metrics.lost + self._evals.lost
        if lost:
            summary = {**summary, "lost_metric_rows": lost}
        try:
            write_atomic(self._run_dir / "summary.json", _to_json(summary, indent=2))
        except OSError as error:
            log(f"warning: summary.json cannot be written ({error})")
        if self._plots:
            self._draw()
        self._wandb.finish(summary, exit_code)

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
            log(f"warning: plots cannot be drawn ({_reason(error)}); the numbers are in metrics.jsonl")
