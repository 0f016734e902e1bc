"""Where the fetching of images, and webhooks of clients, may connect to: all their connections come by here.

A name is resolved once per connection, all its addresses are checked, and the connection goes to a checked address: a
name server that answers differently a moment later changes nothing. TLS and the `Host` header keep the name. Proxies of
the environment are not used: they would do the resolving.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""A host and a port → its addresses as texts. Raises OSError."""

OFF, ANY = "off", "any"
_PORTS = frozenset({80, 443})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/3"),
            "168.63.129.16/32",  # Azure's metadata and DNS: a public address that answers inside only
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo, 6to4 and their like lead elsewhere
        ),
    )
)
"""IANA's registries of special addresses. `ipaddress` knows most of them, in some versions of Python not all."""
_IPV4_BITS = 0xFFFF_FFFF


class UnreachableError(Exception):
    """This may not be connected to, or has no address. Clients are not told which of both."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The settings `fetch_images` and `webhook_hosts`: which hosts.

    Attributes:
        anywhere: from any host, on the ports of HTTP and HTTPS.
        named: `(host, port)`; a host that begins with a dot stands for every name below it; port 0: 80 and 443.
    """

    anywhere: bool = False
    named: frozenset[tuple[str, int]] = frozenset()

    def allows(self, host: str, port: int) -> bool:
        """Whether that is one of them, as far as names go. `host` in lower case."""
        if self.anywhere and port in _PORTS:
            return True
        host = host.removesuffix(".")
        labels = host.split(".")
        names = [host, *("." + ".".join(labels[start:]) for start in range(1, len(labels)))]
        ports = (port, 0) if port in _PORTS else (port,)
        return any((name, one) in self.named for name in names for one in ports)


def hosts_of(text: str) -> Hosts | None:
    """The hosts of a setting: `off` (None), `any`, or `images.example.com, *.example.org, [fd00::1]:8080`.

    Raises ValueError.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == [OFF]:
        return None
    if OFF in words or not words:
        raise ValueError("must be off, any, or hosts, separated by commas")
    return Hosts(ANY in words, frozenset(_host(word) for word in words if word != ANY))


def _host(word: str) -> tuple[str, int]:
    host, colon, port = word.rpartition(":")
    if not colon or word.endswith("]"):
        host, port = word, "0"
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host.removeprefix("*")
    if not port.isdecimal() or not host or (not bracketed and set("*:/@[] ") & set(host)):
        raise ValueError(f"{word!r} is no host: write images.example.com, *.example.com or 10.0.0.7:8080")
    return host.removesuffix("."), int(port)


def networks_of(text: str) -> tuple[Network, ...]:
    """The networks of a setting: `10.1.0.0/16, fd00:1::/64`. Raises ValueError."""
    return tuple(ipaddress.ip_network(word.strip()) for word in text.split(",") if word.strip())


def is_allowed(text: str, networks: Iterable[Network] = ()) -> bool:
    """Whether an address may be connected to: a public one, or one in `networks`, which an operator has opened.

    What stands inside an IPv6 address (mapped, NAT64) is looked at as the IPv4 address that it leads to.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or _translated(address) or address
    if any(address in network for network in networks):
        return True
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which NAT64 leads."""
    return ipaddress.IPv4Address(int(address) & _IPV4_BITS) if address in _NAT64 else None


class Resolver:
    """The system's resolver in threads of its own: a slow name server keeps nobody else from a thread."""

    def __init__(self, at_once: int) -> None:
        self._threads = ThreadPoolExecutor(at_once, "penstock-images-dns")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Addresses of `host`. It may be cancelled; the thread ends when the system gives up."""
        loop = asyncio.get_running_loop()
        look = self._threads.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.wrap_future(look, loop=loop)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        """Lets the threads go; waits for none."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only. The way of httpcore to the network."""

    def __init__(self, resolve: Resolve, networks: tuple[Network, ...]) -> None:
        self._resolve = resolve
        self._networks = networks
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises UnreachableError when one address of the host is not allowed, even if others are."""
        try:
            addresses = await self._resolve(host, port)
            allowed = bool(addresses) and all(is_allowed(address, self._networks) for address in addresses)
        except (OSError, ValueError) as error:  # UnicodeError, too: a name that cannot be one
            raise UnreachableError(f"{host} has no address: {error}") from error
        if not allowed:
            raise UnreachableError(f"{host} is at {', '.join(addresses) or 'no address'}, which is not allowed")
        failed: Exception = UnreachableError(host)
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    async def sleep(self, seconds: float) -> None:
        """As httpcore wants it."""
        await self._network.sleep(seconds)
