"""Control messages without waiting: a subscription to this worker's control channel.

`cancel` and `expire` leave their message in the worker's box, which comes back with flushes and beats. A worker that
flushes nothing, because a long prompt is being read or the answer is not a stream, would learn of it a second later.
So the same message is published as well. A lost one is no harm: it is in the box.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shared.hot import PushClient
from shared.keys import Keys
from worker.identity import Identity


class Nudge:
    """A service: see `services.py`."""

    name = "nudge"

    def __init__(
        self, url: str, client_name: str, keys: Keys, identity: Identity, on_box: Callable[[list[bytes]], None]
    ) -> None:
        """`on_box` gets the control messages; it must not block. `client_name` is what CLIENT LIST shows."""
        self._keys = keys
        self._identity = identity
        self._on_box = on_box
        self._push = PushClient(url, client_name, self._on_reply, self._on_connect)
        self._confirmed: asyncio.Event | None = None
        identity.on_renewal(self._renamed)

    async def run(self, started: asyncio.Event) -> None:
        """Keeps the subscription until cancelled."""
        self._confirmed = started  # set by the server's confirmation: what is published from then on arrives
        await self._push.run(asyncio.Event())

    def _on_connect(self) -> None:
        self._push.send("SUBSCRIBE", self._keys.control(self._identity.wid))

    def _renamed(self, old: str) -> None:
        self._push.send("UNSUBSCRIBE", self._keys.control(old))
        self._on_connect()

    def _on_reply(self, reply: list[Any]) -> None:
        if reply[0] == b"message":
            self._on_box([reply[2]])
        elif reply[0] == b"subscribe" and self._confirmed is not None:
            self._confirmed.set()
