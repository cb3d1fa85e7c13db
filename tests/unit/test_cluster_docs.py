"""docs/cluster.md quotes what the code really says, and its commands and settings exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mrpo_ds.cli import _parser
from mrpo_ds.config.schema import Config
from tests.support import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
INLINE = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
GAP = "\0"
"""In a literal: a place that the code fills."""
WRITTEN_ELSEWHERE = {"OutOfMemoryError"}
"""What torch says."""


def symptoms() -> list[list[str]]:
    """The rows of the table, as cells."""
    lines = PAGE.partition("## Symptoms")[2].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def literals() -> Iterator[str]:
    """Every string of the package that is no docstring; f-strings have gaps."""
    for file in sorted((ROOT / "mrpo_ds").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) not in docstrings and isinstance(node, ast.Constant | ast.JoinedStr):
                yield text_of(node)


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


SAID = list(literals())
QUOTES = [(row[0], quote) for row in symptoms() for quote in spans(row[1]) if quote not in WRITTEN_ELSEWHERE]
TYPED = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted(
    {one[one.index("mrpo-ds ") :] for one in (*spans(INLINE), *TYPED) if re.match(r"\S*mrpo-ds \S+ \S", one)}
)
SECTIONS = {one.name for one in fields(Config)}
KEYS = sorted({key for one in spans(INLINE) for key in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", one)})
KEYS = [key for key in KEYS if key.partition(".")[0] in SECTIONS]


def test_the_table_covers_what_it_should() -> None:
    names = " / ".join(row[0] for row in symptoms())
    for symptom in (
        *("hang", "NCCL timeout", "OOM on a GPU", "OOM on the host", "wrong rank count", "port in use", "token"),
        *("disk full", "wrong GPU", "slow first step", "W&B offline", "requeue loop"),
    ):
        assert symptom in names
    assert all(len(row) == 4 and row[3] for row in symptoms())
    assert len(QUOTES) > 20 and len(COMMANDS) > 3 and len(KEYS) > 8


@pytest.mark.parametrize(("symptom", "quote"), QUOTES, ids=[quote[:40] for _, quote in QUOTES])
def test_every_quoted_message_is_one_of_the_code(symptom: str, quote: str) -> None:
    pattern = re.compile(GAP.join(re.escape(part) for part in quote.strip("…").split("…")))
    assert any(pattern.search(text) for text in SAID), f"{symptom}: nothing in mrpo_ds says {quote!r}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_ours_is_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    options = _parser().parse_args(words)
    assert options.run


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_exists(key: str) -> None:
    kind: Any = Config
    for name in key.split("."):
        kinds = [one for one in (kind, *get_args(kind)) if is_dataclass(one)]
        assert kinds, key
        hints = get_type_hints(kinds[0])
        assert name in hints, f"{key}: {kinds[0].__name__} has {sorted(hints)}"
        kind = hints[name]


def test_every_page_that_is_linked_is_there() -> None:
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", PAGE)}
    assert [name for name in linked if name and not (ROOT / "docs" / name).exists()] == []


def test_the_rows_read_as_they_are_meant() -> None:
    """A | inside of a cell must be escaped, or the table breaks."""
    assert {len(row) for row in symptoms()} == {4}
    assert Path(ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").count("SIGUSR2") >= 1
