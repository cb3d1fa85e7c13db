"""mrpo-ds store ls | verify | prune: look after the files of a reference store, also while runs use it."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrpo_ds.errors import ConfigError
from mrpo_ds.reference.shards import DamagedShard, UnreadableShard, abandoned, merge_shards, read_shard, shards_of
from mrpo_ds.reference.store import ABOUT, folder_of

SHARD_ROWS = 1 << 20
"""prune merges shards into ones of about so many rows."""


def run_action(action: str, root: Path) -> int:
    """Do one of the store's commands on stdout. Returns the exit code. Raises ConfigError when there is no store."""
    try:
        folders = sorted(path.parent for path in root.glob(f"*/{ABOUT}"))
    except OSError as error:
        raise ConfigError(f"the reference store {str(root)!r} cannot be read ({error.strerror}).") from error
    if not folders:
        raise ConfigError(f"{str(root)!r} is no reference store; allowed: a directory that `mrpo-ds score` has filled.")
    actions: dict[str, Callable[[Path], bool]] = {"ls": _list, "verify": _verify, "prune": _prune}
    return 0 if all([actions[action](folder) for folder in folders]) else 1


def _list(folder: Path) -> bool:
    about = _about(folder)
    first = about.get("first", {})
    shards = shards_of(folder)
    size = sum(_bytes_of(path) for path in shards)
    print(f"{folder}\n    {first.get('path')} {first.get('revision')} in {about.get('dtype')}, {about.get('weights')}")
    print(f"    {_rows(folder)} responses in {len(shards)} shards, {size / 2**20:.1f} MiB; since {first.get('when')}")
    return True


def _verify(folder: Path) -> bool:
    wrong = []
    about = _about(folder)
    identity = {name: value for name, value in about.items() if name in ("weights", "dtype")}
    if folder_of(folder.parent, identity) != folder:
        wrong.append(f"{folder / ABOUT} does not describe this folder")
    for path in shards_of(folder):
        try:
            read_shard(path)
        except DamagedShard as error:
            wrong.append(str(error))
        except FileNotFoundError:  # merged by another process
            continue
    for line in wrong:
        print(line)
    print(f"{folder}: {'damaged' if wrong else 'whole'}")
    return not wrong


def _prune(folder: Path) -> bool:
    """Remove abandoned and damaged files, and merge small shards; a merged one is there before its parts go."""
    gone = abandoned(folder)
    parts: list[tuple[Path, int]] = []
    for path in shards_of(folder):
        try:
            rows = len(read_shard(path))
        except UnreadableShard as error:  # it may be whole: it stays
            print(error)
        except DamagedShard:
            gone.append(path)
        except FileNotFoundError:
            continue
        else:
            if rows < SHARD_ROWS:
                parts.append((path, rows))
    for path in gone:  # before anything is merged: the result may have the name of a damaged one
        path.unlink(missing_ok=True)
    merged = 0
    while len(parts) > 1:
        group: list[tuple[Path, int]] = []
        while parts and sum(rows for _, rows in group) < SHARD_ROWS:
            group.append(parts.pop(0))
        with contextlib.suppress(FileNotFoundError):  # another process merges them
            merge_shards(folder, [path for path, _ in group])
            merged += len(group)
    print(f"{folder}: removed {len(gone) + merged} files, {merged} shards merged, {_rows(folder)} responses")
    return True


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # merged by another process
        return 0


def _rows(folder: Path) -> int:
    """Responses of the whole shards, those counted twice that two runs have scored at the same time."""
    count = 0
    for path in shards_of(folder):
        with contextlib.suppress(DamagedShard, FileNotFoundError):
            count += len(read_shard(path))
    return count


def _about(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
