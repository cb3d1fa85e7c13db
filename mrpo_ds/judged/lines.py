"""Lines of JSON that are added to a file one after the other, whole or not at all."""

import os
from pathlib import Path

from mrpo_ds.console import warn


def read_whole(path: Path) -> list[bytes]:
    """The lines of a file. A last one without an end, which a kill leaves, is cut off and said. Raises OSError."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        warn(f"{path} ends in a torn line of {len(data) - whole} bytes, as a kill leaves one; it is dropped")
        os.truncate(path, whole)
    return data[:whole].split(b"\n")[:-1]


def append(descriptor: int, text: str) -> None:
    """Write text at the end of a file that is open for appending, and wait for the disk.

    Raises OSError, and then nothing of it stays: a full disk would keep a part of a line.
    """
    before = os.fstat(descriptor).st_size
    left = memoryview(text.encode())
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
