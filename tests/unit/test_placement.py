"""Where references sit on several nodes: inside one where they fit; the policy never moves."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.distributed.placement import describe_nodes, is_scattered, nodes_of, place
from mrpo_ds.distributed.topology import Role, Topology


def topology_of(policy: int, sizes: list[int]) -> Topology:
    roles = [Role("policy", 0, policy)]
    for index, size in enumerate(sizes):
        roles.append(Role(f"ref/{'abcdefgh'[index]}", roles[-1].first + roles[-1].size, size))
    return Topology(tuple(roles))


def nodes_from(lengths: list[int], ranks: int) -> list[str]:
    """So many ranks on each node; the last node takes what is left."""
    names = [f"{node} (host{node})" for node, length in enumerate(lengths) for _ in range(length)]
    return (names + [f"{len(lengths)} (host{len(lengths)})"] * ranks)[:ranks]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Topology, list[str]]:
    topology = topology_of(draw(st.integers(1, 9)), draw(st.lists(st.integers(1, 6), max_size=5)))
    alike = st.integers(1, 8).map(lambda length: [length] * topology.world_size)
    lengths = draw(alike | st.lists(st.integers(1, 8), min_size=1, max_size=12))
    return topology, nodes_from(lengths, topology.world_size)


def room(topology: Topology, nodes: list[str]) -> int:
    """The most ranks that a node has besides the policy's."""
    free = nodes[topology.policy.size :]
    return max((free.count(node) for node in set(free)), default=0)


def needless(topology: Topology, nodes: list[str]) -> int:
    """References on several nodes that would fit into one."""
    largest = room(topology, nodes)
    return sum(len(nodes_of(role, nodes)) > 1 and role.size <= largest for role in topology.roles[1:])


@given(clusters())
def test_every_rank_has_one_role_of_neighbours_and_the_policy_stays(cluster: tuple[Topology, list[str]]) -> None:
    topology, nodes = cluster
    placed = place(topology, nodes)
    assert sorted(rank for role in placed.roles for rank in role.ranks) == list(range(topology.world_size))
    assert placed.policy == topology.policy
    assert [(role.name, role.size) for role in placed.roles] == [(role.name, role.size) for role in topology.roles]


@given(clusters())
def test_no_order_of_the_references_leaves_fewer_on_two_nodes(cluster: tuple[Topology, list[str]]) -> None:
    topology, nodes = cluster
    orders = []
    for order in permutations(topology.roles[1:]):
        first, roles = topology.policy.size, [topology.policy]
        for role in order:
            roles.append(Role(role.name, first, role.size))
            first += role.size
        orders.append(needless(Topology(tuple(roles)), nodes))
    assert needless(place(topology, nodes), nodes) == min(orders)


@given(clusters())
def test_what_is_well_placed_is_not_moved(cluster: tuple[Topology, list[str]]) -> None:
    topology, nodes = cluster
    if all(len(nodes_of(role, nodes)) == 1 for role in topology.roles[1:]):
        assert place(topology, nodes) == topology
    assert place(topology, ["one"] * topology.world_size) == topology


@pytest.mark.parametrize(
    ("policy", "sizes", "lengths", "first"),
    [
        (2, [3, 2], [4, 4], {"ref/a": 4, "ref/b": 2}),  # in the order of the configuration a would have 2 and 1
        (4, [1, 4, 3], [4, 4, 4], {"ref/a": 4, "ref/b": 8, "ref/c": 5}),
        (2, [6, 4], [4, 4, 4], {"ref/a": 2, "ref/b": 8}),  # a fits into no node, b stays whole
        (2, [4, 6], [4, 4, 4], {"ref/a": 8, "ref/b": 2}),
        (1, [2, 2], [3, 2], {"ref/a": 1, "ref/b": 3}),  # nodes of several sizes
        (4, [3, 3, 2], [4, 4, 4], {"ref/a": 4, "ref/b": 7, "ref/c": 10}),  # 3, 3 and 2 do not go into 4 and 4
    ],
)
def test_examples(policy: int, sizes: list[int], lengths: list[int], first: dict[str, int]) -> None:
    topology = topology_of(policy, sizes)
    placed = place(topology, nodes_from(lengths, topology.world_size))
    assert {role.name: role.first for role in placed.roles[1:]} == first


def test_references_of_eight_sizes_fill_five_nodes() -> None:
    topology = topology_of(8, [1, 2, 3, 4, 5, 6, 7, 8])
    assert needless(place(topology, nodes_from([8] * 6, topology.world_size)), nodes_from([8] * 6, 44)) == 0


def test_the_nodes_are_described_in_one_line_that_thousands_fit_into() -> None:
    topology = topology_of(6, [1, 1])
    nodes = nodes_from([2] * 4, 8)
    assert describe_nodes(topology, nodes) == (
        "nodes 0 (host0) to 2 (host2): policy ranks 0-5; node 3 (host3): ref/a rank 6, ref/b rank 7"
    )
    large = topology_of(8192, [64] * 8)
    assert len(describe_nodes(large, nodes_from([8] * 2000, large.world_size))) < 600


def test_ranks_that_were_dealt_out_in_turn_are_noticed() -> None:
    assert is_scattered(["a", "b", "a", "b"])
    assert not is_scattered(["a", "a", "b", "b"])
    topology = topology_of(2, [2])
    assert place(topology, ["a", "b", "a", "b"]) == topology
