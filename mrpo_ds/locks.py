"""One writer of a folder or a file at a time, or several that have shared a folder out among themselves."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrpo_ds.errors import ConfigError

LOOK_SECONDS = 0.2


@contextmanager
def locked(out: Path, who: str, name: str = ".lock", patience: float = 0.0) -> Iterator[int]:
    """Be the only one who works in --out. Yields the lock's descriptor: a process that inherits it holds it too.

    Args:
        out: the folder, made where it is not there.
        who: what another holder is called in the message.
        name: of the file that is locked.
        patience: seconds to wait for another holder.

    Raises ConfigError when the folder cannot be written or somebody else holds the lock.
    """

    def problem(descriptor: int) -> str:
        free = _try(descriptor, out, fcntl.LOCK_EX)
        return "" if free else f"another {who} works in {str(out)!r}; wait for it, or use another --out."

    with _held(out, name, problem, patience) as descriptor:
        yield descriptor


@contextmanager
def locked_part(out: Path, who: str, part: tuple[int, int], patience: float = 0.0) -> Iterator[tuple[int, ...]]:
    """Be the only one who works at a part of --out. Yields the locks' descriptors, as locked does.

    Parts of the same count work side by side. Those of another count, whose cuts lie elsewhere, and who works at the
    whole keep each other out, and so do two with the same part.

    Args:
        out: as for locked.
        who: what another holder is called in the message.
        part: (I, N), of which (0, 1) is the whole.
        patience: seconds to wait for another holder.

    Raises ConfigError when the folder cannot be written or somebody else is in the way.
    """
    number, count = part
    if count == 1:
        with locked(out, who, patience=patience) as whole:
            yield (whole,)
        return

    def problem(descriptor: int) -> str:
        # Who has it alone writes the count, and then shares it. Whoever shares it and reads the own count is in: to
        # write another one takes having it alone.
        if _try(descriptor, out, fcntl.LOCK_EX):
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(count).encode(), 0)
            except OSError as error:
                raise _cannot_write(out, error) from error
        if not _try(descriptor, out, fcntl.LOCK_SH):
            return f"a {who} without --shard works in {str(out)!r}; wait for it, or use another --out."
        found = os.pread(descriptor, 20, 0).decode()
        if found == str(count):
            return ""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return (
            f"a {who} in {found} shards works in {str(out)!r}, and one in {count} would do the same work again; "
            f"use --shard I/{found}, wait for it, or use another --out."
        )

    with (
        locked(out, f"{who} of shard {number}/{count}", f".lock-{number}-of-{count}", patience) as own,
        _held(out, ".lock", problem, patience) as common,
    ):
        yield own, common


@contextmanager
def _held(out: Path, name: str, problem: Callable[[int], str], patience: float) -> Iterator[int]:
    """Open a file and lock it. problem: tries once, and says what is in the way, or ""."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        deadline = time.monotonic() + patience
        while told := problem(descriptor):
            if time.monotonic() >= deadline:
                raise ConfigError(told)
            time.sleep(LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def take(descriptor: int, path: Path, held: str) -> None:
    """Lock an open file until it is closed.

    Args:
        descriptor: the file.
        path: its name, for messages.
        held: what another holder does, before the path in the message.

    Raises ConfigError when somebody else holds the lock or the file system has none.
    """
    if not _try(descriptor, path, fcntl.LOCK_EX):
        raise ConfigError(f"{held} {str(path)!r}; wait for it, or use another --out.")


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out is {str(out)!r}, and cannot be written: {error.strerror}.")


def _try(descriptor: int, path: Path, how: int) -> bool:
    """Lock or convert a lock, without waiting. False where others do not let us; then we may hold nothing."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:  # Lustre without the mount option flock, NFS without its lock service
        raise ConfigError(
            f"{str(path)!r} cannot be locked: {error.strerror}; allowed for --out: a folder on a file system with "
            "file locks (flock), such as a disk of this machine."
        ) from error
