"""A thin Redis client on asyncio.Protocol and hiredis, for the three hot connections.

Measured against redis-py on the path of a token: 2.3 µs instead of 12 µs an event. It does less: commands in,
replies in order, no pool, no retries, no cluster. Two kinds:

- `HotClient`: commands and replies (the flush connection, the blocking read);
- `PushClient`: a subscriber, which hands every message to a function, synchronously. The function must not block.

Both connect and reconnect on their own while their service runs. A command on a connection that is down, or that goes
down before the reply, raises BrokerUnavailableError: whether it took effect is unknown, so commands must be idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import hiredis
from redis.asyncio.connection import parse_url

from shared.errors import BrokerUnavailableError, FencedError

log = logging.getLogger(__name__)

T = TypeVar("T", bound=asyncio.Protocol)

_CONNECT_TIMEOUT_S = 2.0
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MOST_S = 1.0
_PING_EVERY_S = 5.0


class ScriptMissingError(Exception):
    """The server does not know a script's hash (it was restarted, or its scripts were flushed)."""


def _raise_reply(error: hiredis.ReplyError) -> None:
    text = str(error)
    if text.startswith("NOSCRIPT"):
        raise ScriptMissingError
    if "FENCED" in text:
        raise FencedError(text)
    if text.startswith(("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ", "UNBLOCKED")):
        raise BrokerUnavailableError(text)
    raise error


class _CommandProtocol(asyncio.Protocol):
    """One connection; replies resolve futures in the order of the commands.

    One timer watches all commands: a timer for each would cost more than the command. While replies come, it fires
    once per timeout and finds nothing.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        error = BrokerUnavailableError(f"connection lost: {exc or 'closed by the server'}")
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, command: tuple[Any, ...], timeout_s: float) -> asyncio.Future[Any]:
        """Writes a command now; the future gives its reply. Never waits for the socket.

        The connection is closed when the reply has not come after `timeout_s`.
        """
        if self._transport is None or self._transport.is_closing():
            msg = "not connected"
            raise BrokerUnavailableError(msg)
        future: asyncio.Future[Any] = self._loop.create_future()
        deadline_s = self._loop.time() + timeout_s
        self._waiting.append((future, deadline_s))
        if self._timer is None or deadline_s < self._timer_at_s:
            self._watch_until(deadline_s)
        self._transport.write(hiredis.pack_command(command))
        return future

    def _watch_until(self, deadline_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = deadline_s
        self._timer = self._loop.call_at(deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        first_s = min(deadline_s for _, deadline_s in self._waiting)
        if first_s <= self._loop.time():
            self.abort()
        else:
            self._watch_until(first_s)

    def abort(self) -> None:
        """Closes the socket at once."""
        if self._transport is not None:
            self._transport.abort()


class _PushProtocol(asyncio.Protocol):
    """One subscriber connection; every reply goes to `on_reply`."""

    def __init__(self, on_reply: Callable[[list[Any]], None]) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.heard_at_s = time.monotonic()
        self._reader = hiredis.Reader()
        self._on_reply = on_reply
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at_s = time.monotonic()
        reader = self._reader
        reader.feed(data)
        gets, on_reply = reader.gets, self._on_reply
        while (reply := gets()) is not False:
            on_reply(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(exc)

    def write(self, command: tuple[Any, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(hiredis.pack_command(command))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Endpoint:
    """Where a URL points to, and the commands that open a connection there."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = dict(parse_url(url))
        self._path: str | None = options.get("path")
        self._host: str = options.get("host") or "localhost"
        self._port = int(options.get("port") or 6379)
        self._ssl = ssl.create_default_context() if url.startswith("rediss://") else None
        self.greeting: list[tuple[Any, ...]] = []
        if options.get("password"):
            user = (options["username"],) if options.get("username") else ()
            self.greeting.append(("AUTH", *user, options["password"]))
        if options.get("db"):
            self.greeting.append(("SELECT", str(options["db"])))

    async def open(self, factory: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            if self._path:
                _, protocol = await loop.create_unix_connection(factory, self._path)
            else:
                _, protocol = await loop.create_connection(factory, self._host, self._port, ssl=self._ssl)
        return protocol


class HotClient:
    """Commands and replies over one connection that is kept open. A service: see `services.py`."""

    def __init__(self, url: str, name: str) -> None:
        """`name` is what the server's CLIENT LIST shows."""
        self._endpoint = _Endpoint(url)
        self.name = name
        self._protocol: _CommandProtocol | None = None

    async def run(self, started: asyncio.Event) -> None:
        """Keeps the connection open until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            try:
                await self._open()
            except (OSError, BrokerUnavailableError, hiredis.ReplyError) as error:
                log.warning("%s cannot connect to Redis, trying again: %s", self.name, error)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
                backoff_s = min(_BACKOFF_MOST_S, backoff_s * 2)
                continue
            backoff_s = _BACKOFF_FIRST_S
            started.set()
            await self._stay()

    async def _open(self) -> None:
        protocol = await self._endpoint.open(_CommandProtocol)
        try:
            for command in (*self._endpoint.greeting, ("CLIENT", "SETNAME", self.name)):
                await self._reply(protocol.send(command, _CONNECT_TIMEOUT_S))
        except BaseException:
            protocol.abort()
            raise
        self._protocol = protocol

    async def _stay(self) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        try:
            await asyncio.shield(protocol.closed)
        finally:
            self._protocol = None
            protocol.abort()

    @property
    def connected(self) -> bool:
        """Whether the connection is up."""
        return self._protocol is not None

    def send(self, *command: Any, timeout_s: float) -> Coroutine[Any, Any, Any]:
        """Writes a command now; the returned coroutine waits for its reply. Several can be on their way at once.

        Raises BrokerUnavailableError at once when there is no connection. The coroutine raises BrokerUnavailableError,
        FencedError, ScriptMissingError, hiredis.ReplyError. After `timeout_s` the connection is closed, since a server
        that hangs would hold up everything behind this command, and BrokerUnavailableError is raised.
        """
        protocol = self._protocol
        if protocol is None:
            msg = "not connected"
            raise BrokerUnavailableError(msg)
        return self._reply(protocol.send(command, timeout_s))

    @staticmethod
    async def _reply(future: asyncio.Future[Any]) -> Any:
        reply = await future
        if isinstance(reply, hiredis.ReplyError):
            _raise_reply(reply)
        return reply

    async def call(self, *command: Any, timeout_s: float) -> Any:
        """One command and its reply; raises as `send` does."""
        return await self.send(*command, timeout_s=timeout_s)

    async def evalsha(self, sha: str, text: str, keys: list[str], args: list[Any]) -> Any:
        """See scripts.Caller."""
        try:
            return await self.call("EVALSHA", sha, str(len(keys)), *keys, *args, timeout_s=5.0)
        except ScriptMissingError:
            # in one command: between a LOAD and an EVALSHA the scripts could be lost again
            return await self.call("EVAL", text, str(len(keys)), *keys, *args, timeout_s=5.0)


class PushClient:
    """A subscriber connection that is kept open. A service: see `services.py`.

    `on_reply` gets every message, synchronously. `on_connect` is called after each connect: whatever was published
    while there was no connection is gone, and subscriptions must be made again.
    """

    def __init__(
        self, url: str, name: str, on_reply: Callable[[list[Any]], None], on_connect: Callable[[], None]
    ) -> None:
        self._endpoint = _Endpoint(url)
        self.name = name
        self._on_reply = on_reply
        self._on_connect = on_connect
        self._protocol: _PushProtocol | None = None

    async def run(self, started: asyncio.Event) -> None:
        """Keeps the connection open until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            try:
                protocol = await self._endpoint.open(lambda: _PushProtocol(self._on_reply))
            except OSError as error:
                log.warning("%s cannot connect to Redis, trying again: %s", self.name, error)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
                backoff_s = min(_BACKOFF_MOST_S, backoff_s * 2)
                continue
            backoff_s = _BACKOFF_FIRST_S
            for command in (*self._endpoint.greeting, ("CLIENT", "SETNAME", self.name)):
                protocol.write(command)
            self._protocol = protocol
            self._on_connect()
            started.set()
            try:
                await self._watch(protocol)
            finally:
                self._protocol = None
                protocol.abort()

    async def _watch(self, protocol: _PushProtocol) -> None:
        """Until the connection ends. A half-open one is noticed by PINGs that stay without an answer."""
        while True:
            # not wait_for: on 3.11 it swallows a cancellation that comes together with the end of the connection
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_EVERY_S):
                    await asyncio.shield(protocol.closed)
                return
            if time.monotonic() - protocol.heard_at_s > 2 * _PING_EVERY_S:
                return
            protocol.write(("PING",))

    @property
    def connected(self) -> bool:
        """Whether the connection is up."""
        return self._protocol is not None

    def send(self, *command: Any) -> bool:
        """Writes a command; its reply goes to `on_reply`. False when there is no connection."""
        if self._protocol is None:
            return False
        self._protocol.write(command)
        return True
