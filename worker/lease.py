"""The beat: renews the worker's lease each second, from a thread of its own.

The thread shares nothing with the event loop that serves requests, so a busy loop costs no lease. But a loop that
stands still is as good as dead: the thread asks it for a sign of life with every beat, and stops beating when none has
come for a while.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import redis

from shared.connection import connect_blocking, translate
from shared.errors import BrokerUnavailableError, FencedError
from shared.keys import Keys
from shared.scripts import LEASE_MS, load
from worker.identity import Identity

log = logging.getLogger(__name__)

BEAT_S = 1.0
STALL_S = 60.0


class Beat:
    """A service: see `services.py`."""

    name = "beat"

    def __init__(self, url: str, keys: Keys, identity: Identity, on_box: Callable[[list[bytes]], None]) -> None:
        """`on_box` gets the control messages that come back with a beat; it must not block."""
        self._url = url
        self._keys = keys
        self._identity = identity
        self._on_box = on_box
        self._stop = threading.Event()
        self._alive_at_s = time.monotonic()

    async def run(self, started: asyncio.Event) -> None:
        """Beats until cancelled."""
        loop = asyncio.get_running_loop()
        first = asyncio.Event()
        thread = threading.Thread(target=self._beats, args=(loop, first), name="beat", daemon=True)
        thread.start()
        try:
            await first.wait()
            started.set()
            await asyncio.Event().wait()
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join, 2 * BEAT_S)

    def _beats(self, loop: asyncio.AbstractEventLoop, first: asyncio.Event) -> None:
        client = connect_blocking(self._url)
        while not self._stop.is_set():
            loop.call_soon_threadsafe(self._sign_of_life)
            silent_s = time.monotonic() - self._alive_at_s
            if silent_s > STALL_S:
                log.critical("the event loop has stood still for %.0f s; the lease is left to lapse", silent_s)
            else:
                self._beat(client, loop, first)
            self._stop.wait(BEAT_S)
        client.close()

    def _sign_of_life(self) -> None:
        self._alive_at_s = time.monotonic()

    def _beat(self, client: redis.Redis, loop: asyncio.AbstractEventLoop, first: asyncio.Event) -> None:
        wid, script, keys = self._identity.wid, load("beat"), self._keys
        try:
            box = client.eval(script.text, 3, keys.lease(wid), keys.dead(wid), keys.box(wid), str(LEASE_MS))
        except (redis.RedisError, OSError) as error:
            ours = translate(error)
            if isinstance(ours, FencedError):
                log.warning("worker %s was condemned; going on under a new id", wid)
                loop.call_soon_threadsafe(self._identity.condemned, wid)
            elif isinstance(ours, BrokerUnavailableError):
                log.warning("beat: %s", ours)
            else:
                raise
            return
        loop.call_soon_threadsafe(first.set)
        if box:
            loop.call_soon_threadsafe(self._on_box, list(box))  # type: ignore[arg-type]
