"""One writer of a folder at a time."""

import fcntl
import os
import time
from collections.abc import Iterator
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"--out is {str(out)!r}, and cannot be written: {error.strerror}.") from error
    try:
        take(descriptor, out, f"another {who} works in", patience)
        yield descriptor
    finally:
        os.close(descriptor)


def take(descriptor: int, path: Path, held: str, patience: float = 0.0) -> None:
    """Lock an open file until it is closed.

    Args:
        descriptor: the file.
        path: what the message names: the file, or the folder that it stands for.
        held: what another holder does, before the path in the message.
        patience: seconds to wait for another holder.

    Raises ConfigError when somebody else holds the lock or the file system has none.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise ConfigError(f"{held} {str(path)!r}; wait for it, or use another --out.") from error
        except OSError as error:  # Lustre without the mount option flock, NFS without its lock service
            raise ConfigError(
                f"{str(path)!r} cannot be locked: {error.strerror}; allowed for --out: a folder on a file system with "
                "file locks (flock), such as a disk of this machine."
            ) from error
        time.sleep(LOOK_SECONDS)
