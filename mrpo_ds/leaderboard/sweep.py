"""A sweep: every model by every task of a suite, on every device, one cell at a time, and the table of it."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mrpo_ds.config.schema import ModelConfig
from mrpo_ds.console import log
from mrpo_ds.errors import ConfigError
from mrpo_ds.leaderboard.candidates import Candidate, check_candidate, find_candidates
from mrpo_ds.leaderboard.cells import Cells, differences, view
from mrpo_ds.leaderboard.cost import expected_cost
from mrpo_ds.leaderboard.environment import OFFLINE, visible_devices
from mrpo_ds.leaderboard.lookup import VERSIONED, data_of, look_up, use_mirror
from mrpo_ds.leaderboard.mirror import Mirror, open_mirror
from mrpo_ds.leaderboard.options import Options
from mrpo_ds.leaderboard.pool import Worker
from mrpo_ds.leaderboard.schedule import Schedule, Unit, share_out
from mrpo_ds.leaderboard.scores import ScoreError
from mrpo_ds.leaderboard.suites import Call, Suite, load_suite
from mrpo_ds.leaderboard.table import Results, as_markdown, collect, write_results
from mrpo_ds.leaderboard.tasks import SEEDS, Resolved, as_record, files_digest
from mrpo_ds.locks import locked, locked_part
from mrpo_ds.manifest import write_atomic

TABLE_SECONDS = 300.0
"""How long to wait for other shards to write the table."""
LOCK_SECONDS = 20.0
"""How long to wait for the workers of a sweep that was killed to notice it."""


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
    """The eval command. Returns 0 when every cell (of the shard) is there, 1 when one is missing.

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
    prefix = "" if options.shard is None else f"shard-{options.shard.replace('/', '-of-')}-"
    # Workers hold the locks too, so none outlives the sweep unseen.
    with (
        locked_part(out, "sweep", options.part, LOCK_SECONDS) as locks,
        tempfile.TemporaryDirectory(prefix="mrpo-ds-eval-") as scratch,
    ):
        workers = [
            Worker(device, out / "logs" / f"{prefix}worker-{number}.log", mirror is not None, locks)
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
    ours = share_out(units, parts)[part]
    todo = _not_done(sweep, ours)
    count = sum(len(unit.columns) for unit in ours)
    there = count - sum(len(unit.columns) for unit in todo)
    log(
        f"{options.suite}: {len(sweep.candidates)} models, {count} cells, {there} of them there already, on "
        f"{', '.join(sweep.devices)}; logs in {sweep.out / 'logs'}"
    )
    failed = Schedule(todo, sweep.cells).run(workers)
    return _report(sweep, ours, _write_table(sweep, units), failed)


def _write_table(sweep: Sweep, units: list[Unit]) -> Results:
    """The table of all cells that are there by now, of other shards too, on the disk and returned."""
    options, out = sweep.options, sweep.out
    wanted = {
        (unit.model.name, column.title): unit.job["head"]["settings"] for unit in units for column in unit.columns
    }
    # Collected under the lock too: of two shards that end at once, the second one's table has the first one's cells.
    with locked(out, "sweep that writes its table", ".lock-table", TABLE_SECONDS):
        results = collect(options.suite, sweep.suite, sweep.candidates, sweep.cells, wanted, sweep.notes, options.limit)
        try:
            write_results(results, out)
            write_atomic(out / "suite.json", (json.dumps(asdict(sweep.suite), indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"--out {str(out)!r} cannot be written: {error.strerror}; the cells are kept.") from error
    return results


def _report(sweep: Sweep, ours: list[Unit], results: Results, failed: dict[str, str]) -> int:
    """Show the table and say what is missing. Returns 1 when a cell of ours is, 0 otherwise."""
    print(as_markdown(results), flush=True)
    names = [name for unit in ours for name in unit.names]
    missing = [name for name in results["missing"] if name in names]
    for name in missing:
        log(f"failed: {name}: {failed.get(name, 'its worker gave no answer')}")
    if missing:
        notes = sweep.out / "failures"
        log(f"{len(missing)} of {len(names)} cells failed ({notes}); the same command tries them again")
    elif results["missing"]:
        log(
            f"shard {sweep.options.shard} is done; {len(results['missing'])} cells of others are missing so far. Each "
            "shard writes the table when it ends, and so does the command without --shard"
        )
    return 1 if missing else 0


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
