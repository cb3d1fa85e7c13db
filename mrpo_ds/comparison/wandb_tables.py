"""The tables of a comparison as a Weights & Biases run of their own. A failure is a warning: the files are there."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo_ds.comparison.tables import Table, as_plain
from mrpo_ds.console import log, warn

START_SECONDS = 20.0
FINISH_SECONDS = 30.0
JOB_TYPE = "comparison"


def log_tables(tables: Sequence[Table], config: Mapping[str, Any], out: Path) -> None:
    """Log every table as wandb.Table, if the baseline run tracked with W&B and WANDB_MODE does not say disabled.

    Args:
        tables: what compare made.
        config: of the baseline run: its project, entity and group are used.
        out: where an offline run is kept, in wandb/.
    """
    settings = config.get("tracking", {}).get("wandb", {})
    mode = str(settings.get("mode", "disabled"))
    ambient = os.environ.get("WANDB_MODE", "")
    if mode == "disabled" or ambient == "disabled":
        return
    # Without a key in the environment it must not stop to ask for one.
    online = mode != "offline" and ambient != "offline" and bool(os.environ.get("WANDB_API_KEY"))
    try:
        _log(tables, settings, out, "online" if online else "offline")
    except Exception as error:  # any type: wandb's service, disk and network each throw their own
        reason = str(error).splitlines()
        warn(f"warning: W&B has no tables ({type(error).__name__}: {reason[0] if reason else ''}); they are in {out}")


def _log(tables: Sequence[Table], settings: Mapping[str, Any], out: Path, mode: str) -> None:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send tracebacks and paths
    import wandb

    run = wandb.init(
        mode="online" if mode == "online" else "offline",
        project=settings.get("project"),
        entity=settings.get("entity"),
        group=settings.get("group"),
        name=out.resolve().name,
        job_type=JOB_TYPE,
        dir=out,
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            init_timeout=START_SECONDS,
            login_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )
    for table in tables:
        rows = as_plain(table)["rows"]
        names = list(rows[0]) if rows else [column.name for column in table.columns]
        run.log({table.name: wandb.Table(columns=names, data=[[row[name] for name in names] for row in rows])})
    run.finish()
    log(f"W&B: tables of the comparison, {run.url}" if mode == "online" else f"W&B offline: wandb sync {out}/wandb")
