"""A sweep: every model by every task of a suite, on every device, one cell at a time, and the table of it."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError, read_shard, require, require_choice
from mrpo_ds.leaderboard.candidates import Candidate, check_candidate, find_candidates
from mrpo_ds.leaderboard.cells import Cells, differences, view
from mrpo_ds.leaderboard.cost import expected_cost
from mrpo_ds.leaderboard.environment import OFFLINE, visible_devices
from mrpo_ds.leaderboard.lookup import VERSIONED, data_of, look_up, use_mirror
from mrpo_ds.leaderboard.mirror import Mirror, open_mirror
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.schedule import Schedule, Unit
from mrpo_ds.leaderboard.scores import ScoreError
from mrpo_ds.leaderboard.suites import Call, Suite, load_suite
from mrpo_ds.leaderboard.table import as_markdown, collect, write_results
from mrpo_ds.leaderboard.tasks import SEEDS, Resolved, as_record, files_digest
from mrpo_ds.locks import locked
from mrpo_ds.manifest import write_atomic

LOCK_SECONDS = 20.0
"""How long to wait for the workers of a sweep that was killed to notice it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    models: Sequence[str]
    """PATH or NAME=PATH each."""
    suite: str
    out: str | None = None
    offline: str | None = None
    limit: int | None = None
    batch_size: int = 16
    devices: str | None = None
    dtype: str = "checkpoint"
    chat_template: bool | None = None
    """None: what the suite says."""
    shard: str | None = None
    """I/N: only every N-th cell, from the I-th on."""
    redo: bool = False

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, ">= 1 document")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, ">= 1 request")
        require_choice("--dtype", self.dtype, ("checkpoint", "bf16", "fp32"))
        _ = self.part  # a wrong shard is refused now

    @property
    def part(self) -> tuple[int, int]:
        """(I, N) of shard; all is one part. Raises ConfigError for a shard that is none."""
        return (0, 1) if self.shard is None else read_shard(self.shard)


@dataclass(frozen=True)
class Sweep:
    """What a sweep works with."""

    options: Options
    suite: Suite
    candidates: list[Candidate]
    out: Path
    devices: list[str]
    mirror: Mirror | None

    @property
    def cells(self) -> Cells:
        """The cells of its folder."""
        return Cells(self.out)

    @property
    def notes(self) -> list[str]:
        """What must be said beside the figures."""
        limit = self.options.limit
        notes = [f"at most {limit} documents of each task: not the figures of the benchmarks"] if limit else []
        return notes + (self.mirror.notes if self.mirror else [])


def run_sweep(options: Options) -> int:
    """The eval command. Returns 0 when every cell is there, 1 when some failed.

    Raises ConfigError or DataError for the user's mistakes, Stopped when it is told to stop.
    """
    suite = load_suite(options.suite)
    candidates = find_candidates(options.models)
    mirror = None if options.offline is None else open_mirror(options.offline)
    if mirror is not None:
        os.environ.update(OFFLINE)  # for what this process looks at: models by their Hub ids
    for candidate in candidates:
        check_candidate(candidate)
    out = Path(options.out or Path("runs") / "eval" / Path(options.suite).stem)
    sweep = Sweep(options, suite, candidates, out, visible_devices(options.devices), mirror)
    lock_name = ".lock" if options.shard is None else f".lock-{options.shard.replace('/', '-of-')}"
    # Workers hold the lock too, so none outlives the sweep unseen.
    with (
        locked(out, "sweep", lock_name, LOCK_SECONDS) as lock,
        tempfile.TemporaryDirectory(prefix="mrpo-ds-eval-") as scratch,
    ):
        workers = [
            Worker(device, out / "logs" / f"worker-{number}.log", mirror is not None, lock)
            for number, device in enumerate(sweep.devices)
        ]
        try:
            return _run(sweep, workers, Path(scratch))
        finally:
            for worker in workers:
                worker.close()


def _run(sweep: Sweep, workers: list[Worker], scratch: Path) -> int:
    options = sweep.options
    resolved = look_up(options.suite, sweep.suite, workers[0])
    overrides = None
    if sweep.mirror is not None:
        overrides = scratch / "tasks"
        use_mirror(sweep.mirror, resolved, overrides)
    units = _units(sweep, resolved, overrides)
    part, parts = options.part
    todo = [unit for unit in _not_done(sweep, units) if unit in units[part::parts]]
    ours = sum(len(unit.columns) for unit in units[part::parts])
    there = ours - sum(len(unit.columns) for unit in todo)
    log(
        f"{options.suite}: {len(sweep.candidates)} models, {ours} cells, {there} of them there already, on "
        f"{', '.join(sweep.devices)}; logs in {sweep.out / 'logs'}"
    )
    failed = Schedule(todo, sweep.cells).run(workers)
    results = collect(options.suite, sweep.suite, sweep.candidates, sweep.cells, sweep.notes, options.limit)
    if parts > 1 and results["missing"] and not failed:
        log(f"shard {options.shard} is done; the table comes with the last one, or by the command without --shard")
        return 0
    try:
        write_results(results, sweep.out)
        write_atomic(sweep.out / "suite.json", (json.dumps(asdict(sweep.suite), indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"--out {str(sweep.out)!r} cannot be written: {error.strerror}; the cells are kept."
        ) from error
    print(as_markdown(results), flush=True)
    for name, message in failed.items():
        log(f"failed: {name}: {message}")
    if failed:
        log(f"{len(failed)} of {ours} cells failed ({sweep.out / 'failures'}); the same command tries them again")
    return 1 if failed else 0


def _units(sweep: Sweep, resolved: dict[str, Resolved], overrides: Path | None) -> list[Unit]:
    """Every call of the sweep, model by model."""
    from mrpo_ds.models import generation_digest, tokenizer_fingerprint, weights_digest

    units = []
    for candidate in sweep.candidates:
        config = ModelConfig(path=candidate.path)
        identity = {
            "model_hash": weights_digest(config),
            "generation_config": generation_digest(config),
            "tokenizer": tokenizer_fingerprint(config),
        }
        for call, columns in sweep.suite.calls().items():
            one = resolved[call.task]
            settings = identity | _settings(sweep, call, one)
            options = sweep.options
            head = {
                "model": candidate.name,
                "model_path": candidate.path,
                "shots": call.shots,
                "limit": options.limit,
                "versions": {name: settings[name] for name in VERSIONED},
                "settings": settings,
            }
            job = {
                "kind": "evaluate",
                "head": head,
                "resolved": as_record(one),
                "overrides": None if overrides is None else str(overrides),
                "columns": [asdict(column) for column in columns],
                "out": str(sweep.out),
                "shots": call.shots,
                "max_new_tokens": call.max_new_tokens,
                **{key: settings[key] for key in ("limit", "batch_size", "dtype", "chat_template")},
            }
            cost = expected_cost(call.task, len(one.leaves), call.shots or 0, options.limit, call.max_new_tokens)
            units.append(Unit(candidate, columns, job, cost))
    return units


def _settings(sweep: Sweep, call: Call, resolved: Resolved) -> dict[str, Any]:
    """All that a call's result depends on besides the model, but for the GPU's make."""
    options, suite = sweep.options, sweep.suite
    data = "the Hub" if sweep.mirror is None else sweep.mirror.digest(data_of({"": resolved}))
    return {
        "lm_eval_task": call.task,
        "shots": call.shots,
        "max_new_tokens": call.max_new_tokens,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "chat_template": suite.chat_template if options.chat_template is None else options.chat_template,
        "device": sweep.devices[0].partition(":")[0],
        "seeds": SEEDS,
        "data": data,
        "own_tasks": files_digest(suite.task_dir),
        **{name: version(name) for name in VERSIONED},
    }


def _not_done(sweep: Sweep, units: list[Unit]) -> list[Unit]:
    """The calls of which a cell is missing. Columns that another metric or filter makes of one that is there are made.

    Raises ConfigError for a cell of other settings, unless they shall be redone.
    """
    todo, other = [], []
    for unit in units:
        found = None
        for column in unit.columns:
            cell = sweep.cells.read(unit.model.name, column.title)
            if cell is None:
                continue
            if changed := differences(cell, unit.job["head"]["settings"]):
                other.append(f"{unit.model.name}/{column.title}: {'; '.join(changed[:3])}")
            else:
                found = cell
        if found is None or not _made_of(sweep, unit, found):
            todo.append(unit)
    if other and not sweep.options.redo:
        raise ConfigError(
            f"{len(other)} cells in {str(sweep.out)!r} were computed otherwise ({other[0]}). A table must not mix "
            "them: use another --out, or --redo to compute these anew."
        )
    return todo


def _made_of(sweep: Sweep, unit: Unit, cell: dict[str, Any]) -> bool:
    """Write the columns of a call that are missing, or differ, from a cell of it. False if that cannot be done."""
    for column in unit.columns:
        try:
            wanted = view({**cell, "model_path": unit.model.path}, column)
        except ScoreError:
            return False
        if wanted != sweep.cells.read(unit.model.name, column.title):
            try:
                sweep.cells.write(wanted, unit.model.name, column.title)
            except OSError as error:
                raise ConfigError(f"--out {str(sweep.out)!r} cannot be written: {error.strerror}.") from error
    return True
