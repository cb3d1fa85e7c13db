"""One table in four formats: what people read is rounded, what machines read is not."""

import csv
import io
import json
from pathlib import Path

import pytest

from mrpo_ds.comparison.tables import Column, Number, Table, to_csv, to_json, to_latex, to_markdown, write_tables
from mrpo_ds.errors import ConfigError

TABLE = Table(
    "results",
    "Results of 50% & more",
    [Column("method"), Column("accuracy", "std", 1, percent=True), Column("d", digits=2, signed=True)],
    [
        ["dpo_a", Number(0.93912, 0.014), Number(None)],
        ["mrpo", Number(0.97234, 0.017, "best"), Number(2.119)],
        ["flat|one", Number(1 / 3, None, "second"), Number(float("inf"))],
    ],
    ["A note."],
)


def test_markdown_is_rounded_scaled_and_marked() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[0] == "### Results of 50% & more"
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[2], *lines[4:7])]
    assert cells[0] == ["method", "accuracy (x100)", "d"]
    assert cells[1] == ["dpo_a", "93.9 +- 1.4", "-"]
    assert cells[2] == ["mrpo", "**97.2 +- 1.7**", "+2.12"]
    assert cells[3] == ["flat\\|one", "*33.3*", "+inf"]
    assert len({len(line) for line in lines[2:7]}) == 1 and lines[-1] == "A note."


def test_csv_has_every_digit_and_a_column_for_the_spread() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert list(rows[0]) == ["method", "accuracy", "accuracy std", "d"]
    assert float(rows[2]["accuracy"]) == 1 / 3 and rows[2]["accuracy std"] == "" and rows[0]["d"] == ""
    assert float(rows[1]["accuracy std"]) == 0.017


def test_json_says_null_for_what_is_not_finite() -> None:
    plain = json.loads(to_json(TABLE))
    assert plain["rows"][1] == {"method": "mrpo", "accuracy": 0.97234, "accuracy std": 0.017, "d": 2.119}
    assert plain["rows"][2]["d"] is None and plain["notes"] == ["A note."]


def test_latex_escapes_and_marks() -> None:
    text = to_latex(TABLE)
    assert r"\caption{Results of 50\% \& more}" in text
    assert r"dpo\_a & $93.9 \pm 1.4$ & -- \\" in text
    assert r"mrpo & $\mathbf{97.2 \pm 1.7}$ & $+2.12$ \\" in text
    assert r"$\mathit{33.3}$ & $+\infty$ \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_files_are_written_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert [path.name for path in write_tables([TABLE], tmp_path / "out")] == [
        f"results.{suffix}" for suffix in ("md", "csv", "json", "tex")
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: .*--out"):
        write_tables([TABLE], tmp_path / "file" / "out")
