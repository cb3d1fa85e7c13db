"""The bridge between the roles by itself: messages of real steps between light processes, timed, and a fit of it.

Part of bench_references. The processes have imported torch once, in a server that forks them, and no transformers; they
call what a run calls: Bridge.receive and Bridge.send between the role leaders, broadcast_from_leader in the policy.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import spread
from mrpo_ds.distributed.bridge import Bridge
from mrpo_ds.distributed.collectives import broadcast_from_leader
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import leave, open_rendezvous, split
from mrpo_ds.reference.served import message_size
from tests.distributed.harness import everyone_left, make_topology, run_ranks

WARM_UP = 20
"""Messages that are not timed."""
RUN_AHEAD = 2
Sizes = tuple[int, int, int]
"""Roles (policy included), policy ranks, responses of a step (B * R)."""


def measure(sizes: Sequence[Sizes], messages: int, pause: float) -> list[dict[str, Any]]:
    """A row for each of the sizes. pause: seconds of a step's work between messages, when they come ahead of need.

    round_trip_seconds: nobody runs ahead, and everybody waits for every message, as fast as it goes.
    waited_seconds: the references run ahead, and the policy takes a message after each pause.
    """
    rows = []
    for roles, ranks, responses in sizes:
        topology = make_topology(ranks, **{f"r{number}": 1 for number in range(roles - 1)})
        row: dict[str, Any] = {"roles": roles, "policy_ranks": ranks, "responses": responses}
        row["bytes"] = (roles - 1) * 8 * message_size(responses, 1)
        for name, run_ahead, rest in (("round_trip_seconds", 0, 0.0), ("waited_seconds", RUN_AHEAD, pause)):
            results = run_ranks(exchange, topology, message_size(responses, 1), messages, run_ahead, rest, timeout=300)
            of_policy = [results[rank] for rank in topology.policy.ranks]
            row[name] = spread(max(times) for times in zip(*of_policy, strict=True))
        rows.append(row)
        shown = {name: f"{1e6 * row[name]['median']:.0f} us" for name in ("round_trip_seconds", "waited_seconds")}
        print(f"bridge: {roles} roles, {ranks} policy ranks, {row['bytes']} bytes: {shown}", flush=True)
    return rows


def exchange(topology: Topology, launch: Launch, size: int, messages: int, run_ahead: int, pause: float) -> list[float]:
    """One rank: send or receive so many messages. Returns the policy's seconds for each, broadcast included."""
    world = split(topology, open_rendezvous(launch, 60), share_gpus=True)
    bridge = Bridge(world) if world.is_leader else None
    count = messages + WARM_UP
    seconds = []
    if world.role.is_policy:
        stream = bridge.receive([size] * count, run_ahead) if bridge else None
        for _ in range(count):
            time.sleep(pause)
            started = time.perf_counter()
            received = next(stream) if stream else torch.empty(len(topology.roles) - 1, size, dtype=torch.float64)
            broadcast_from_leader(received)
            seconds.append(time.perf_counter() - started)
    elif bridge:
        for _ in range(count):
            bridge.send(torch.zeros(size, dtype=torch.float64))
    leave()
    everyone_left(world.topology, world.rendezvous.store, world.global_rank)
    return seconds[WARM_UP:]


def fit(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Least squares of a latency: seconds = a + b * roles + c * log2(policy ranks) + d * bytes."""
    import numpy

    columns = [[1.0, row["roles"], math.log2(row["policy_ranks"]), row["bytes"]] for row in rows]
    seconds = [row[name]["median"] for row in rows]
    solution, *_ = numpy.linalg.lstsq(numpy.array(columns), numpy.array(seconds), rcond=None)
    fitted = numpy.array(columns) @ solution
    unexplained = float(((fitted - seconds) ** 2).sum() / ((numpy.array(seconds) - numpy.mean(seconds)) ** 2).sum())
    terms = ("a_seconds", "b_seconds_a_role", "c_seconds_a_doubling_of_ranks", "d_seconds_a_byte")
    found = {term: float(f"{value:.3g}") for term, value in zip(terms, solution, strict=True)}
    return found | {"r_squared": round(1 - unexplained, 3), "points": len(rows)}


def grid(most: int) -> list[Sizes]:
    """Roles and policy ranks up to so many processes, one at a time and together; messages of three sizes."""
    counts = [count for count in (2, 4, 8, 16, 32) if count <= most]
    by_role = [(roles, 1, 128) for roles in counts]
    by_rank = [(2, ranks, 128) for ranks in counts if ranks + 1 <= most] or [(2, 1, 128)]
    together = [(roles, most // 2, 128) for roles in (3, 4, 8) if roles - 1 + most // 2 <= most]
    by_size = [(roles, ranks, responses) for roles, ranks in ((2, 1), (4, 2)) for responses in (1024, 16384)]
    small_enough = [one for one in by_size if one[0] - 1 + one[1] <= most]
    return [*by_role, *by_rank, *together, *small_enough]
