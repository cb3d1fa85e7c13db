"""A rank of a run whose address space cannot grow much more once the dry run begins: its allocations then truly fail.

A run of tests.warm whose environment says so has such ranks.
"""

import os
import resource

import psutil

VARIABLE = "MRPO_DS_TEST_MEMORY"
"""How many MiB more the process may take from the dry run on."""


def arm() -> None:
    """Prepare this process, if the environment says so. Called before the command's main()."""
    if not os.environ.get(VARIABLE):
        return
    from mrpo_ds.distributed.heartbeat import Heartbeat

    begin = Heartbeat.phase

    def phase(self: Heartbeat, name: str, step: int = 0) -> None:
        begin(self, name, step)
        if name == "preflight dry run":
            most = psutil.Process().memory_info().vms + int(os.environ[VARIABLE]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))

    Heartbeat.phase = phase  # type: ignore[method-assign]
