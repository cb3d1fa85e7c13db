"""Lines of JSON that are added to a file one after the other, whole or not at all."""

import os


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
