"""Split the launcher's one world into a world per role, before any process group exists.

DeepSpeed must see an ordinary world of exactly its own ranks: its checkpoints and ZeRO-3 call barriers and
rank-0 writes on the default group, and a sub-group of one big world hangs there. So each process exchanges
addresses over one TCPStore, rewrites its launcher variables to its role's, and starts its role's default group.
"""

# torch.distributed exports its stores and process groups without telling type checkers.
# mypy: disable-error-code="attr-defined,name-defined"

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Role, Topology
from mrpo_ds.errors import ConfigError

WITHOUT_LIMIT = timedelta(days=30)
"""A role's ranks wait for their leader as long as it waits for other roles: who is late, the heartbeat knows."""


@dataclass(frozen=True)
class Rendezvous:
    """The one store that all processes of a run share, hosted by global rank 0 (by torchrun's agent under torchrun)."""

    launch: Launch
    timeout_seconds: float
    store: dist.Store
    server: dist.Store | None
    """Held by global rank 0, which hosts the store: it closes when this object goes."""

    def connect(self) -> dist.Store:
        """A second connection: a store client serves one call at a time, so each thread needs its own."""
        return _prefixed(self.launch, _client(self.launch, self.timeout_seconds))


@dataclass(frozen=True)
class World:
    """One process's place in the world of its role. The default process group is this world."""

    topology: Topology
    role: Role
    global_rank: int
    rank: int
    """Rank within the role."""
    size: int
    """Ranks of the role."""
    device: torch.device
    rendezvous: Rendezvous

    @property
    def is_leader(self) -> bool:
        """Whether this rank stands for its role on the bridge."""
        return self.rank == 0

    @property
    def is_main(self) -> bool:
        """The one process that logs and writes the run's files: global rank 0, the policy's leader."""
        return self.global_rank == 0


def open_rendezvous(launch: Launch, timeout_seconds: float) -> Rendezvous:
    """Open the shared store. Raises ConfigError when the port is taken or global rank 0 cannot be reached."""
    server = None
    if launch.store_prefix is None and launch.rank == 0:
        server = _host(launch, timeout_seconds)
    store = _prefixed(launch, _client(launch, timeout_seconds))
    return Rendezvous(launch, timeout_seconds, store, server)


def split(topology: Topology, rendezvous: Rendezvous, share_gpus: bool) -> World:
    """Start this process's role world (gloo on CPU, nccl on GPU) and rewrite the launcher's variables to it.

    Raises ConfigError when a node has more processes than GPUs and topology.share_gpus is false.
    """
    launch = rendezvous.launch
    role = topology.role_of(launch.rank)
    rank = launch.rank - role.first
    device = pick_device(launch.local_rank, share_gpus)

    key = f"role/{role.name}"
    if rank == 0:
        address = own_address(launch)
        # Port 0: the system chooses, so no other job can have it and no one can take it in between.
        role_store = dist.TCPStore(address, 0, role.size, is_master=True, timeout=WITHOUT_LIMIT, wait_for_workers=False)
        rendezvous.store.set(key, f"{address} {role_store.port}")
    else:
        address, port_text = rendezvous.store.get(key).decode().split()
        role_store = dist.TCPStore(address, int(port_text), role.size, is_master=False, timeout=WITHOUT_LIMIT)

    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # with it set, env:// would wait for an agent for ever
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(role.size),
        LOCAL_RANK=str(device.index if device.type == "cuda" else launch.local_rank),
        MASTER_ADDR=address,
        MASTER_PORT=str(role_store.port),  # DeepSpeed names its shared memory after it: must differ between roles
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=role_store, rank=rank, world_size=role.size, timeout=WITHOUT_LIMIT)
    return World(topology, role, launch.rank, rank, role.size, device, rendezvous)


def leave() -> None:
    """Close the role's world. Without it the rank that leaves last aborts, and its launcher kills the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def own_address(launch: Launch) -> str:
    """This host's address on the network that leads to global rank 0, where the other ranks can reach it."""
    _, _, _, _, main = socket.getaddrinfo(launch.master_addr, launch.master_port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(socket.AF_INET6 if ":" in str(main[0]) else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(main)  # UDP: chooses an interface, sends nothing
        own = str(probe.getsockname()[0])
    # On global rank 0's own host the way may be the loopback, which leads nowhere from elsewhere; its name does.
    return launch.master_addr if own == main[0] or own.startswith("127.") else own


def pick_device(local_rank: int, share_gpus: bool) -> torch.device:
    """The GPU of a node-local rank, or the CPU where there is none. Raises ConfigError when GPUs run out."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus and not share_gpus:
        raise ConfigError(
            f"this node has {gpus} GPUs but the launcher started a process with local rank {local_rank}. Use at most "
            f"{gpus} processes a node, or set topology.share_gpus=true to let roles share a GPU."
        )
    device = torch.device("cuda", local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def _host(launch: Launch, timeout_seconds: float) -> dist.Store:
    try:
        return dist.TCPStore(
            launch.master_addr,
            launch.master_port,
            is_master=True,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot listen on {launch.master_addr}:{launch.master_port} ({str(error).splitlines()[0]}). Another job "
            "may have the port: choose one with the launcher's --master_port (or MASTER_PORT)."
        ) from error


def _client(launch: Launch, timeout_seconds: float) -> dist.Store:
    try:
        return dist.TCPStore(
            launch.master_addr, launch.master_port, is_master=False, timeout=timedelta(seconds=timeout_seconds)
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {launch.rank} cannot reach global rank 0 at {launch.master_addr}:{launch.master_port} within "
            f"{timeout_seconds:g} s ({str(error).splitlines()[0]}). Check MASTER_ADDR, MASTER_PORT and the firewall."
        ) from error


def _prefixed(launch: Launch, store: dist.Store) -> dist.Store:
    return dist.PrefixStore(launch.store_prefix or "mrpo_ds", store)
