"""A rank of a run whose address space cannot grow much more once the dry run begins: its allocations then truly fail.

`python -m tests.short_of_memory ...` is `mrpo-ds ...` with that.
"""

import os
import resource
import sys

import psutil

VARIABLE = "MRPO_DS_TEST_MEMORY"
"""How many MiB more the process may take from the dry run on; empty for no limit."""


def arm() -> None:
    """Prepare this process. Called before the command's main()."""
    from mrpo_ds.distributed.heartbeat import Heartbeat

    begin = Heartbeat.phase

    def phase(self: Heartbeat, name: str, step: int = 0) -> None:
        begin(self, name, step)
        if name == "preflight dry run" and os.environ.get(VARIABLE):
            most = psutil.Process().memory_info().vms + int(os.environ[VARIABLE]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))

    Heartbeat.phase = phase  # type: ignore[method-assign]


if __name__ == "__main__":
    arm()
    from mrpo_ds.cli import main

    sys.exit(main())
