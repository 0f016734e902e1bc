"""Where a URL points to, and how a connection is opened there.

With Sentinels the server is looked up anew at every connect, and asked itself whether it is the master: a Sentinel may
not have heard yet.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

import hiredis
from redis.asyncio.connection import parse_url

from shared import sentinel
from shared.errors import BrokerUnavailableError
from shared.resp import CommandConnection, raise_reply

T = TypeVar("T", bound=asyncio.Protocol)

CONNECT_TIMEOUT_S = 2.0
_ASK_TIMEOUT_S = 0.5
"""For one Sentinel, and for the server that it names."""


class Endpoint:
    """What a URL says. `greeting` are the commands that open a connection there."""

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError when an address of Sentinels is malformed."""
        self._masters = Masters(sentinel.parse(url)) if sentinel.is_sentinel(url) else None
        options: dict[str, Any] = self._masters.options if self._masters else dict(parse_url(url))
        self._path: str | None = options.get("path")
        self._host: str = options.get("host") or "localhost"
        self._port = int(options.get("port") or 6379)
        self._ssl = ssl.create_default_context() if url.startswith("rediss://") else None
        login = sentinel.Login(options.get("username") or "", options.get("password") or "")
        self.greeting: list[tuple[Any, ...]] = [*login.command]
        if options.get("db"):
            self.greeting.append(("SELECT", str(options["db"])))

    async def open(self, factory: Callable[[], T]) -> T:
        """Connects. Raises OSError, TimeoutError included; with Sentinels BrokerUnavailableError as well."""
        loop = asyncio.get_running_loop()
        host, port = await self._masters.find() if self._masters else (self._host, self._port)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if self._path:
                _, protocol = await loop.create_unix_connection(factory, self._path)
            else:
                _, protocol = await loop.create_connection(factory, host, port, ssl=self._ssl)
        return protocol


class Masters:
    """Finds the master that Sentinels know by a name."""

    def __init__(self, address: sentinel.SentinelAddress) -> None:
        self._address = address
        self._sentinels = list(address.sentinels)

    @property
    def options(self) -> dict[str, Any]:
        """What the address says about the server itself."""
        login = self._address.login
        return {"username": login.username, "password": login.password, "db": self._address.db}

    async def find(self) -> tuple[str, int]:
        """Host and port of the master. Raises BrokerUnavailableError when no Sentinel knows one that says so itself."""
        faults = []
        for asked in tuple(self._sentinels):
            try:
                host, port = await self._ask(*asked)
                role = await _reply_of(host, port, self._address.login, ("ROLE",))
            except (OSError, BrokerUnavailableError, hiredis.ReplyError) as error:
                faults.append(f"{asked[0]}:{asked[1]}: {str(error) or type(error).__name__}")
                continue
            if role[0] == b"master":
                self._sentinels.remove(asked)
                self._sentinels.insert(0, asked)  # the one that answers is asked first from now on
                return host, port
            faults.append(f"{asked[0]}:{asked[1]} names {host}:{port}, which is a {role[0].decode()}")
        msg = f"no Sentinel knows a master {self._address.name}: {'; '.join(faults)}"
        raise BrokerUnavailableError(msg)

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.name)
        answer = await _reply_of(host, port, self._address.sentinel_login, command)
        if answer is None:
            msg = f"knows no {self._address.name}"
            raise BrokerUnavailableError(msg)
        return answer[0].decode(), int(answer[1])


async def _reply_of(host: str, port: int, login: sentinel.Login, command: tuple[str, ...]) -> Any:
    """One command over a connection of its own. Raises OSError, BrokerUnavailableError, hiredis.ReplyError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_ASK_TIMEOUT_S):
        _, protocol = await loop.create_connection(CommandConnection, host, port)
        try:
            reply = None
            for sent in (*login.command, command):
                reply = await protocol.send(sent, _ASK_TIMEOUT_S)
                if isinstance(reply, hiredis.ReplyError):
                    raise_reply(reply)
            return reply
        finally:
            protocol.abort()
