"""What the launcher said about this process: deepspeed and torchrun (RANK, WORLD_SIZE) or srun (SLURM_*)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mrpo_ds.errors import ConfigError

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launch:
    """One process among those that a launcher started."""

    rank: int
    world_size: int
    local_rank: int
    """Index of the process on its node."""
    master_addr: str
    """Host of global rank 0."""
    master_port: int
    """Port of the one rendezvous store."""
    store_prefix: str | None
    """Under torchrun the launcher's agent already hosts a store on that port: the key prefix of this attempt."""
    node: str = ""
    """The launcher's number for the process's node; "" when it gives none: then its host name tells it from others."""


def read_launch(env: Mapping[str, str]) -> Launch | None:
    """This process's place according to its environment, or None when no launcher started it.

    Raises ConfigError when the variables contradict each other or are not numbers.
    """
    launch = None
    if "RANK" in env or "WORLD_SIZE" in env:
        launch = _from_rank_variables(env)
    # srun sets SLURM_STEP_NUM_TASKS, a batch script does not; one task is an interactive shell, not a launch.
    elif _number(env, "SLURM_STEP_NUM_TASKS", "1") > 1:
        launch = _from_slurm(env)
    if launch is not None and launch.rank >= launch.world_size:
        raise ConfigError(
            f"the launcher says rank {launch.rank} of {launch.world_size} processes; allowed: ranks 0 to "
            f"{launch.world_size - 1}. Unset RANK and WORLD_SIZE if they are left over from another run."
        )
    return launch


def _from_rank_variables(env: Mapping[str, str]) -> Launch:
    prefix = None
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        prefix = f"mrpo_ds/attempt_{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Launch(
        rank=_number(env, "RANK"),
        world_size=_number(env, "WORLD_SIZE"),
        local_rank=_number(env, "LOCAL_RANK", "0"),
        master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_number(env, "MASTER_PORT", str(DEFAULT_PORT)),
        store_prefix=prefix,
        node=env.get("GROUP_RANK") or env.get("CROSS_RANK", ""),  # torchrun's name for it, and deepspeed's
    )


def _from_slurm(env: Mapping[str, str]) -> Launch:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "127.0.0.1")
    job = _number(env, "SLURM_JOB_ID", "0")
    return Launch(
        rank=_number(env, "SLURM_PROCID"),
        world_size=_number(env, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(env, "SLURM_LOCALID", "0"),
        master_addr=env.get("MASTER_ADDR") or first_host(nodes),
        # Two jobs of one node must not share a port; 20000-31999 stays below the ephemeral range, 32768 on Linux.
        master_port=_number(env, "MASTER_PORT", str(20000 + job % 12000)),
        store_prefix=None,
        node=env.get("SLURM_NODEID", ""),
    )


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: 'node[07-09,12]-ib,login' -> 'node07-ib'."""
    match = re.match(r"(?:[^\[\],\s]|\[\d[^\]]*\])+(?=,|$)", nodelist.strip())
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST is {nodelist!r}; set MASTER_ADDR to the first node's host name.")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", match.group())


def _number(env: Mapping[str, str], key: str, default: str | None = None) -> int:
    value = env.get(key, default)
    if value is None or not value.isdecimal():
        raise ConfigError(f"environment variable {key} is {value!r}; allowed: a number >= 0, set by the launcher.")
    return int(value)
