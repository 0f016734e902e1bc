"""Addresses of the form `redis+sentinel://[user:password@]host:26379,host:26379/<master name>[/<db>]`.

User and password are the server's. Sentinels that want some get them by `?sentinel_username=…&sentinel_password=…`.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from shared.errors import ConfigurationError

SCHEME = "redis+sentinel"
_PORT = 26_379
_FORM = "redis+sentinel://[user:password@]host:26379,host:26379/<master name>[/<db>]"


@dataclass(frozen=True, slots=True)
class Login:
    """User and password; both may be empty."""

    username: str = ""
    password: str = ""

    @property
    def command(self) -> list[tuple[str, ...]]:
        """The AUTH that it takes, if any."""
        if not self.password:
            return []
        return [("AUTH", *((self.username,) if self.username else ()), self.password)]


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A server that is found by its Sentinels.

    Attributes:
        sentinels: hosts and ports, in the order in which they are asked.
        name: what the Sentinels call the server.
        db: number of the database.
        login: at the server.
        sentinel_login: at the Sentinels.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    db: int
    login: Login
    sentinel_login: Login


def is_sentinel(url: str) -> bool:
    """Whether the URL names Sentinels."""
    return url.startswith(f"{SCHEME}://")


def parse(url: str) -> SentinelAddress:
    """The parts of a URL. Raises ConfigurationError."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    name, _, db = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query)
    try:
        sentinels = tuple(_host_and_port(host) for host in hosts.split(",") if host)
        number = int(db or 0)
    except ValueError:
        sentinels, number = (), 0
    if not sentinels or not name:
        msg = f"this is no address of Sentinels; wanted is {_FORM}"
        raise ConfigurationError(msg)
    return SentinelAddress(
        sentinels,
        unquote(name),
        number,
        Login(unquote(username), unquote(password)),
        Login(query.get("sentinel_username", [""])[0], query.get("sentinel_password", [""])[0]),
    )


def _host_and_port(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or _PORT
