"""The orphan timer: stops what nobody follows any more.

A replica that loses a request's last reader waits a grace and then cancels. A replica that dies can do neither, so the
workers look themselves: one PUBSUB NUMSUB for all running requests that end with their client, every few seconds. What
nobody has listened to for `orphan_s` is stopped. After a reconnect the replicas need a moment to subscribe again, which
is why one look proves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time

from shared.errors import BrokerUnavailableError
from shared.hot import HotClient
from shared.keys import Keys
from shared.metrics import ORPHANED
from worker.attempt import Stop
from worker.attempts import Attempts

log = logging.getLogger(__name__)

LOOK_S = 5.0
_TIMEOUT_S = 5.0


class Orphans:
    """A service: see `services.py`."""

    name = "orphans"

    def __init__(
        self,
        client: HotClient,
        keys: Keys,
        attempts: Attempts,
        *,
        orphan_s: float,
    ) -> None:
        """`orphan_s`: how long a request may be without a listener."""
        self._client = client
        self._keys = keys
        self._attempts = attempts
        self._look_s = min(LOOK_S, orphan_s / 2)
        self._orphan_s = orphan_s
        self._unheard_since_s: dict[tuple[str, str], float] = {}

    async def run(self, started: asyncio.Event) -> None:
        """Works until cancelled."""
        started.set()
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except BrokerUnavailableError as error:
                log.debug("orphans: %s", error)
                self._unheard_since_s.clear()  # who listened meanwhile is unknown

    async def look(self) -> None:
        """One look at everything that runs here and ends with its client. Raises BrokerUnavailableError."""
        watched = self._attempts.leaving_with_client()
        if not watched:
            self._unheard_since_s.clear()
            return
        channels = [self._keys.channel(rid) for rid, _ in watched]
        flat = await self._client.call("PUBSUB", "NUMSUB", *channels, timeout_s=_TIMEOUT_S)
        now_s = time.monotonic()
        before, self._unheard_since_s = self._unheard_since_s, {}
        for owned, listeners in zip(watched, flat[1::2], strict=True):
            if int(listeners):
                continue
            since_s = self._unheard_since_s[owned] = before.get(owned, now_s)
            if now_s - since_s >= self._orphan_s:
                rid, attempt = owned
                log.info("request %s: nobody has followed it for %.0f s; stopped", rid, now_s - since_s)
                ORPHANED.inc()
                self._attempts.stop(rid, attempt, Stop.ORPHANED)
