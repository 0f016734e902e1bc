"""A replica's end: it takes nothing new, lets its streams run for a while, then sends their clients elsewhere.

Nothing is lost by that: requests go on in their workers, and any other replica follows them from where the client is.
A client that does not come back is found by the worker's orphan timer.
"""

from __future__ import annotations

import asyncio
import logging

from api.admission import Door
from api.watch import RelayWatch

log = logging.getLogger(__name__)


class Drain:
    """Begins once, from a signal handler of the event loop's thread."""

    def __init__(self, door: Door, watch: RelayWatch, drain_s: float) -> None:
        """`drain_s`: how long open streams may run on."""
        self._door = door
        self._watch = watch
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Refuses new requests from now on, and ends the streams that are still open when the time is over."""
        if self._door.draining:
            return
        self._door.draining = True
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_s, self._watch.send_away)
        log.info("draining: %d requests are followed, for at most %.0f s", len(self._watch), self._drain_s)
