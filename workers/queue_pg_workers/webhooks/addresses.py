"""Which addresses a webhook may be sent to.

Whoever may submit a job may have a worker speak to any host, and workers sit where databases, metadata services and
consoles without passwords are. So a host name is resolved once, all its addresses are checked, and the connection
goes to an address that was: what the name means a moment later does not matter.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from queue_pg.errors import ConfigError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# What a cloud's machines alone can reach, and Python takes for public, some versions of it.
_CLOUD_INTERNAL = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")


class ForbiddenAddress(Exception):
    """A host means an address that no webhook may be sent to."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached although it is not public: everything, networks, host names."""

    everything: bool = False
    networks: tuple[IPNetwork, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Allowed:
        """Read `*`, networks, addresses and host names. Raises ConfigError."""
        networks: list[IPNetwork] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
                continue
            except ValueError:
                pass
            name = entry.lower().rstrip(".")
            if entry != "*" and not _is_host_name(name):
                raise ConfigError(
                    f"WEBHOOK_ALLOW_PRIVATE has {entry!r}, which is no host name, address or network.",
                    setting="WEBHOOK_ALLOW_PRIVATE",
                    hint="Write it as 10.0.0.0/8,hooks.internal or * for all.",
                )
            hosts.add(name)
        return cls("*" in hosts, tuple(networks), frozenset(hosts - {"*"}))

    def address(self, address: IPAddress) -> bool:
        return self.everything or any(address in network for network in self.networks)


def _is_host_name(name: str) -> bool:
    labels = name.split(".")
    fits = all(0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() for label in labels)
    # Digits and dots alone were meant as an address.
    return name.isascii() and fits and not name.replace(".", "").isdigit()


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is one of the public internet, and so is what is wrapped in it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address in _SITE_LOCAL:
            return False
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(each) for each in wrapped if each is not None):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not any(address in network for network in _CLOUD_INTERNAL)
    )


# Threads of their own: a name whose servers are silent keeps one for half a minute, and nobody can end it. The loop's
# own ones, which artifacts and commands need, would soon be waiting for names of somebody's choice.
_resolving = ThreadPoolExecutor(max_workers=16, thread_name_prefix="webhook-names")


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once. Raises OSError."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_resolving, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def checked_addresses(host: str, port: int, allowed: Allowed, resolve: Resolve) -> list[str]:
    """Return the addresses of a host, all of which may be reached. Raises ForbiddenAddress, OSError."""
    found = await resolve(host, port)
    if not found:
        raise OSError(f"{host} has no address")
    if host.lower().rstrip(".") in allowed.hosts:
        return list(found)
    for each in found:
        address = ipaddress.ip_address(each)
        if not is_public(address) and not allowed.address(address):
            # Without the address: what a name means inside is nothing to tell those who submit.
            raise ForbiddenAddress(f"{host} is not on the public internet")
    return list(found)
