"""What the scripts for one cluster have in common: a YAML that its users share."""

import re
from dataclasses import dataclass, field

from mrpo_ds.config.load import load_record
from mrpo_ds.errors import require

EXAMPLE = "launch/site.yaml"


@dataclass(frozen=True, kw_only=True)
class Site:
    """The keys of launch/site.yaml, with the same meanings."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "24:00:00"
    """As sbatch takes it."""
    gpus_per_node: int | None = None
    """>= 0, or None for one a task."""
    cpus_per_task: int = 8
    """Cores, >= 1."""
    memory_per_node: str | None = None
    """As sbatch takes it."""
    signal_seconds: int = 300
    """Between the order to stop and the end of the job, 1 to 65535."""
    max_requeues: int = 20
    """>= 0."""
    sbatch: list[str] = field(default_factory=list)
    """Options, each a word that begins with --."""
    modules: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    """Lines of bash."""
    srun: list[str] = field(default_factory=list)
    """Options, each a word that begins with --."""
    container: list[str] = field(default_factory=list)
    """Words of a command that runs another command."""
    python: str = "python"
    templates: str = "launch/slurm"
    scripts: str = "runs/slurm"

    def __post_init__(self) -> None:
        gpus = self.gpus_per_node
        require(gpus is None or gpus >= 0, "gpus_per_node", gpus, ">= 0, or null for one a task")
        require(self.cpus_per_task >= 1, "cpus_per_task", self.cpus_per_task, ">= 1 core")
        require(1 <= self.signal_seconds <= 65535, "signal_seconds", self.signal_seconds, "1 to 65535 seconds")
        require(self.max_requeues >= 0, "max_requeues", self.max_requeues, ">= 0")
        for key in ("sbatch", "srun"):
            for option in getattr(self, key):
                allowed = "options that begin with -, each with its value: --exclusive, --constraint=h100"
                require(option.startswith("-"), f"{key} of the site file", option, allowed)


def load_site(path: str) -> Site:
    """A site file. Raises ConfigError for what no cluster can mean."""
    return load_record(Site, path, "site file", EXAMPLE)


def seconds_of(time: str) -> float | None:
    """The seconds of a limit as sbatch takes it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS; None for no limit.

    Raises ConfigError for anything else.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    whole = re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time) is not None
    allowed = "a time as sbatch takes it: 30 (minutes), 04:00:00, 2-12:00:00, UNLIMITED"
    require(whole, "time", time, allowed)
    numbers = [int(part) for part in parts]
    if dash:  # D-HH[:MM[:SS]]
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # MM[:SS]
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)
