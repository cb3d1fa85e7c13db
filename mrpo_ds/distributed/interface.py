"""Where this run's own servers listen: on one interface of the host, and on no other."""

import ipaddress
import socket
from dataclasses import dataclass

import psutil

from mrpo_ds.distributed.launch import Launch
from mrpo_ds.errors import ConfigError


@dataclass(frozen=True)
class Interface:
    """An interface of this host."""

    name: str | None
    """As the system calls it (eth0); None when no interface has the address."""
    address: str
    """The numeric address to listen on."""
    public: str
    """How the run's other hosts reach it."""


def choose_interface(launch: Launch, wanted: str | None) -> Interface:
    """The interface that is wanted (topology.interface), or without a wish the one that leads to global rank 0.

    Raises ConfigError when this host has no such interface, or global rank 0 listens elsewhere than MASTER_ADDR says.
    """
    if wanted is None:
        own = _way_to(launch.master_addr, launch.master_port)
        # On global rank 0's own host the way may be the loopback, which leads nowhere from elsewhere; its name does.
        here = own in _addresses_of(launch.master_addr, launch.master_port) or ipaddress.ip_address(own).is_loopback
        return Interface(_name_of(own), own, launch.master_addr if here else own)
    address = address_of(wanted)
    hosts_store = launch.rank == 0 and launch.store_prefix is None
    if hosts_store and address not in (known := _addresses_of(launch.master_addr, launch.master_port)):
        raise ConfigError(
            f"topology.interface is {wanted!r} ({address}), but MASTER_ADDR is {launch.master_addr!r} "
            f"({', '.join(known)}), where the other ranks look for global rank 0. Give the launcher {address} as the "
            "main address, or leave topology.interface null."
        )
    return Interface(_name_of(address), address, address)


def address_of(wanted: str) -> str:
    """The address of this host that topology.interface means: its own, or that of an interface by name, IPv4 first.

    Raises ConfigError when there is none.
    """
    for name, addresses in (interfaces := _interfaces()).items():
        if wanted in addresses or (wanted == name and addresses):
            return wanted if wanted in addresses else addresses[0]
    here = "; ".join(f"{name} ({', '.join(addresses)})" for name, addresses in interfaces.items() if addresses)
    raise ConfigError(
        f"topology.interface is {wanted!r}; allowed on {socket.gethostname()}: a name or an address of {here}, or null."
    )


def _interfaces() -> dict[str, list[str]]:
    """The addresses of every interface, IPv4 first. Link-local ones are left out: they mean nothing to another host."""
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        of = {family: [one.address for one in entries if one.family == family] for family in _FAMILIES}
        found[name] = of[socket.AF_INET] + [one for one in of[socket.AF_INET6] if "%" not in one]
    return found


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def _name_of(address: str) -> str | None:
    if ipaddress.ip_address(address).is_loopback:  # all of 127.0.0.0/8, of which one address is listed
        address = "::1" if ":" in address else "127.0.0.1"
    return next((name for name, addresses in _interfaces().items() if address in addresses), None)


def _addresses_of(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in _resolve(host, port)]


def _way_to(host: str, port: int) -> str:
    """The address of this host from which a packet to another one would leave."""
    family, _, _, _, target = _resolve(host, port)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)  # UDP: chooses an interface, sends nothing
        except OSError as error:
            near = ipaddress.ip_address(target[0]).is_loopback
            hint = "; is the loopback interface up? (`ip link set lo up`)" if near else ""
            raise ConfigError(
                f"MASTER_ADDR is {host!r}, to which this host has no way ({error.strerror or error}){hint}."
            ) from error
        return str(probe.getsockname()[0])


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)  # type: ignore[return-value]
    except OSError as error:
        raise ConfigError(f"MASTER_ADDR is {host!r}, which leads to no host ({error.strerror or error}).") from error
