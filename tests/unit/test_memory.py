"""What this process keeps of the memory that it freed."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from contextlib import nullcontext
from mrpo_ds.memory import freed_is_kept

cpu = torch.device("cpu")
if sys.argv[1] == "after":
    with freed_is_kept(cpu):
        torch.empty(12 << 20).fill_(1.0)
torch.set_num_threads(1)
faults = []
with freed_is_kept(cpu) if sys.argv[1] == "keep" else nullcontext():
    for _ in range(24):  # the first ones make the heap as large as it needs to be
        torch.empty(12 << 20).fill_(1.0)  # 48 MiB: glibc maps such blocks by themselves
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[11])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_is_freed_is_kept_for_the_next_block() -> None:
    pages = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("keep", "leave", "after")
    }
    assert pages["keep"] * 3 < pages["leave"], pages
    assert pages["keep"] * 3 < pages["after"], pages
