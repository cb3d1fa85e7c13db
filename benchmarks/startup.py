"""`mrpo_ds`, with a line on disk whenever this process begins another phase: what bench_scale starts as ranks.

    python -m benchmarks.startup PHASES.jsonl train CONFIG ...

The phases are those that the run reports to its own heartbeat. The heavy imports come first, so that they do not hide
in a phase; a run does them between reading its data and loading its model.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    file = Path(sys.argv[1]).with_suffix(f".{os.environ['RANK']}.jsonl")
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    born = ticks / os.sysconf("SC_CLK_TCK")  # seconds after the machine's start

    def note(phase: str, step: int) -> None:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(
                json.dumps({"phase": phase, "step": step, "seconds": time.clock_gettime(time.CLOCK_BOOTTIME) - born})
                + "\n"
            )

    note("imports", 0)
    from mrpo_ds.accelerator import announce_cpu

    announce_cpu()
    import mrpo_ds.roles  # noqa: F401
    from mrpo_ds.cli import main as run
    from mrpo_ds.distributed.heartbeat import Heartbeat

    note("start", 0)
    original = Heartbeat.phase

    def phase(self: Heartbeat, name: str, step: int = 0) -> None:
        note(name, step)
        original(self, name, step)

    Heartbeat.phase = phase  # type: ignore[method-assign]
    code = run(sys.argv[2:])
    note("end", 0)
    return code


if __name__ == "__main__":
    sys.exit(main())
