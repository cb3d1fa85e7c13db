"""Who is what: a pure function of the configuration. No process group, no environment, no torch."""

from dataclasses import dataclass

from mrpo_ds.config.schema import Config
from mrpo_ds.errors import ConfigError

POLICY = "policy"


@dataclass(frozen=True)
class Role:
    """A set of neighbouring global ranks that form one world of their own."""

    name: str
    """policy, or ref/<reference name>."""
    first: int
    """Global rank of the role's leader."""
    size: int
    """Number of ranks."""

    @property
    def ranks(self) -> range:
        """Global ranks of the role."""
        return range(self.first, self.first + self.size)

    @property
    def is_policy(self) -> bool:
        """Whether the role trains; all others score."""
        return self.name == POLICY


@dataclass(frozen=True)
class Topology:
    """All roles, policy first, references in the order of the configuration."""

    roles: tuple[Role, ...]

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return sum(role.size for role in self.roles)

    @property
    def policy(self) -> Role:
        """The role that trains."""
        return self.roles[0]

    def role_of(self, rank: int) -> Role:
        """The role of a global rank. Raises ConfigError when no role has it."""
        for role in self.roles:
            if rank in role.ranks:
                return role
        raise ConfigError(f"rank {rank} has no role; the topology has ranks 0 to {self.world_size - 1}.")

    def describe(self) -> str:
        """One line, for logs and messages: 'policy: ranks 0-1, ref/gemma: rank 2'."""
        return ", ".join(f"{role.name}: {_span(role)}" for role in self.roles)


def build_topology(config: Config) -> Topology:
    """The roles of a run. Placements colocated and stored have no reference roles: the policy's ranks do their work."""
    roles = [Role(POLICY, 0, config.topology.policy)]
    if config.topology.placement == "served":
        for reference in config.references:
            size = config.topology.references.get(reference.name, 1)
            roles.append(Role(f"ref/{reference.name}", roles[-1].first + roles[-1].size, size))
    return Topology(tuple(roles))


def check_world_size(topology: Topology, world_size: int) -> None:
    """Raise ConfigError unless the launcher started exactly as many processes as the topology has ranks."""
    if world_size != topology.world_size:
        raise ConfigError(
            f"{world_size} processes were started, but the topology needs {topology.world_size} "
            f"({topology.describe()}). Start {topology.world_size} processes, or change topology.policy and "
            "topology.references."
        )


def _span(role: Role) -> str:
    return f"rank {role.first}" if role.size == 1 else f"ranks {role.first}-{role.first + role.size - 1}"
