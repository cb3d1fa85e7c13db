"""What the processes of test_security do. The imports here are all they need."""

import os
import time

import torch.distributed as dist

from mrpo_ds.distributed.bridge import Bridge
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.trust import TOKEN, prove
from mrpo_ds.distributed.worlds import open_rendezvous, split
from mrpo_ds.errors import ConfigError, ReferenceError


def join_with(topology: Topology, launch: Launch, tokens: list[str | None]) -> str:
    """Enter the rendezvous with the token of one's rank; the refusal, or ''."""
    os.environ.pop(TOKEN, None)
    token = tokens[launch.rank]
    if token is not None:
        os.environ[TOKEN] = token
    try:
        rendezvous = open_rendezvous(launch, 5)
    except ConfigError as error:
        return str(error)
    if launch.rank == 0 and tokens[0] == tokens[1]:
        rendezvous.store.wait(["met"])  # it keeps the store
    elif launch.rank == 0:
        time.sleep(1)
    else:
        rendezvous.store.set("met", "")
    return ""


def come_to_the_bridge(topology: Topology, launch: Launch) -> str:
    """The reference is an impostor: it found the store and the names of its keys, but it has no token."""
    os.environ.pop(TOKEN, None)
    rendezvous = open_rendezvous(launch, 10)
    world = split(topology, rendezvous, share_gpus=False)
    if launch.rank == 1:
        store = dist.PrefixStore("bridge", rendezvous.connect())
        store.set("here/ref/a", prove("a guess", "bridge", rendezvous.nonce, "ref/a"))
        rendezvous.store.wait(["refused"])
        return ""
    try:
        Bridge(world)
    except ReferenceError as error:
        rendezvous.store.set("refused", "")
        time.sleep(1)
        return str(error)
    return "it was let in"
