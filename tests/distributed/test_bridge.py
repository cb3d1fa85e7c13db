"""The bridge between the role leaders: order, values, the bound on the run-ahead, and what a lost peer does."""

import os
import signal
import socket
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch

from mrpo_ds.distributed import bridge as bridge_module
from mrpo_ds.distributed.bridge import Bridge, BrokenBridge, Interrupted
from mrpo_ds.distributed.collectives import broadcast_from_leader, sum_over_ranks
from mrpo_ds.distributed.launch import Launch
from mrpo_ds.distributed.placement import place
from mrpo_ds.distributed.topology import Topology
from mrpo_ds.distributed.worlds import World, leave, meet_nodes, open_rendezvous, split
from mrpo_ds.errors import ReferenceError
from tests.distributed.harness import Ranks, everyone_left, make_topology, run_ranks, say


def enter(topology: Topology, launch: Launch, timeout: float = 30) -> World:
    return split(topology, open_rendezvous(launch, timeout), share_gpus=False)


def finish(world: World) -> None:
    leave()
    everyone_left(world.topology, world.rendezvous.store, world.global_rank)


# ---- order and values ------------------------------------------------------------------------------------------------


def content(reference: int, message: int, size: int) -> torch.Tensor:
    """What reference k answers in message t: numbers that float32 could not hold."""
    return torch.arange(size, dtype=torch.float64) / 3 + 1e6 * reference + message / 7


def exchange(topology: Topology, launch: Launch, sizes: list[int], run_ahead: int) -> list[bool]:
    """Policy ranks: whether each message was right. References: send all, each at its own speed."""
    return talk(enter(topology, launch), sizes, run_ahead)


def exchange_on_nodes_of_two(topology: Topology, launch: Launch, sizes: list[int], run_ahead: int) -> Any:
    """The same where two ranks share a node: what talk says, the role's name, this rank within it, the nodes."""
    rendezvous = open_rendezvous(replace(launch, local_rank=launch.rank % 2, node=str(launch.rank // 2)), 30)
    nodes = meet_nodes(rendezvous)
    world = split(place(topology, nodes), rendezvous, share_gpus=False)
    return talk(world, sizes, run_ahead), world.role.name, world.rank, nodes, os.environ["LOCAL_RANK"]


def talk(world: World, sizes: list[int], run_ahead: int) -> list[bool]:
    topology = world.topology
    bridge = Bridge(world) if world.is_leader else None
    right = []
    number = topology.roles.index(world.role) - 1
    if world.role.is_policy:
        stream = bridge.receive(sizes, run_ahead) if bridge else None
        for message, size in enumerate(sizes):
            received = next(stream) if stream else torch.empty(len(topology.roles) - 1, size, dtype=torch.float64)
            received = broadcast_from_leader(received)
            wanted = [content(k, message, size) for k in range(len(topology.roles) - 1)]
            right.append(bool((received == torch.stack(wanted)).all()))
    else:
        for message, size in enumerate(sizes):
            time.sleep(0.002 * number * (message % 3))
            # A share of the answer from each rank, so that a rank out of step would spoil the sum.
            answer = sum_over_ranks(content(number, message, size) if world.is_leader else torch.zeros(size).double())
            if bridge:
                bridge.send(answer)
    finish(world)
    return right


def test_roles_that_changed_places_for_their_nodes_answer_in_the_order_of_the_configuration() -> None:
    """a would have ranks 1 and 2, on two nodes; it gets 2 and 3, and b rank 1."""
    topology = make_topology(1, a=2, b=1)
    answers = run_ranks(exchange_on_nodes_of_two, topology, [3, 1, 2] * 4, 1)
    assert answers[0][0] == [True] * 12
    assert [answer[1:3] for answer in answers] == [("policy", 0), ("ref/b", 0), ("ref/a", 0), ("ref/a", 1)]
    host = socket.gethostname()
    for answer in answers:
        assert answer[3] == [f"0 ({host})"] * 2 + [f"1 ({host})"] * 2
    assert [answer[4] for answer in answers] == ["0", "1", "0", "1"], "each keeps its place on its node"


@pytest.mark.parametrize(
    ("topology", "run_ahead"),
    [
        (make_topology(2, a=2), 2),
        (make_topology(1, a=1, b=2), 1),
        (make_topology(1, a=1, b=1, c=1), 5),
        (make_topology(1, a=1, b=1), 0),
    ],
    ids=["2 policy ranks, 1 reference of 2", "2 references, 1 of 2 ranks", "3 references", "no run-ahead"],
)
def test_every_message_arrives_whole_and_in_order(topology: Topology, run_ahead: int) -> None:
    sizes = [(37 * message) % 1013 + 1 for message in range(60)] + [100_000, 1, 3]
    results = run_ranks(exchange, topology, sizes, run_ahead)
    for rank in topology.policy.ranks:
        assert results[rank] == [True] * len(sizes)


def exchange_at_the_last_moment(topology: Topology, launch: Launch, count: int) -> list[bool]:
    """Exchange so many messages, all of which arrive about when the policy looks up from its wait."""
    bridge_module.LOOK_UP = timedelta(milliseconds=2)
    world = enter(topology, launch)
    bridge = Bridge(world)
    right = []
    if world.role.is_policy:
        for message, received in enumerate(bridge.receive([3] * count, 0)):
            right.append(bool((received[0] == content(0, message, 3)).all()))
    else:
        for message in range(count):
            time.sleep(0.001 + 0.002 * (message % 50) / 50)
            bridge.send(content(0, message, 3))
    finish(world)
    return right


def test_a_message_that_arrives_just_as_the_wait_is_over_is_received() -> None:
    topology = make_topology(1, a=1)
    assert run_ranks(exchange_at_the_last_moment, topology, 1000)[0] == [True] * 1000


# ---- the run-ahead ---------------------------------------------------------------------------------------------------

MESSAGES = 12


def race(topology: Topology, launch: Launch, run_ahead: int) -> list[list[int]]:
    """The policy: for each message it trains on, how many batches each reference has scored by then."""
    world = enter(topology, launch)
    store, name = world.rendezvous.store, world.role.name
    bridge = Bridge(world)
    seen = []
    if world.role.is_policy:
        for _ in bridge.receive([4] * MESSAGES, run_ahead):
            time.sleep(0.1)  # the references score in no time: they get as far as they are let
            seen.append([store.add(f"scored/{role.name}", 0) for role in topology.roles[1:]])
    else:
        for _ in range(MESSAGES):
            store.add(f"scored/{name}", 1)
            bridge.send(torch.zeros(4, dtype=torch.float64))
    finish(world)
    return seen


@pytest.mark.parametrize("run_ahead", [0, 1, 3])
def test_references_run_ahead_as_far_as_they_may_and_no_further(run_ahead: int) -> None:
    seen = run_ranks(race, make_topology(1, a=1, b=1), run_ahead)[0]
    ahead = [[scored - (message + 1) for scored in counts] for message, counts in enumerate(seen)]
    assert max(max(counts) for counts in ahead) == run_ahead + 1
    # Not only at the start: the policy's slot is refilled as soon as it takes a message.
    middle = ahead[: MESSAGES - run_ahead - 1]
    assert [min(counts) for counts in middle] == [run_ahead + 1] * len(middle)


def wait_long(topology: Topology, launch: Launch) -> float:
    """The policy evaluates for longer than any of its own timeouts before it takes the second message."""
    timeout = 1.5
    world = split(topology, replace(open_rendezvous(launch, 30), timeout_seconds=timeout), share_gpus=False)
    bridge = Bridge(world) if world.is_leader else None
    started = time.monotonic()
    if bridge and world.role.is_policy:
        stream = bridge.receive([4] * 6, 2)
        next(stream)
        time.sleep(3 * timeout)
        assert len(list(stream)) == 5
    else:
        for _ in range(6):
            answer = sum_over_ranks(torch.zeros(4, dtype=torch.float64))  # a second rank waits here for its leader
            if bridge:
                bridge.send(answer)
    waited = time.monotonic() - started
    finish(world)
    return waited


def test_a_reference_of_any_size_waits_as_long_as_the_policy_is_busy() -> None:
    assert min(run_ranks(wait_long, make_topology(1, a=2, b=1))) >= 2.9 * 1.5


def grow(topology: Topology, launch: Launch) -> float:
    """By how many MiB this process grows over 300 messages of 1 MiB."""
    world = enter(topology, launch)
    bridge = Bridge(world)
    sizes = [1 << 17] * 320
    stream = bridge.receive(sizes, 2) if world.role.is_policy else None
    before = 0
    for message, size in enumerate(sizes):
        if stream:
            next(stream)
        else:
            bridge.send(torch.ones(size, dtype=torch.float64))
        if message == 20:
            before = psutil.Process().memory_info().rss
    growth = (psutil.Process().memory_info().rss - before) / 2**20
    finish(world)
    return growth


def test_messages_leave_nothing_behind() -> None:
    growth = max(run_ranks(grow, make_topology(1, a=1)))
    assert growth < 100  # of 300 MiB sent; gloo's own buffers and the allocator keep 20 to 35


# ---- lost peers ------------------------------------------------------------------------------------------------------


def lose(topology: Topology, launch: Launch, victim: int) -> tuple[str, float]:
    """Exchange for ever; the victim is killed from outside. Returns what the others' bridge said and when."""
    world = enter(topology, launch)
    bridge = Bridge(world)
    stream = bridge.receive([4] * 100_000, 1) if world.role.is_policy else None
    for message in range(100_000):
        try:
            if stream:
                next(stream)
            else:
                bridge.send(torch.zeros(4, dtype=torch.float64))
        except ReferenceError as error:
            return f"{type(error).__name__}: {error}", time.monotonic()
        if message == 20:
            say("going")
        time.sleep(0.01)
    raise AssertionError("the victim was not killed")


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["policy", "ref/a", "ref/b"])
def test_a_killed_peer_breaks_the_bridge_at_once(victim: int) -> None:
    ranks = Ranks(lose, make_topology(1, a=1, b=1), victim)
    ranks.wait_for("going", 0, 1, 2)
    ranks.send_signal(signal.SIGKILL, victim)
    killed = time.monotonic()
    outcomes = ranks.finish()
    assert outcomes.pop(victim).exit_code == -signal.SIGKILL
    for outcome in outcomes.values():
        message, when = outcome.result
        assert message.startswith("BrokenBridge: the bridge between policy, ref/a, ref/b broke: ")
        assert when - killed < 3


def be_silent(topology: Topology, launch: Launch) -> float:
    """Reference b never answers; the policy waits until it is asked to stop."""
    world = enter(topology, launch)
    bridge = Bridge(world)
    started = time.monotonic()
    if world.role.is_policy:
        with pytest.raises(Interrupted):
            next(bridge.receive([4, 4], 1, lambda: time.monotonic() - started > 2))
    elif world.role.name == "ref/a":
        with pytest.raises(BrokenBridge):
            bridge.send(torch.zeros(4, dtype=torch.float64))
    else:
        time.sleep(4)
    waited = time.monotonic() - started
    os._exit(0) if world.role.name == "ref/b" else None
    return waited


def test_a_wait_for_an_answer_ends_when_the_policy_is_asked_to_stop() -> None:
    assert 2 <= run_ranks(be_silent, make_topology(1, a=1, b=1))[0] < 3.5


def idle(topology: Topology, launch: Launch) -> Any:
    """Not used by the bridge: a leader that sends nothing costs nothing."""
    world = enter(topology, launch)
    bridge = Bridge(world)
    if world.role.is_policy:
        assert list(bridge.receive([], 2)) == []
    finish(world)


def test_no_messages_are_fine() -> None:
    run_ranks(idle, make_topology(1, a=1))
