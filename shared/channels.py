"""Live frames: one subscriber connection per process, demultiplexed to the readers of each request.

Pub/sub is the fast path and may lose messages; the log is the truth. So a listener is told when the connection was
renewed (`on_gap`), and then reads its log. Delivery is synchronous and never waits for a client's socket.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from shared.errors import BrokerUnavailableError
from shared.hot import PushClient
from shared.metrics import RESUBSCRIBES

log = logging.getLogger(__name__)

_CONFIRM_TIMEOUT_S = 5.0
_LINGER_S = 1.0
"""A channel that nobody follows any more stays subscribed so long: many are left at once for one command and one
wake-up of the server, and nothing is published on the channel of a request that has ended."""


class Listener(Protocol):
    """Somebody who follows one channel."""

    def on_message(self, message: bytes) -> None:
        """A live message. Must not block and must not raise."""

    def on_gap(self) -> None:
        """Messages may have been lost: read the log."""


class Channels:
    """Subscriptions of one process. A service: see `services.py`."""

    name = "channels"

    def __init__(self, url: str, client_name: str) -> None:
        """`client_name` is what the server's CLIENT LIST shows."""
        self._client = PushClient(url, client_name, self._on_reply, self._on_connect)
        self._listeners: dict[bytes, list[Listener]] = {}
        self._unconfirmed: dict[bytes, asyncio.Future[None]] = {}
        self._deserted: list[bytes] = []
        self.reconnects = -1  # the first connect is none

    async def run(self, started: asyncio.Event) -> None:
        """Keeps the subscriber connection open until cancelled."""
        await self._client.run(started)

    @property
    def connected(self) -> bool:
        """Whether the subscriber connection is up."""
        return self._client.connected

    def follow(self, channel: str, listener: Listener) -> asyncio.Future[None]:
        """Follows a channel from now on. The future is done when the server has confirmed.

        What was published before the confirmation may have been missed. While there is no connection the future waits.
        """
        key = channel.encode()
        listeners = self._listeners.get(key)
        if listeners is None:
            confirmed = self._unconfirmed[key] = asyncio.get_running_loop().create_future()
            self._listeners[key] = [listener]
            self._client.send("SUBSCRIBE", key)
            return confirmed
        listeners.append(listener)
        if key in self._unconfirmed:
            return self._unconfirmed[key]
        confirmed = asyncio.get_running_loop().create_future()
        confirmed.set_result(None)
        return confirmed

    async def subscribe(self, channel: str, listener: Listener) -> None:
        """Follows a channel. When this returns, the server has confirmed: whatever is published later is delivered.

        Raises BrokerUnavailableError when the confirmation does not come; the listener is then not subscribed.
        """
        try:
            await self.confirmation(self.follow(channel, listener))
        except BaseException:
            self.unsubscribe(channel, listener)
            raise

    @staticmethod
    async def confirmation(confirmed: asyncio.Future[None]) -> None:
        """Waits for the confirmation of a `follow`. Raises BrokerUnavailableError when it does not come in time."""
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT_S):
                await asyncio.shield(confirmed)
        except TimeoutError:
            msg = "the subscription was not confirmed in time"
            raise BrokerUnavailableError(msg) from None

    def unsubscribe(self, channel: str, listener: Listener, *, at_once: bool = False) -> None:
        """Stops following. Safe to call twice. `at_once`: it matters to others that nobody listens here any more."""
        key = channel.encode()
        listeners = self._listeners.get(key)
        if listeners is None or listener not in listeners:
            return
        listeners.remove(listener)
        if not listeners and at_once:
            self._forget([key])
        elif not listeners:
            if not self._deserted:
                asyncio.get_running_loop().call_later(_LINGER_S, self._leave)
            self._deserted.append(key)

    def _leave(self) -> None:
        """Leaves the channels that nobody has come back to."""
        deserted, self._deserted = self._deserted, []
        self._forget([key for key in dict.fromkeys(deserted) if not self._listeners.get(key, True)])

    def _forget(self, keys: list[bytes]) -> None:
        for key in keys:
            del self._listeners[key]
            self._unconfirmed.pop(key, None)
        if keys:
            self._client.send("UNSUBSCRIBE", *keys)

    def _on_reply(self, reply: list[Any]) -> None:
        if type(reply) is not list:
            if isinstance(reply, Exception):  # no place for another client, a wrong password
                log.warning("%s was refused by Redis: %s", self._client.name, reply)
                self._client.abort()
            return
        kind = reply[0]
        if kind == b"message":
            for listener in self._listeners.get(reply[1], ()):
                try:
                    listener.on_message(reply[2])
                except Exception:  # a fault of one must not cost the others their connection
                    log.exception("a listener of %s", reply[1])
        elif kind == b"subscribe":
            confirmed = self._unconfirmed.pop(reply[1], None)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)

    def _on_connect(self) -> None:
        self.reconnects += 1
        if self.reconnects:
            RESUBSCRIBES.inc()
        for key in self._listeners:
            self._client.send("SUBSCRIBE", key)
        for key, listeners in self._listeners.items():
            for listener in listeners:
                try:
                    listener.on_gap()
                except Exception:  # as above
                    log.exception("a listener of %s, told of a gap", key)
