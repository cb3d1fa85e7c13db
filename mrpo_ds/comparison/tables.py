"""Tables as markdown, CSV, JSON and LaTeX, from one description of what stands in them."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError
from mrpo_ds.manifest import write_atomic


@dataclass(frozen=True)
class Number:
    """A number and what is known of its spread. CSV and JSON hold both in full."""

    value: float | None
    """None where there is none."""
    spread: float | None = None
    """What stands behind +-; the column says what it is."""
    mark: str = ""
    """best (bold) | second (italic) | ''."""


Cell = str | Number


@dataclass(frozen=True)
class Column:
    """The heading of a column and how its numbers are written for people."""

    name: str
    spread: str = ""
    """What the spread is, for machines: 'std', 'stderr'. '' for a column without one."""
    digits: int = 3
    percent: bool = False
    """Shown times 100, as papers do."""
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str
    """Of its files."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=list)
    """What a reader must know to read it, a sentence each."""


def write_tables(tables: Sequence[Table], directory: Path) -> list[Path]:
    """Write every table in all four formats, each file whole or not at all. Raises ConfigError when that fails."""
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for table in tables:
            for suffix, render in FORMATS.items():
                path = directory / f"{table.name}.{suffix}"
                write_atomic(path, render(table).encode())
                written.append(path)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror or error}; make room or choose another "
            "place with --out."
        ) from error
    return written


def to_markdown(table: Table) -> str:
    """A GitHub table, its columns aligned for readers of the plain text, then the notes."""
    lines = [[_heading(column) for column in table.columns]]
    lines += [[_markdown(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(table.columns))]
    text = [_markdown_line(line, widths) for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    notes = "".join(f"\n{note}\n" for note in table.notes)
    return f"### {table.title}\n\n" + "\n".join(text) + "\n" + notes


def to_csv(table: Table) -> str:
    """Numbers in full, unscaled; a column with a spread becomes two."""
    names: list[str] = []
    for column in table.columns:
        names += [column.name, f"{column.name} {column.spread}"] if column.spread else [column.name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        line: list[str] = []
        for cell, column in zip(row, table.columns, strict=True):
            line.append(cell if isinstance(cell, str) else _exact(cell.value))
            if column.spread:
                line.append("" if isinstance(cell, str) else _exact(cell.spread))
        writer.writerow(line)
    return out.getvalue()


def to_json(table: Table) -> str:
    """The same numbers as objects; what is not finite is null."""
    return json.dumps(as_plain(table), indent=2, allow_nan=False) + "\n"


def as_plain(table: Table) -> dict[str, Any]:
    """The table as plain values: title, notes, and a mapping per row."""
    rows = []
    for row in table.rows:
        values: dict[str, Any] = {}
        for cell, column in zip(row, table.columns, strict=True):
            values[column.name] = cell if isinstance(cell, str) else _finite(cell.value)
            if column.spread:
                values[f"{column.name} {column.spread}"] = None if isinstance(cell, str) else _finite(cell.spread)
        rows.append(values)
    return {"title": table.title, "notes": list(table.notes), "rows": rows}


def to_latex(table: Table) -> str:
    r"""A booktabs table (\usepackage{booktabs}); bold is best, italic second."""
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escape(table.title)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(_escape(_heading(column)) for column in table.columns) + r" \\",
        r"    \midrule",
    ]
    for row in table.rows:
        cells = [_latex(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        lines.append("    " + " & ".join(cells) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {note}" for note in table.notes)]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json, "tex": to_latex}


def _heading(column: Column) -> str:
    return f"{column.name} (x100)" if column.percent else column.name


def _text(cell: Number, column: Column, between: str) -> str:
    """A number for people; '-' for none."""
    if cell.value is None or math.isnan(cell.value):
        return "-"
    scale = 100 if column.percent else 1
    sign = "+" if column.signed else ""
    text = f"{scale * cell.value:{sign}.{column.digits}f}"
    return text if cell.spread is None else f"{text}{between}{scale * cell.spread:.{column.digits}f}"


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join([first, *others]) + " |"


def _markdown(cell: Cell, column: Column) -> str:
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    fence = {"best": "**", "second": "*"}.get(cell.mark, "")
    return f"{fence}{_text(cell, column, ' +- ')}{fence}"


def _latex(cell: Cell, column: Column) -> str:
    if isinstance(cell, str):
        return _escape(cell)
    if cell.value is None or math.isnan(cell.value):
        return "--"
    text = _text(cell, column, r" \pm ").replace("inf", r"\infty")
    return {"best": rf"$\mathbf{{{text}}}$", "second": rf"$\mathit{{{text}}}$"}.get(cell.mark, f"${text}$")


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(char, rf"\{char}" if char in "&%$#_{}" else char) for char in text)


def _exact(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
