"""The W&B run of a run directory: a copy of its files. The only importer of wandb.

Losing it costs one warning and never the work. docs/wandb.md says what it holds.
"""

import contextlib
import math
import netrc
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mrpo_ds.config.outputs import WandbConfig
from mrpo_ds.console import log
from mrpo_ds.wandb_files import STEP, logged_steps

if TYPE_CHECKING:
    import wandb

WANDB_START_SECONDS = 20.0
"""How long W&B may take to answer at the start before the run goes on offline."""
WANDB_FINISH_SECONDS = 30.0
"""How long W&B may upload at the end; short enough for the grace period of a preempted job."""
WANDB_UPLOAD_SECONDS = 1800
"""How long it may upload the trained model, once everything else is done."""
RECORD = ("config.yaml", "summary.json", "evals.jsonl", "samples.jsonl")
"""The files of a run directory that are its record artifact; those that it has."""
Metrics = Mapping[str, float | None]
Table = Sequence[Mapping[str, Any]]
"""Rows of a table, whose columns are the keys of the first one."""
Row = tuple[str, int, Any]
"""'train' | 'eval', step, Metrics; or 'samples', step, Table."""


class WandbSink:
    """A W&B run that may be missing: its first failure ends its use."""

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        resolved: dict[str, Any],
        earlier: list[Row] | None = None,
        job_type: str = "train",
    ) -> None:
        """Start the W&B run of a directory, or go on with it.

        Args:
            run_dir: where its files go, below wandb/.
            config: which run.
            resolved: the whole configuration, without secrets.
            earlier: the rows of a run that is resumed, of which W&B gets those that it has not; None: a new run.
            job_type: train | score | eval.
        """
        self._run: wandb.Run | None = None
        self._run_dir = run_dir
        self._config = config
        self._has_steps = job_type == "train"
        self._known: Callable[[str, int], bool] = lambda kind, step: False
        mode = _requested_mode(config.mode)
        if mode != "disabled":
            with self._guarded("start"):
                self._run = _start_wandb(run_dir.resolve(), config, mode, resolved, job_type, earlier is not None)
                self._known = _what_it_knows(run_dir, self._run) if earlier else self._known
            for kind, step, content in sorted(earlier or [], key=lambda row: row[1]):
                if kind == "samples":
                    self.log_samples(step, content)
                else:
                    self.log(kind, step, content)

    def log(self, kind: str, step: int, metrics: Metrics) -> None:
        """Log metrics as <kind>/<name>; None as NaN."""
        if self._run is not None and not self._known(kind, step):
            with self._guarded("log"):
                row = {f"{kind}/{name}": math.nan if value is None else value for name, value in metrics.items()}
                self._run.log({**row, STEP: step} if self._has_steps else row, step=step)

    def log_samples(self, step: int, rows: Table) -> None:
        """Log what the model said after a step as the table samples/table."""
        if self._run is not None and not self._known("samples", step):
            with self._guarded("log"):
                self._run.log({"samples/table": _table(rows), STEP: step}, step=step)

    @property
    def is_used(self) -> bool:
        """Whether there is a run."""
        return self._run is not None

    def finish(self, summary: Mapping[str, Any], exit_code: int, evals: Table = ()) -> None:
        """Close the run when all is done, with its summary, the evaluations as a table, and artifacts.

        The artifacts are the files of RECORD, and with tracking.wandb.log_model the folder model/.
        """
        if self._run is not None:
            with self._guarded("finish"):
                self._run.summary.update(dict(summary))
                if evals:
                    self._run.log({"evals/table": _table(evals)})
                _log_artifacts(self._run, self._run_dir.resolve(), self._config.log_model == "end")
                self._run.finish(exit_code=exit_code)

    def stop(self, exit_code: int) -> None:
        """Close the run for now: it may go on later under the same id."""
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
            log(f"warning: W&B failed to {verb} ({reason(error)}); the run goes on without it")


def log_job(
    job_type: str, directory: Path, config: WandbConfig, resolved: dict[str, Any], rows: Sequence[Metrics]
) -> None:
    """Leave a small W&B run of work that is done: score, or eval.

    Args:
        job_type: of the run; its metrics are logged as <job_type>/<name>.
        directory: where its files go, below wandb/; made unless W&B is disabled. Its name is the run's.
        config: which run; its name and log_model are not used.
        resolved: the configuration, without secrets.
        rows: metrics, logged as steps 1, 2, ...
    """
    if _requested_mode(config.mode) == "disabled":
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log(f"warning: W&B has no place for its files ({reason(error)}); this work is not logged there")
        return
    named = WandbConfig(mode=config.mode, project=config.project, entity=config.entity, group=config.group)
    sink = WandbSink(directory, named, resolved, job_type=job_type)
    for step, metrics in enumerate(rows, start=1):
        sink.log(job_type, step, metrics)
    sink.finish({}, 0)


def reason(error: Exception) -> str:
    """The type and the first line of an error, for warnings."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _what_it_knows(run_dir: Path, run: "wandb.Run") -> Callable[[str, int], bool]:
    """Whether W&B already has the row of a kind and step: a server says so itself, files are looked into."""
    if not run.offline:
        return lambda kind, step: step < run.starting_step
    known = logged_steps(run_dir, str(run.id))
    return lambda kind, step: (kind, step) in known


def _table(rows: Table) -> "wandb.Table":
    import wandb

    columns: list[str | int] = [*rows[0]]
    return wandb.Table(columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows])


def _log_artifacts(run: "wandb.Run", run_dir: Path, with_model: bool) -> None:
    """Log what is in the run directory by now. W&B reads the files where they are: they must stay until a sync."""
    import wandb

    files = [run_dir / name for name in RECORD if (run_dir / name).exists()]
    if files:
        record = wandb.Artifact(f"record-{run.id}", type="record")
        for file in files:
            record.add_file(str(file), policy="immutable")
        run.log_artifact(record)
    if with_model and (run_dir / "model").is_dir():
        model = wandb.Artifact(f"model-{run.id}", type="model")
        model.add_dir(str(run_dir / "model"), policy="immutable")
        logged = run.log_artifact(model)
        if not run.offline:
            log("uploading the model to W&B")
            logged.wait(timeout=WANDB_UPLOAD_SECONDS)  # or finish would have to, in less time


def _requested_mode(configured: str) -> str:
    """The mode of the config; auto leaves it to WANDB_MODE, which clusters without internet set for everyone."""
    ambient = os.environ.get("WANDB_MODE", "")
    return ambient if configured == "auto" and ambient in ("online", "offline", "disabled") else configured


def _start_wandb(
    run_dir: Path, config: WandbConfig, mode: str, resolved: dict[str, Any], job_type: str, resumed: bool
) -> "wandb.Run":
    """Start or continue the W&B run of run_dir, offline when it cannot be online. Raises whatever wandb raises."""
    os.environ.setdefault("WANDB_SILENT", "true")  # the address of the run is logged below
    # Reports to W&B's makers would hold tracebacks and paths, and an unreachable server makes them hang the exit.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Copies of tables wait here for their upload, by default in the home directory, where wandb sync may not see them.
    os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb"))
    import wandb

    run_id, known = _wandb_run_id(run_dir / "wandb" / "run_id.txt", resumed)
    options: dict[str, Any] = {
        "dir": run_dir,  # wandb adds /wandb
        "id": run_id,
        "resume": "allow" if known else None,
        "project": config.project,
        "entity": config.entity,
        "group": config.group or None,
        "job_type": job_type,
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
    if job_type == "train":
        run.define_metric(STEP)
        for kind in ("train", "eval", "samples"):
            run.define_metric(f"{kind}/*", step_metric=STEP)
    log(f"W&B offline; upload with: wandb sync {Path(run.dir).parent}" if run.offline else f"W&B: {run.url}")
    return run


def _init_wandb(options: dict[str, Any], online: bool) -> "wandb.Run":
    """Call wandb.init; when online fails (a compute node without internet), once more offline."""
    import wandb

    if online:
        try:
            return wandb.init(mode="online", **options)
        except Exception as error:  # as in WandbSink
            log(f"warning: W&B cannot go online ({reason(error)}); it goes offline")
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
