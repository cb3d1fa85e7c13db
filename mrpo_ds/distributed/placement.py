"""Which ranks the references take once it is known which ranks share a host: one host each, where they fit."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby

from mrpo_ds.distributed.topology import Role, Topology


def place(topology: Topology, nodes: Sequence[str]) -> Topology:
    """The same roles, with the references' ranks in the order that suits the nodes best.

    The policy keeps the first ranks, every role has neighbouring ones, and the roles stay listed in the order of the
    configuration. The fewest references lie on two nodes although they would fit into one; then the fewest borders lie
    within references; among equals the first reference comes first. A pure function, so all ranks agree.

    Args:
        topology: as build_topology made it.
        nodes: the node of every global rank, by any name; ranks of a node are neighbours.
    """
    references = topology.roles[1:]
    policy = topology.policy.size
    borders = [rank for rank in range(1, len(nodes)) if nodes[rank] != nodes[rank - 1]]
    room = max((len(list(ranks)) for _, ranks in groupby(nodes[policy:])), default=0)

    def cost(first: int, size: int) -> tuple[int, int]:
        crossed = sum(first < border < first + size for border in borders)
        return int(crossed > 0 and size <= room), crossed

    @cache
    def best(left: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        """Costs and order of the references that are left, on the last ranks."""
        first = topology.world_size - sum(references[index].size for index in left)
        found, tried = [], set()
        for index in left:
            size = references[index].size
            if size not in tried:  # of equal ones the first comes first
                tried.add(size)
                split, crossed, order = best(tuple(other for other in left if other != index))
                here = cost(first, size)
                found.append((split + here[0], crossed + here[1], (index, *order)))
        return min(found, default=(0, 0, ()))

    first, placed = policy, list(topology.roles)
    for index in best(tuple(range(len(references))))[2]:
        placed[index + 1] = replace(references[index], first=first)
        first += references[index].size
    return Topology(tuple(placed))


def nodes_of(role: Role, nodes: Sequence[str]) -> list[str]:
    """The nodes on which a role has ranks, in order."""
    return list(dict.fromkeys(nodes[rank] for rank in role.ranks))


def describe_nodes(topology: Topology, nodes: Sequence[str]) -> str:
    """One line: 'node 0 (a): policy ranks 0-3; node 1 (b): ref/x rank 4'. Nodes in a row that are alike are joined."""
    groups = []
    for node, ranks in groupby(range(len(nodes)), key=lambda rank: nodes[rank]):
        mine = list(ranks)
        roles = [(role.name, [rank for rank in mine if rank in role.ranks]) for role in topology.roles]
        groups.append((node, [(name, held) for name, held in roles if held]))
    lines = []
    for names, alike in groupby(groups, key=lambda group: tuple(name for name, _ in group[1])):
        several = list(alike)
        first, last = several[0], several[-1]
        here = f"node {first[0]}" if first is last else f"nodes {first[0]} to {last[0]}"
        spans = [_span(name, first[1][place][1][0], last[1][place][1][-1]) for place, name in enumerate(names)]
        lines.append(f"{here}: {', '.join(spans)}")
    return "; ".join(lines)


def is_scattered(nodes: Sequence[str]) -> bool:
    """Whether the ranks of some node are no neighbours."""
    return len(list(groupby(nodes))) > len(set(nodes))


def _span(name: str, first: int, last: int) -> str:
    return f"{name} rank {first}" if first == last else f"{name} ranks {first}-{last}"
