"""Names of models and of columns; of models on the command line as NAME=PATH, or a PATH that names itself.

A name stands in tables and is a folder's. Directories may have others: those of a sweep of runs have '=' and ','.
"""

import re
from pathlib import Path

from mrpo_ds.errors import require

NAME_CHARACTERS = "letters, digits, '-', '_' and '.', which is not the first"


def is_name(name: str) -> bool:
    """Whether it can stand in a table and be a file's name: NAME_CHARACTERS."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) is not None


def split_named(text: str) -> tuple[str, str]:
    """NAME=PATH -> (name, path); PATH -> ("", path), also one with a '=' in it that is there."""
    name, separator, path = text.partition("=")
    return (name, path) if separator and not Path(text).exists() else ("", text)


def own_name(path: str) -> str:
    """The name that a path gives: its last part, of a run's model/ the run's. What a name may not have becomes '_'."""
    parts = Path(path).resolve().parts if Path(path).is_dir() else Path(path).parts
    last = parts[-2] if parts[-1:] == ("model",) and len(parts) > 1 else "".join(parts[-1:])
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", last)


def check_name(name: str, path: str, option: str) -> None:
    """Raise ConfigError unless name can be a model's. option: how the user gives another one, such as NAME=PATH."""
    missing = f" There is no path {f'{name}={path}'!r}." if "/" in name else ""
    require(is_name(name), "the name of a model", name, NAME_CHARACTERS, f"Give it another one: {option}.{missing}")
