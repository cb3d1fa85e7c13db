"""What a rank sees after the split. Apart from the tests, so that a started process imports nothing but this."""

import os
from typing import Any

import torch
import torch.distributed as dist

from mrpo_ds.distributed.collectives import (
    barrier,
    broadcast_from_leader,
    gather_objects,
    gather_over_ranks,
    sum_over_ranks,
)
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from tests.distributed.harness import everyone_left


def look_around(topology: Topology, launch: Launch) -> dict[str, Any]:
    """Split, use every collective, and report what this rank sees."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    rendezvous = open_rendezvous(launch, 30)
    world = split(topology, rendezvous, share_gpus=False)
    mine = torch.tensor([float(launch.rank)])
    # Each role makes another number of collectives: in one shared world they would be matched wrongly, or hang.
    for _ in range(3 * launch.rank if world.size == 1 else 5 * world.role.first):
        sum_over_ranks(mine)
    report = {
        "environment": {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")},
        "agent store": os.environ.get("TORCHELASTIC_USE_AGENT_STORE"),
        "default group": (dist.get_rank(), dist.get_world_size()),
        "world": (world.role.name, world.rank, world.size, world.is_leader, world.is_main),
        "sum": sum_over_ranks(mine).item(),
        "own value after the sum": mine.item(),
        "broadcast": broadcast_from_leader(mine.clone()).item(),
        "gathered": gather_over_ranks(mine).flatten().tolist(),
        "objects": gather_objects([f"row {launch.rank}"] * launch.rank),
    }
    barrier()
    leave()
    everyone_left(topology, rendezvous.store, launch.rank)
    return report
