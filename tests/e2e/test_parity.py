"""Our objectives against the numbers that TRL gave when benchmarks/parity was last run with it."""

import subprocess
import sys

from tests.support import ROOT


def test_losses_of_six_sgd_steps_are_those_of_trl() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/parity/compare.py"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
