"""What a data set's card says: which files make a configuration's splits."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
DATA_FILES = (
    "*.parquet",
    "*.arrow",
    "*.json",
    "*.jsonl",
    "*.csv",
    "*.json.gz",
    "*.jsonl.gz",
    "*.jsonl.zst",
    "*.csv.gz",
)
"""What the data sets library reads without running code."""


def read_configs(folder: Path) -> dict[str | None, dict[str, Any]]:
    """The entries of `configs:` in a card, in order, by their names; none where there is no card or no entry."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    return {entry.get("config_name"): entry for entry in (yaml.safe_load(head) or {}).get("configs") or []}


def default_of(configs: dict[str | None, dict[str, Any]]) -> str | None:
    """The configuration that is meant where none is named. There must be one."""
    return next((name for name, entry in configs.items() if entry.get("default")), next(iter(configs)))


def patterns_of(folder: Path, names: Iterable[str | None]) -> list[str]:
    """The files of these configurations by the card in the folder; None names the default one.

    All data files where the card does not know them.
    """
    configs, wanted = read_configs(folder), list(names)
    if not configs or any(name is not None and name not in configs for name in wanted):
        return list(DATA_FILES)
    chosen = dict.fromkeys(default_of(configs) if name is None else name for name in wanted)
    return [pattern for name in chosen for pattern in _patterns(configs[name])] or list(DATA_FILES)


def _patterns(config: dict[str, Any]) -> Iterable[str]:
    """Of a configuration's data_files: a path, a list of them, a mapping of splits, or a list of such."""
    prefix = f"{config['data_dir']}/" if config.get("data_dir") else ""
    files = config.get("data_files")
    if files is None:
        yield from (f"{prefix}{pattern}" for pattern in DATA_FILES)
        return
    for entry in files if isinstance(files, list) else [files]:
        paths = entry.get("path", list(entry.values())) if isinstance(entry, dict) else entry
        for path in paths if isinstance(paths, list) else [paths]:
            yield f"{prefix}{path}"
