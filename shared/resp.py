"""Single connections that speak RESP, on asyncio.Protocol and hiredis: what `hot.py` builds its clients from.

They do not reconnect and know nothing of what is sent: commands in, replies or pushed messages out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from shared.errors import BrokerUnavailableError, FencedError

_ELSEWHERE: Final = ("LOADING", "READONLY", "MASTERDOWN")
_PASSING: Final = ("OOM", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED")
_ELSEWHERE_INSIDE: Final = re.compile(rf"(^|[-('\"])({'|'.join(_ELSEWHERE)}) ")
_PASSING_INSIDE: Final = re.compile(rf"(^|[-('\"])({'|'.join(_PASSING)}) ")
"""The code of a reply or of its cause: before Redis 7 a script's error names it inside, as redis-py's of a pipeline."""


class ScriptMissingError(Exception):
    """The server does not know a script's hash (it was restarted, or its scripts were flushed)."""


class ElsewhereError(BrokerUnavailableError):
    """The server is not, or not yet, the one to talk to: the connection is to be made anew."""


def is_passing(text: str) -> bool:
    """Whether an error reply says nothing about the command: the server has no room, no disk, no replica, no master."""
    return bool(_ELSEWHERE_INSIDE.search(text) or _PASSING_INSIDE.search(text))


def raise_reply(error: hiredis.ReplyError) -> None:
    """Raises an error reply: as one of ours where it is one of them."""
    text = str(error)
    if text.startswith("NOSCRIPT"):
        raise ScriptMissingError
    if "FENCED" in text:
        raise FencedError(text)
    if _ELSEWHERE_INSIDE.search(text):
        raise ElsewhereError(text)
    if is_passing(text):
        raise BrokerUnavailableError(text)
    raise error


class CommandConnection(asyncio.Protocol):
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
        self._why = "closed by the server"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Hot path."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        error = BrokerUnavailableError(f"connection lost: {exc or self._why}")
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: whoever has ceased to wait for the reply need not be told in the log
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
            self._why = "the server did not answer in time"
            self.abort()
        else:
            self._watch_until(first_s)

    def abort(self) -> None:
        """Closes the socket at once."""
        if self._transport is not None:
            self._transport.abort()


class PushConnection(asyncio.Protocol):
    """One subscriber connection; every reply goes to `on_reply`."""

    def __init__(self, on_reply: Callable[[list[Any]], None]) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.heard_at_s = time.monotonic()
        self._reader = hiredis.Reader()
        self._on_reply = on_reply
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Hot path."""
        self.heard_at_s = time.monotonic()
        reader = self._reader
        reader.feed(data)
        gets, on_reply = reader.gets, self._on_reply
        while (reply := gets()) is not False:
            on_reply(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(exc)

    def write(self, command: tuple[Any, ...]) -> None:
        """Writes a command; its reply goes to `on_reply`. Lost when the connection is down."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(hiredis.pack_command(command))

    def abort(self) -> None:
        """Closes the socket at once."""
        if self._transport is not None:
            self._transport.abort()
