"""mrpo-ds compare: read the runs, refuse what cannot stand in one table, write tables and plots."""

from collections.abc import Sequence
from pathlib import Path

from mrpo_ds.comparison.benchmarks import field_of, tables_of
from mrpo_ds.comparison.held_out import held_out_table
from mrpo_ds.comparison.methods import Method, check_held_out_rows, method_with, methods_of, settings_table
from mrpo_ds.comparison.pictures import draw_bars, draw_curves
from mrpo_ds.comparison.runs import read_runs
from mrpo_ds.comparison.scores import KINDS
from mrpo_ds.comparison.tables import Column, Table, to_markdown, write_tables
from mrpo_ds.comparison.wandb_tables import log_tables
from mrpo_ds.console import log, warn
from mrpo_ds.errors import ConfigError
from mrpo_ds.manifest import write_atomic

PAGE = "comparison.md"


def compare(
    directories: Sequence[str], out: Path, baseline: str | None = None, results: Sequence[str] = ()
) -> list[Table]:
    """Compare runs: print the tables, and write them and the plots to a directory.

    Args:
        directories: run directories.
        out: where files go; files of an earlier comparison with the same names are replaced.
        baseline: the run directory whose method the others are compared with; None for the first.
        results: see read_runs.

    Returns:
        The tables.

    Raises:
        ConfigError: a directory is no run, runs do not fit together, or out cannot be written.
        DataError: a file of a run is damaged.
    """
    runs = read_runs(directories, results)
    check_held_out_rows(runs)
    methods = methods_of(runs)
    chosen = method_with(methods, baseline)
    found = [_runs_table(methods), settings_table(methods), held_out_table(methods, chosen)]
    tables = [table for table in found if table is not None]
    fields = [field for field in (field_of(methods, chosen, kind) for kind in KINDS) if field is not None]
    for field in fields:
        tables += tables_of(field)
    pages = [to_markdown(table) for table in tables]
    write_tables(tables, out)
    try:
        pictures = draw_curves(methods, out / "plots")
        for field in fields:
            pictures += draw_bars(field, out / "plots")
        links = [f"![{path.stem}](plots/{path.name})\n" for path in pictures]
        write_atomic(out / PAGE, "\n".join([*pages, *links]).encode())
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror or error}; make room, or choose another."
        ) from error
    print("\n".join(pages), flush=True)
    log(f"comparison: {PAGE}, {len(tables)} tables (md, csv, json, tex) and {len(pictures)} plots in {out}")
    for run in runs:
        if run.strangers:
            names = ", ".join(run.strangers)
            warn(f"among the results of {run.directory} are some of other models, which are not shown: {names}")
    log_tables(tables, chosen.runs[0].config, out)
    return tables


def _runs_table(methods: Sequence[Method]) -> Table:
    columns = [Column("run"), Column("method"), Column("seed"), Column("finished")]
    rows = [
        [str(run.directory), method.label, str(run.seed), "yes" if run.summary else f"no, step {run.last_step}"]
        for method in methods
        for run in method.runs
    ]
    return Table("runs", "Runs", columns, rows)
