"""Who is what: the roles as a pure function of the configuration."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_ds.config.schema import Config, ReferenceConfig, TopologyConfig
from mrpo_ds.distributed.topology import POLICY, build_topology, check_world_size
from mrpo_ds.errors import ConfigError


def config_of(policy: int, sizes: dict[str, int | None], placement: str = "served") -> Config:
    """Ranks of the policy and of each reference by name; None: not named in topology.references."""
    return Config(
        references=[ReferenceConfig(name=name, path="p") for name in sizes],
        topology=TopologyConfig(
            policy=policy, references={name: size for name, size in sizes.items() if size}, placement=placement
        ),
    )


names = st.text("abcxyz019-_.", min_size=1, max_size=6)
served = st.builds(config_of, st.integers(1, 64), st.dictionaries(names, st.none() | st.integers(1, 16), max_size=6))


@given(served)
def test_roles_are_neighbours_disjoint_and_cover_every_rank(config):
    topology = build_topology(config)
    ranks = [rank for role in topology.roles for rank in role.ranks]
    assert ranks == list(range(topology.world_size))
    for role in topology.roles:
        assert role.first == role.ranks[0] and role.size == len(role.ranks) >= 1
        assert all(topology.role_of(rank) is role for rank in role.ranks)


@given(served)
def test_the_policy_comes_first_and_the_references_in_the_order_of_the_configuration(config):
    topology = build_topology(config)
    assert topology.policy is topology.roles[0] and topology.policy.is_policy
    assert topology.policy.size == config.topology.policy and topology.policy.first == 0
    assert [role.name for role in topology.roles[1:]] == [f"ref/{one.name}" for one in config.references]
    assert not any(role.is_policy for role in topology.roles[1:])
    assert [role.size for role in topology.roles[1:]] == [
        config.topology.references.get(one.name, 1) for one in config.references
    ]


@given(served, st.integers(0, 40))
def test_a_rank_outside_has_no_role(config, beyond):
    topology = build_topology(config)
    for rank in (topology.world_size + beyond, -1 - beyond):
        with pytest.raises(ConfigError, match=f"rank {rank} has no role; .* ranks 0 to {topology.world_size - 1}"):
            topology.role_of(rank)


@given(served)
def test_colocated_references_have_no_ranks_of_their_own(config):
    colocated = replace(config, topology=replace(config.topology, placement="colocated"))
    topology = build_topology(colocated)
    assert [role.name for role in topology.roles] == [POLICY]
    assert topology.world_size == config.topology.policy


@given(served, st.integers(1, 200))
def test_only_the_exact_number_of_processes_is_accepted(config, started):
    topology = build_topology(config)
    if started == topology.world_size:
        check_world_size(topology, started)
        return
    with pytest.raises(ConfigError) as caught:
        check_world_size(topology, started)
    message = str(caught.value)
    assert message.startswith(f"{started} processes were started, but the topology needs {topology.world_size} ")
    assert topology.describe() in message
    assert f"Start {topology.world_size} processes, or change topology.policy and topology.references" in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of(1, {}), "policy: rank 0"),
        (config_of(2, {"gemma": None}), "policy: ranks 0-1, ref/gemma: rank 2"),
        (config_of(4, {"a": 1, "b": 3}), "policy: ranks 0-3, ref/a: rank 4, ref/b: ranks 5-7"),
        (config_of(8, {"a": 1, "b": 3}, "colocated"), "policy: ranks 0-7"),
    ],
)
def test_describe_is_one_line_with_every_role(config, expected):
    assert build_topology(config).describe() == expected


def test_thousands_of_ranks_are_no_work():
    topology = build_topology(config_of(8192, {f"r{k}": 64 for k in range(16)}))
    assert topology.world_size == 8192 + 16 * 64
    assert topology.role_of(9215).name == "ref/r15"
