"""Split the launcher's one world into a world per role, before any process group exists.

DeepSpeed must see an ordinary world of exactly its own ranks: its checkpoints and ZeRO-3 call barriers and
rank-0 writes on the default group, and a sub-group of one big world hangs there. So each process exchanges
addresses over one TCPStore, rewrites its launcher variables to its role's, and starts its role's default group.
"""

# torch.distributed exports its stores and process groups without telling type checkers.
# mypy: disable-error-code="attr-defined,name-defined"

import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mrpo_ds.distributed.interface import Interface, choose_interface
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Role, Topology
from mrpo_ds.distributed.trust import TOKEN, is_proof, prove, token_from
from mrpo_ds.errors import ConfigError, ReferenceError

WITHOUT_LIMIT = timedelta(days=30)
"""A role's ranks wait for their leader as long as it waits for other roles: who is late, the heartbeat knows."""


@dataclass(frozen=True)
class Rendezvous:
    """The one store that all processes of a run share, hosted by global rank 0 (by torchrun's agent under torchrun)."""

    launch: Launch
    timeout_seconds: float
    interface: Interface
    """Where this process's servers listen."""
    store: dist.Store
    server: dist.Store | None
    """Held by global rank 0, which hosts the store: it closes when this object goes."""
    token: str
    """The run's; see trust.py."""
    nonce: str
    """A number of this run that every proof is about, so that one of another run proves nothing."""

    def connect(self) -> dist.Store:
        """A second connection: a store client serves one call at a time, so each thread needs its own."""
        return _prefixed(self.launch, _client(self.launch, self.timeout_seconds), self.token)


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


def open_rendezvous(launch: Launch, timeout_seconds: float, interface: str | None = None) -> Rendezvous:
    """Open the shared store, and see that global rank 0 has this process's token. interface: topology.interface.

    Raises ConfigError when the port is taken, global rank 0 cannot be reached, or the tokens differ.
    """
    token = token_from(os.environ)
    listens = choose_interface(launch, interface)
    server = None
    if launch.store_prefix is None and launch.rank == 0:
        server = _host(launch, timeout_seconds, listens.address)
    client = _client(launch, timeout_seconds)
    token, nonce = _greet(launch, dist.PrefixStore(_base(launch), client), token)
    return Rendezvous(launch, timeout_seconds, listens, _prefixed(launch, client, token), server, token, nonce)


def meet_nodes(rendezvous: Rendezvous) -> list[str]:
    """The node of every global rank, '0 (its host name)'; waits until every rank has said its own.

    Raises ReferenceError when global rank 0 is gone.
    """
    launch, store = rendezvous.launch, rendezvous.store
    keys = [f"node/{rank}" for rank in range(launch.world_size)]
    host = socket.gethostname()
    try:
        store.set(keys[launch.rank], f"{launch.node} ({host})" if launch.node else host)
        if launch.rank == 0:
            store.wait(keys, WITHOUT_LIMIT)
            store.set("nodes", json.dumps([store.get(key).decode() for key in keys]))
        store.wait(["nodes"], WITHOUT_LIMIT)  # who is late, the heartbeat knows
        nodes: list[str] = json.loads(store.get("nodes"))
    except RuntimeError as error:
        raise ReferenceError("global rank 0, which keeps the store, left while the ranks met") from error
    return nodes


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
        address = rendezvous.interface.public
        # Port 0: the system chooses, so no other job can have it and no one can take it in between.
        role_store = _serve(rendezvous.interface.address, 0, role.size, WITHOUT_LIMIT)
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
    _keep_to(rendezvous.interface)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=role_store, rank=rank, world_size=role.size, timeout=WITHOUT_LIMIT)
    return World(topology, role, launch.rank, rank, role.size, device, rendezvous)


def leave() -> None:
    """Close the role's world. Without it the rank that leaves last aborts, and its launcher kills the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


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


def _host(launch: Launch, timeout_seconds: float, address: str) -> dist.Store:
    try:
        return _serve(address, launch.master_port, None, timedelta(seconds=timeout_seconds))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot listen on {launch.master_addr}:{launch.master_port} ({str(error).splitlines()[0]}). Another job "
            "may have the port: choose one with the launcher's --master_port (or MASTER_PORT)."
        ) from error


def _serve(address: str, port: int, size: int | None, timeout: timedelta) -> dist.Store:
    """A store on one address of this host; by itself TCPStore listens on all of them. Port 0: any free one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, port), family=family, backlog=4096)
    port = server.getsockname()[1]
    return dist.TCPStore(
        address,
        port,
        size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=server.detach(),  # the store closes it
    )


def _keep_to(interface: Interface) -> None:
    """Let gloo and NCCL listen on the interface too, unless the user has told them where."""
    if interface.name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface.name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface.name}")  # exactly that name


def _greet(launch: Launch, store: dist.Store, token: str | None) -> tuple[str, str]:
    """Global rank 0 says the run's nonce and proves that it has the token, or says a token when nobody was given one.

    Returns token and nonce. Raises ConfigError when this process and global rank 0 were given different ones.
    """
    if launch.rank == 0:
        nonce = secrets.token_hex(16)
        made = secrets.token_hex(16)
        store.set("hello", f"{nonce} {prove(token, 'host', nonce)}" if token else f"{nonce} {made} made")
        return token or made, nonce
    try:
        nonce, said, *was_made = store.get("hello").decode().split()
    except RuntimeError as error:
        raise ConfigError(
            f"rank {launch.rank} reached a store at {launch.master_addr}:{launch.master_port}, but global rank 0 said "
            "nothing there. Is another program listening on that port?"
        ) from error
    if was_made and token is None:
        return said, nonce
    mend = f"Set the same {TOKEN} for every rank, or for none."
    if token is None:
        raise ConfigError(f"global rank 0 was given {TOKEN}, rank {launch.rank} was not. {mend}")
    if was_made or not is_proof(said, token, "host", nonce):
        theirs = "none" if was_made else "another one"
        raise ConfigError(f"rank {launch.rank} was given a {TOKEN}, but global rank 0 was given {theirs}. {mend}")
    return token, nonce


def _client(launch: Launch, timeout_seconds: float) -> dist.Store:
    try:
        return dist.TCPStore(
            launch.master_addr, launch.master_port, is_master=False, timeout=timedelta(seconds=timeout_seconds)
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {launch.rank} cannot reach global rank 0 at {launch.master_addr}:{launch.master_port} within "
            f"{timeout_seconds:g} s ({str(error).splitlines()[0]}). Check MASTER_ADDR, MASTER_PORT and the firewall; "
            "global rank 0 listens on the address that MASTER_ADDR has on its own host, or on topology.interface."
        ) from error


def _base(launch: Launch) -> str:
    return launch.store_prefix or "mrpo_ds"


def _prefixed(launch: Launch, store: dist.Store, token: str) -> dist.Store:
    """The run's keys: under a name that one without the token does not know."""
    return dist.PrefixStore(f"{_base(launch)}/{prove(token, 'keys')}", store)
