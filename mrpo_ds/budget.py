"""The wall clock of a run: whether one more step and a checkpoint still fit before the time is over."""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

MARGIN = 1.5
"""What comes next may take this much longer than the longest so far."""
LEAVE_SECONDS = 10.0
"""To leave after the checkpoint: the end of the processes."""
BYTES_PER_SECOND = 5e8
"""How fast a checkpoint is taken to be written before the first one has been."""


@dataclass
class Budget:
    """When the run has to be over, and what its parts have taken so far. On the policy's leader alone."""

    ends: float
    """In seconds of time.time(); inf for never."""
    why: str
    """Whose limit it is, for the message."""
    checkpoint_seconds: float
    """A first guess, until one has been written."""
    leave_seconds: float = LEAVE_SECONDS
    longest: dict[str, float] = field(default_factory=dict)
    """By part (step, evaluate, checkpoint), seconds."""

    def took(self, part: str, seconds: float) -> None:
        """Note how long a part took."""
        self.longest[part] = max(seconds, self.longest.get(part, 0.0))

    def over(self, evaluates: bool, checkpoints: int = 1) -> str:
        """Why the run has to stop now, or "" while there is time for a step more.

        evaluates: with an evaluation. checkpoints: 2 while another one is still being written, which comes first.
        """
        parts = [self.longest.get("step", 0.0), checkpoints * self.longest.get("checkpoint", self.checkpoint_seconds)]
        if evaluates:
            parts.append(self.longest.get("evaluate", 0.0))
        need = MARGIN * sum(parts) + self.leave_seconds
        left = self.ends - time.time()
        if left > need:
            return ""
        return f"stopped by {self.why}: {left:.0f} s are left, a step and a checkpoint more may take {need:.0f} s"


def make_budget(max_seconds: float | None, started: float, checkpoint_bytes: float, goodbye_seconds: float) -> Budget:
    """The earlier of train.max_seconds after started (seconds of time.time()) and the end of this Slurm job.

    goodbye_seconds: what the run's trackers may take at its end.
    """
    leave = LEAVE_SECONDS + goodbye_seconds
    guess = checkpoint_bytes / BYTES_PER_SECOND
    ours = float("inf") if max_seconds is None else started + max_seconds
    slurm = slurm_end(os.environ)
    if slurm < ours:
        return Budget(slurm, "the end of the Slurm job", guess, leave)
    return Budget(ours, "train.max_seconds", guess, leave)


def slurm_end(environment: Mapping[str, str]) -> float:
    """When this Slurm job will be ended, in seconds of time.time(); inf outside of one or without a limit."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        return float(end)
    job = environment.get("SLURM_JOB_ID", "")
    if not job:
        return float("inf")
    try:  # releases before 22.05.7 do not set the variable
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%L"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return float("inf")
    return time.time() + parse_time_left(asked.stdout)


def parse_time_left(text: str) -> float:
    """Seconds of Slurm's '1-02:03:04', '02:03:04' or '03:04'; inf for UNLIMITED and whatever else is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
