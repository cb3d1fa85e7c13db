"""What a checkpoint consists of: every file with its size and checksum. A damaged one is never taken for whole."""

import contextlib
import glob
import hashlib
import os
import platform
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 1 << 22
PART_SECONDS = 600.0
"""A part of a file that nobody has added to for so long is a killed writer's."""
READERS = 8
"""Files read at once; hashing leaves the interpreter to others."""

Manifest = dict[str, list[int | str]]
"""Path below the checkpoint -> [bytes, SHA-256 in hex]."""


def attempt(action: Callable[[], None]) -> str:
    """Do something with files. Returns what went wrong, or ""; torch reports a lack of memory as a RuntimeError."""
    try:
        action()
    except (OSError, RuntimeError, MemoryError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def write_through(path: Path) -> None:
    """Wait until a file or a directory entry is on the disk, and not in a cache that a power cut empties."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, beside: Path | None = None) -> None:
    """Give path new content so that a crash leaves the old or the new one, never a part. Raises OSError.

    Several processes, also of several hosts, may write the same path: one of them wins, whole.

    beside: the name of the file until it is whole, where the folder's owner looks for such; by default it is
        path's with the writer and .tmp after it.
    """
    # Containers may share a host's name and number their processes alike.
    writer = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
    part = beside or path.with_name(f"{path.name}.{writer}.tmp")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()  # on a full disk a part of it keeps room that others need
        raise
    if beside is None:
        _remove_parts(path)


def _remove_parts(path: Path) -> None:
    """Remove what writers that were killed have left of path. Nobody who still writes pauses for so long."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*-*.tmp"):
        with contextlib.suppress(OSError):  # another one was first
            if time.time() - part.stat().st_mtime > PART_SECONDS:
                part.unlink()


def damage(directory: Path, manifest: Manifest) -> str:
    """What is wrong with the first damaged file, or "" when all are as the manifest says. Sizes come first."""
    for name, (size, _) in manifest.items():
        try:
            present = (directory / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if present != size:
            return f"{name} has {present} bytes instead of {size}"

    def problem(name: str) -> str:
        try:
            same = checksum(directory / name) == manifest[name][1]
        except OSError as error:
            return f"{name}: {error.strerror}"
        return "" if same else f"{name} has changed since it was written (SHA-256)"

    with ThreadPoolExecutor(READERS) as pool:
        return next((found for found in pool.map(problem, manifest) if found), "")


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
