"""Whether Redis has room for new requests.

Admissions stop before memory is full, so that what runs can end: a server at `maxmemory` refuses the frames of running
streams as well. Nothing is asked while nobody asks for admission.
"""

from __future__ import annotations

import asyncio
import logging

import hiredis

from shared.clock import Clock
from shared.errors import BrokerUnavailableError, RequestError, broker_full
from shared.hot import HotClient

log = logging.getLogger(__name__)

_FRESH_S = 1.0
_TIMEOUT_S = 5.0
_RETRY_AFTER_S = 5


class Memory:
    """The server's memory, as it was at most a second ago when somebody asked."""

    def __init__(self, client: HotClient, clock: Clock, *, limit: float) -> None:
        """`limit`: share of `maxmemory` above which nothing new is admitted. A server without `maxmemory` has none."""
        self._client = client
        self._clock = clock
        self._limit = limit
        self._looked_at_s = float("-inf")
        self._looking = asyncio.Lock()
        self._full = False

    async def refusal(self) -> RequestError | None:
        """The error for a request that must not get in; None while there is room, or when the server does not say."""
        asked_at_s = self._clock.monotonic_s()
        if asked_at_s - self._looked_at_s >= _FRESH_S:
            async with self._looking:
                if self._looked_at_s < asked_at_s:  # nobody has looked while we waited for the lock
                    await self._look()
                    self._looked_at_s = self._clock.monotonic_s()
        return broker_full(_RETRY_AFTER_S) if self._full else None

    async def _look(self) -> None:
        try:
            info: bytes = await self._client.call("INFO", "memory", timeout_s=_TIMEOUT_S)
        except BrokerUnavailableError:
            return  # whoever asks finds out, with the admission itself
        except hiredis.ReplyError as error:  # a server that lets nobody ask
            log.debug("INFO memory: %s", error)
            return
        used, most = _figure(info, b"used_memory:"), _figure(info, b"maxmemory:")
        full = most > 0 and used > self._limit * most
        if full != self._full:
            log.warning("Redis uses %d of %d bytes; new requests are %s", used, most, "refused" if full else "admitted")
        self._full = full


def _figure(info: bytes, name: bytes) -> int:
    for line in info.splitlines():
        if line.startswith(name):
            return int(line[len(name) :])
    return 0
