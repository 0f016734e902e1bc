"""The relays of a replica: woken when they have heard nothing for a while, and sent away when the replica stops."""

from __future__ import annotations

import asyncio
import logging
import math

from api.outlet import TICK_S
from api.relay import Relay

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Relays that are woken in one go, which takes some 0.1 ms: a token that comes meanwhile waits for it."""


class RelayWatch:
    """Wakes relays that have heard nothing for a while. A service: see `services.py`."""

    name = "relay-watch"

    def __init__(self) -> None:
        self._relays: set[Relay] = set()
        self._some = asyncio.Event()
        self._closed = False

    def add(self, relay: Relay) -> None:
        """Watches a relay."""
        self._relays.add(relay)
        self._some.set()
        if self._closed:
            relay.send_away()

    def remove(self, relay: Relay) -> None:
        """Stops watching; safe to call twice."""
        self._relays.discard(relay)
        if not self._relays:
            self._some.clear()

    def __len__(self) -> int:
        return len(self._relays)

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled; sleeps while no stream is open."""
        started.set()
        while True:
            await self._some.wait()
            relays = tuple(self._relays)
            pause_s = TICK_S / max(1, math.ceil(len(relays) / _AT_ONCE))
            for first in range(0, len(relays), _AT_ONCE):
                await asyncio.sleep(pause_s)
                for relay in relays[first : first + _AT_ONCE]:
                    self._tick(relay)

    def _tick(self, relay: Relay) -> None:
        if relay not in self._relays:
            return
        try:
            relay.tick()
        except Exception:
            log.exception("request %s", relay.rid)  # a fault of one must not cost the others their watch

    def send_away(self) -> None:
        """Ends every relay: its client shall go on at another replica. Those that come later are ended, too."""
        self._closed = True
        for relay in tuple(self._relays):
            relay.send_away()
